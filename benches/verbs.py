"""Call the command line the way a person does, from the checkout, and read the JSON it leaves."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.record import ROOT
from calib.errors import IntvitError as CalibError
from calib.scheme import parse
from runtime.errors import IntvitError

WORK = ROOT / "build" / "benches"
# Runs ``python -m MODULE ARGUMENTS`` with extra environment variables; returns the exit code. A test hands in its own.
Call = Callable[[str, Sequence[str], Mapping[str, str]], int]


def call(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a verb in a new process, its output shown; the command line is printed first."""
    print(f"$ python -m {module} {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, check=False)
    return done.returncode


def must(code: int, module: str, arguments: Sequence[str]) -> None:
    """Stop when a verb failed.

    Raises:
        IntvitError: ``code`` is not 0.
    """
    if code:
        raise IntvitError(
            f"{module} ended with exit code {code}",
            where=f"python -m {module} {shlex.join(arguments)}",
            why="its own message stands above",
            next="mend that; the rows measured so far are saved and will be kept",
        )


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A verb's JSON, which must hold ``keys``.

    Raises:
        IntvitError: the file is missing, is not JSON, or lacks a key.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise IntvitError("a verb left no readable JSON", where=str(path), why=str(error)) from error
    lacking = [key for key in keys if not isinstance(value, dict) or key not in value]
    if lacking:
        raise IntvitError(f"a verb's JSON lacks {', '.join(lacking)}", where=str(path))
    assert isinstance(value, dict)
    return value


def chosen(given: str, known: Sequence[str], option: str) -> list[str]:
    """The comma-separated names of an option, each one known, in the order of ``known``; empty means all.

    Raises:
        IntvitError: a name that is not known.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise IntvitError(f"unknown: {', '.join(unknown)}", where=option, next="known: " + ", ".join(known))
    return [name for name in known if not names or name in names]


def numbers(given: str, option: str, least: int = 1) -> list[int]:
    """The comma-separated whole numbers of an option, none below ``least``.

    Raises:
        IntvitError: anything else is given.
    """
    try:
        found = [int(part) for part in given.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        hint = f"give whole numbers of {least} or more with commas between them"
        raise IntvitError(f"no list of numbers: {given!r}", where=option, next=hint)
    return found


def schemes(given: str, option: str = "--schemes") -> list[str]:
    """The comma-separated schemes of an option, spelt as they spell themselves.

    Raises:
        IntvitError: one is none.
    """
    try:
        return [str(parse(text.strip())) for text in given.split(",")]
    except CalibError as error:
        raise IntvitError(error.what, where=option, why=error.why, next=error.next) from error

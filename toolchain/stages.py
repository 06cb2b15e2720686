"""Content-addressed stages: the same inputs, configuration and code give the same key, and a key is done once.

A stage's result is a folder ``<store>/<name>-<key>`` that appears under that name only when it is complete, with
``stage.json`` listing every file's sha256. While it is being made, its checkpoints live in
``<store>/.work-<name>-<key>``, so that the next run of the same command goes on from there, even after kill -9.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from runtime.errors import IntvitError
from runtime.files import json_text, require_writable, sha256_file, user_cache, write_error
from toolchain.cost import Meter
from toolchain.locks import alone

RECORD = "stage.json"
ROOT = Path(__file__).resolve().parent.parent
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where stages are kept; default: $INTVIT_CACHE/stages, or intvit/stages in $XDG_CACHE_HOME or ~/.cache.",
    ),
]
Work = Callable[[Path, Path], dict[str, Any] | None]


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder, its key (16 hex digits), and whether it was already there."""

    folder: Path
    key: str
    reused: bool

    @property
    def cost(self) -> dict[str, Any]:
        """What making it took, whenever that was: ``seconds``, ``peak_mib``, ``resumed`` and the stage's own."""
        found: dict[str, Any] = json.loads((self.folder / RECORD).read_text("utf-8")).get("cost", {})
        return found


def default_store() -> Path:
    """Where stages lie unless ``--cache`` says otherwise: see :func:`runtime.files.user_cache`."""
    return user_cache() / "stages"


def store_at(cache: Path | None) -> Path:
    """The folder of ``--cache``, or :func:`default_store`, once it is known that it may be written; nothing is made.

    One that holds stages may be read-only: all that is asked for may be among them.

    Raises:
        IntvitError: it may not, or there is no home to put it in.
    """
    root = cache
    try:
        root = cache or default_store()
        if not any(root.glob(f"*/{RECORD}")):
            require_writable(root / RECORD)
    except (IntvitError, RuntimeError) as error:  # pathlib's where nobody says which the home is
        raise IntvitError(
            "cannot write to the cache of stages",
            where=str(root or ""),
            why=error.why if isinstance(error, IntvitError) else str(error),
            next="name a folder that may be written: --cache DIR, or INTVIT_CACHE=DIR",
        ) from error
    return root


def code_digest(parts: Sequence[str]) -> str:
    """sha256 over the Python files of ``parts`` (paths in the source tree, folders are walked)."""
    digest = hashlib.sha256()
    for part in parts:
        path = ROOT / part
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(ROOT)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


class StageStore:
    """Runs stages in one folder of the disk."""

    def __init__(self, root: Path, force: bool = False) -> None:
        self.root = root
        self.force = force

    def run(self, name: str, inputs: dict[str, Any], code: Sequence[str], work: Work) -> StageResult:
        """The result of ``work(folder, checkpoints)`` for these inputs, from the store if it is there and whole.

        Args:
            inputs: everything the result depends on, as JSON values. code: source files it depends on.
            work: fills ``folder``; may keep resumable state in ``checkpoints``; may return figures of its cost.

        Raises:
            IntvitError: the store cannot be written; whatever ``work`` raises.
        """
        inputs = inputs | {"code": code_digest(code)}
        key = hashlib.sha256(json_text({"stage": name, "inputs": inputs}).encode()).hexdigest()[:16]
        final = self.root / f"{name}-{key}"
        checkpoints = self.root / f".work-{name}-{key}"
        if not self.force and _whole(final):  # nobody waits for a reader
            return StageResult(final, key, True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with alone(self.root / f".lock-{name}-{key}", "another process is building the same thing"):
                if not self.force and _whole(final):
                    return StageResult(final, key, True)
                shutil.rmtree(final, ignore_errors=True)
                if self.force:
                    shutil.rmtree(checkpoints, ignore_errors=True)
                self._make(final, checkpoints, inputs, work)
        except OSError as error:
            raise write_error(final, error) from error
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise write_error(final, OSError(int(number[1]), os.strerror(int(number[1])))) from error
        return StageResult(final, key, False)

    def _make(self, final: Path, checkpoints: Path, inputs: dict[str, Any], work: Work) -> None:
        partial = self.root / f".partial-{final.name}"  # whoever left one there is gone: we hold the lock
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            resumed = checkpoints.exists()
            with Meter() as meter:
                own = work(partial, checkpoints) or {}
            cost = meter.cost | {"resumed": resumed} | own
            files = {str(p.relative_to(partial)): sha256_file(p) for p in sorted(partial.rglob("*")) if p.is_file()}
            (partial / RECORD).write_text(json_text({"inputs": inputs, "files": files, "cost": cost}), "utf-8")
            os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(checkpoints, ignore_errors=True)


def _whole(folder: Path) -> bool:
    """Whether a stage's folder is complete and no byte of it has changed."""
    try:
        files = json.loads((folder / RECORD).read_text("utf-8"))["files"]
        return bool(files) and all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False

"""The bundle's place: what may be replaced there, and how a finished folder takes its name in one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import IntvitError
from runtime.files import write_error
from runtime.manifest import MANIFEST, MANIFEST_DIGEST, Manifest

REPORT = "report.html"


def check_out(out: Path, name: str, force: bool) -> None:
    """Refuse an output path that holds something else than the bundle called ``name``.

    Raises:
        IntvitError: a file, a folder that is no bundle, or (without ``force``) the bundle of something else.
    """
    _recover(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    hint = "choose another --out"
    if not all((out / part).is_file() for part in (MANIFEST, MANIFEST_DIGEST)):
        raise IntvitError("the output path holds something that is no bundle", where=str(out), next=hint)
    try:
        held = Manifest.model_validate_json((out / MANIFEST).read_bytes()).name
    except (OSError, ValueError):
        held = "a damaged bundle"
    if held != name and not force:
        raise IntvitError(
            "the output path holds another bundle", where=str(out), why=f"it is {held}", next=f"{hint}, or add --force"
        )


@contextlib.contextmanager
def filling(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    A bundle that was there before is moved aside first and removed last, so that one of the two is always whole; what
    a killed build left is put right by the next one.

    Raises:
        IntvitError: the place cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            os.replace(out, _aside(out))
        os.replace(partial, out)
        shutil.rmtree(_aside(out), ignore_errors=True)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _recover(out)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _recover(out: Path) -> None:
    """After a build that died between its two renames: the old bundle gets its name back, or goes."""
    aside = _aside(out)
    if not aside.exists():
        return
    if out.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(aside, out)

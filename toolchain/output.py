"""The bundle's place: what may be replaced there, and how a finished folder takes its name in one rename."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from calib.folder import filled, meant, recover
from runtime.errors import IntvitError
from runtime.files import write_error
from runtime.manifest import MANIFEST, MANIFEST_DIGEST, Manifest
from toolchain.locks import alone

REPORT = "report.html"


def check_out(out: Path, name: str, force: bool) -> None:
    """Refuse an output path that holds something else than the bundle called ``name``, or is being written.

    Raises:
        IntvitError: a file, a folder that is no bundle, or (without ``force``) the bundle of something else; another
            build of it is at work.
    """
    out = meant(out)
    if out.parent.is_dir():
        with _reserved(out):
            recover(out)
    _require_ours(out, name, force)


def _require_ours(out: Path, name: str, force: bool) -> None:
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
def filling(out: Path, name: str, force: bool = False) -> Iterator[Path]:
    """A hidden folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    A bundle that was there before is moved aside first and removed last, so that one of the two is always whole; what
    a killed build left is put right by the next one. Where ``out`` is a link, what it points at is replaced.

    Raises:
        IntvitError: the place cannot be written, another build is writing it, or has put something else there since
            :func:`check_out` looked.
    """
    out = meant(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _reserved(out), filled(out) as partial:
            _require_ours(out, name, force)
            yield partial
    except OSError as error:
        raise write_error(out, error) from error


def _reserved(out: Path) -> contextlib.AbstractContextManager[None]:
    return alone(out.with_name(f".{out.name}.lock"), "another build is writing this bundle")

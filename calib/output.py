"""Where results go: whether a folder can be made there, what of a set of images may be replaced, and how it is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from calib.errors import IntvitError
from calib.folder import aside, filled, locked, meant, recover

IMAGES, META, PREVIEW = "images.safetensors", "images.json", "preview.png"


def require_place(out: Path) -> None:
    """Refuse an ``--out`` that no folder can be made at, before any work is done; nothing is left behind.

    Raises:
        IntvitError: it is a folder without a name of its own (``.``), or what is above it cannot be written.
    """
    if out.name in ("", ".."):
        what = "the output folder appears under its name at once, and this one has none"
        raise IntvitError(what, where=f"--out {out}", next="name one, such as --out build/first")
    above = out.parent
    while not above.exists():
        above = above.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".intvit-", dir=above))
    except OSError as error:
        raise IntvitError(
            "cannot write to --out",
            where=str(out),
            why=f"{above}: {error.strerror or error}",
            next="choose another --out, or make that folder writable",
        ) from error


def check_out(out: Path, force: bool) -> None:
    """Refuse an ``--out`` that cannot be made, or is there already and no set of ours that ``force`` may replace.

    A set that a killed run had moved aside is put back first.

    Raises:
        IntvitError: it is so.
    """
    place = meant(out)
    require_place(place)
    if os.path.lexists(aside(place)):
        with locked(_lock(place), wait=True):
            recover(place)
    _require_ours(out, force)


def _require_ours(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise IntvitError("there is something at --out already", where=str(out), next="choose another, or --force")
    if not (out / META).is_file():
        raise IntvitError(
            "--force only replaces a set of images", where=str(out), why=f"it holds no {META}", next="choose another"
        )


@contextlib.contextmanager
def filling(out: Path, force: bool) -> Iterator[Path]:
    """A hidden folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    A set that ``force`` lets go is moved aside first and removed last, so that one of the two is always whole; what a
    killed run left is put right by the next one. Where ``out`` is a link, what it points at is replaced. Another
    process that wants the same place waits.

    Raises:
        IntvitError: there is something at ``out`` by then that may not be replaced.
    """
    place = meant(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock(place), wait=True), filled(place) as partial:
        yield partial
        _require_ours(out, force)


def _lock(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")

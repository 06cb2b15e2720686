"""Where results go: whether a folder can be made there, what of a set of images may be replaced, and how it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from calib.errors import IntvitError

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
    if os.path.lexists(_aside(place)):
        with _alone(place):
            _recover(place)
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
    partial = place.with_name(f".{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        try:
            _recover(place)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            _require_ours(out, force)
            if os.path.lexists(place):
                os.replace(place, _aside(place))
            os.replace(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _recover(place)


def meant(out: Path) -> Path:
    """Where a link leads: folders are renamed to it and beside it, which would part a link from what it points at."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait for the lock file of ``place`` and hold it inside the block; whoever holds it removes it at the end."""
    lock = place.with_name(f".{place.name}.lock")
    while True:
        with lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_still(lock, stream.fileno()):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _recover(place: Path) -> None:
    """Give the set that stands aside its name back, or remove it where another has taken that name."""
    aside = _aside(place)
    if not os.path.lexists(aside):
        return
    if os.path.lexists(place):
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(aside, place)

"""A folder that takes a name in one rename, and a lock file that dies with its process and leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def meant(out: Path) -> Path:
    """Where a link leads: folders are renamed to it and beside it, which would part a link from what it points at."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block; its folder exists.

    The file is removed by whoever holds it, so one that was locked may be gone by then: it is locked anew.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is off.
        OSError: it cannot be made.
    """
    while True:
        with path.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_still(path, stream.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def filled(place: Path) -> Iterator[Path]:
    """A hidden folder beside ``place`` that becomes it when the block ends well, and is removed when it does not.

    What was there before is moved aside first and removed last, so that one of the two is always whole; what a killed
    process left is put right by the next one. The caller holds a lock, and ``place`` is no link.

    Raises:
        OSError: the place cannot be written.
    """
    partial = place.with_name(f".{place.name}.partial")
    try:
        recover(place)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if os.path.lexists(place):
            os.replace(place, aside(place))
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        recover(place)


def aside(place: Path) -> Path:
    """Where the old folder stands between the two renames."""
    return place.with_name(f".{place.name}.old")


def recover(place: Path) -> None:
    """Give the folder that stands aside its name back, or remove it where another has taken that name."""
    old = aside(place)
    if not os.path.lexists(old):
        return
    if os.path.lexists(place):
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(old, place)

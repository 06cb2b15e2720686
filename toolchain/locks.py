"""One process at a time: a lock file that dies with its process and leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import IntvitError


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block; its folder exists.

    The file is removed by whoever holds it, so one that was locked may be gone by then: it is locked anew.

    Raises:
        IntvitError: another process holds it; ``what`` says so.
        OSError: it cannot be made.
    """
    while True:
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "wait for it to finish, or stop it; then run the same command again"
                raise IntvitError(what, where=str(path), next=hint) from None
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

"""One process at a time, and a message for the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from calib.folder import locked
from runtime.errors import IntvitError


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block (see :func:`calib.folder.locked`); its folder exists.

    Raises:
        IntvitError: another process holds it; ``what`` says so.
        OSError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            hint = "wait for it to finish, or stop it; then run the same command again"
            raise IntvitError(what, where=str(path), next=hint) from None
        yield

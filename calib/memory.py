"""How much memory there is, what cannot fit it, and what an error says of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

from calib.errors import IntvitError

# A container's limit in bytes, "max" or a huge number where there is none: control groups v2, then v1.
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def physical_memory() -> int:
    """Bytes of memory this process may use at most: the machine's, or a container's limit where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(Path(path).read_text("ascii")))
    return min(found)


def require_room(images: int, size: Sequence[int]) -> None:
    """Refuse so many images of ``size`` (C, H, W) that the set alone, at float32, is more than the memory.

    Raises:
        IntvitError: it is; how many fit is said.
    """
    each, memory = 4 * prod(size), physical_memory()
    if images * each > memory:
        raise IntvitError(
            "so many images do not fit the memory",
            where=f"--images {images}",
            why=f"at {' x '.join(map(str, size))} they take {images * each / 2**30:.0f} GiB, "
            f"and there are {memory / 2**30:.0f}",
            next=f"ask for fewer: {memory // each} at the very most",
        )


def out_of_memory(error: Exception) -> bool:
    """Whether the error says that memory ran out: Python's own, or torch's on a GPU or on the CPU."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )

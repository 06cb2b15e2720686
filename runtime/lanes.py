"""Calls of one thread each, side by side, instead of one call on all threads: the same bits, sooner.

The threads of one call meet at the end of every operator; lanes do not, and a lane's few images stay in its core's
cache. ViT and DeiT on 2 cores, 2 to 16 images: docs/decisions/0039-lanes.md.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from runtime.errors import IntvitError


def divide(images: int, threads: int) -> tuple[int, int]:
    """(images that run in lanes, as many in each; images left for a call on all threads), both at least 0."""
    left = images % threads if threads > 1 else 0
    return images - left, left


def pieces(images: int, threads: int, most: int) -> list[slice]:
    """``images``, a multiple of ``threads``, in pieces of at most ``most``: each lane's share alike, small pieces last.

    Threads that take the next piece when they are free end together.
    """
    each = images // threads
    sizes = [most] * (each // most * threads) + ([each % most] * threads if each % most else [])
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def equal_piece(each: int, most: int) -> int:
    """The size of equal pieces of a lane's ``each`` images: the largest divisor of at most ``most``, but never 1 of
    more: then all at once.
    """
    found = max(size for size in range(1, min(each, most) + 1) if each % size == 0)
    return each if found == 1 else found


def lane_pool(threads: int, *, name: str) -> ThreadPoolExecutor:
    """An executor whose ``threads`` threads, named after ``name``, are all there before it gets its first call.

    By itself it starts a thread only for a call that finds none idle: a short call can end before the next one is
    handed over, and a later batch would bring threads that nobody has counted.

    Raises:
        IntvitError: the system does not let so many be started.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    all_here = threading.Barrier(threads)
    try:
        wait([pool.submit(all_here.wait) for _ in range(threads)])
    except RuntimeError as error:  # those that are there would wait for the others without end
        all_here.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        hint = "use fewer --threads, or raise the limit (ulimit -u; a container's pids limit)"
        raise IntvitError("the system starts no more threads", where=name, why=str(error), next=hint) from error
    return pool

"""How images are shared out: all of them once, every lane alike."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import IntvitError
from runtime.lanes import divide, equal_piece, lane_pool, pieces

some = st.integers(1, 70)


@pytest.mark.parametrize(
    ("images", "threads", "found"),
    [(1, 1, (1, 0)), (5, 1, (5, 0)), (1, 2, (0, 1)), (2, 2, (2, 0)), (7, 2, (6, 1)), (7, 8, (0, 7)), (17, 8, (16, 1))],
)
def test_what_is_left_over_takes_all_threads(images: int, threads: int, found: tuple[int, int]) -> None:
    assert divide(images, threads) == found


@given(some, some, st.integers(1, 5))
def test_every_image_is_in_one_piece_and_lanes_are_equal(images: int, threads: int, most: int) -> None:
    alone, left = divide(images, threads)
    assert alone + left == images and alone % threads == 0 and 0 <= left < threads
    parts = pieces(alone, threads, most)
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(alone))
    sizes = [part.stop - part.start for part in parts]
    assert all(0 < size <= most for size in sizes) and sizes == sorted(sizes, reverse=True)
    assert all(sizes.count(size) % threads == 0 for size in set(sizes))  # whoever takes which, all end together
    assert len(set(sizes)) <= 2


def test_threads_that_cannot_be_started_are_told_and_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit of processes: the lanes that were started must not wait for the others for ever."""
    start, started = threading.Thread.start, list[threading.Thread]()

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(IntvitError, match="--threads") as refused:
        lane_pool(3, name="few")
    assert refused.value.why == "can't start new thread"
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@given(some, st.integers(1, 8))
def test_equal_pieces(each: int, most: int) -> None:
    size = equal_piece(each, most)
    assert each % size == 0
    assert size <= most or all(each % other for other in range(2, min(each, most) + 1))
    assert size > 1 or each == 1


def test_the_largest_of_equal_pieces() -> None:
    assert [equal_piece(each, 4) for each in (1, 2, 3, 4, 5, 6, 8, 10, 12)] == [1, 2, 3, 4, 5, 3, 4, 2, 4]


def of_pool(name: str) -> set[int | None]:
    return {thread.native_id for thread in threading.enumerate() if thread.name.startswith(name)}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_pool_starts_with_all_its_threads(threads: int) -> None:
    """A tiny model's first call in lanes ended before the second began: one thread, and another with a later batch."""
    with lane_pool(threads, name="whole") as pool:
        whole = of_pool("whole")
        assert len(whole) == threads
        seen = {future.result() for future in [pool.submit(threading.get_native_id) for _ in range(20)]}
        assert seen <= whole and of_pool("whole") == whole
    assert not of_pool("whole")

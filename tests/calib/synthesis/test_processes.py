"""What processes that share a set tell one another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from calib.synthesis import processes
from calib.synthesis.processes import Place, agree, joined


def test_processes_may_finish_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is done waits for the others in the gathering: for days, not torch's half an hour."""
    asked: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *args, **kwargs: asked.append((args, kwargs)))
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: None)
    with joined() as place:
        assert (place.rank, place.world) == (1, 2)
    ((backend,), options), *more = asked
    assert backend == "gloo" and options["timeout"] >= timedelta(days=30) and not more


def test_alone_a_process_agrees_with_itself() -> None:
    assert agree(16, Place()) == 16


@pytest.mark.parametrize("rank", [0, 1])
def test_all_take_the_number_of_the_first(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(held: list[int], src: int) -> None:
        assert src == 0 and held == [16]
        held[0] = 4

    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    assert agree(16, Place(rank, 2)) == 4

"""Folder names to logit indices."""

from __future__ import annotations

from runtime.classes import Classes


def test_ids_then_indices() -> None:
    classes = Classes(("n01", "n02", "n03"), ("a", "b", "c"))
    assert [classes.index_of(name) for name in ("n02", "2", "3", "-1", "x", "", "²")] == [
        1,
        2,
        None,
        None,
        None,
        None,
        None,
    ]


def test_a_listed_id_wins_over_a_number() -> None:
    assert Classes(("2", "1", "0"), ("a", "b", "c")).index_of("2") == 0

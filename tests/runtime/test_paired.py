"""Paired statistics against their definitions, and the interval against simulation."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.paired import discordant, mcnemar_p, paired_interval, paired_stderr, percent

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


def _sides(pairs: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


@given(PAIRS)
def test_stderr_from_counts(pairs: list[tuple[bool, bool]]) -> None:
    """With b and c the pictures only one of the two gets right: variance (b + c - (b - c)^2 / n) / (n - 1)."""
    first, second = _sides(pairs)
    n, (b, c) = len(pairs), discordant(first, second)
    wanted = 100 * math.sqrt(max(0.0, (b + c - (b - c) ** 2 / n) / (n - 1)) / n)
    assert paired_stderr(first, second) == pytest.approx(wanted, abs=1e-6)


def test_many_discordant_pictures_take_no_time() -> None:
    half = np.arange(40_000) % 2 == 0
    start = time.perf_counter()
    assert mcnemar_p(half, ~half) == 1.0
    few = np.arange(40_000) < 19_700  # 19,700 to 20,300 of 40,000: the normal approximation with its correction
    assert mcnemar_p(few, ~few) == pytest.approx(math.erfc((600 - 1) / math.sqrt(2 * 40_000)), rel=1e-3)
    assert time.perf_counter() - start < 10, "each binomial from the one before: under a second"


def test_stderr_of_one_picture() -> None:
    assert paired_stderr(np.array([True]), np.array([False])) == 0.0


@given(PAIRS)
def test_the_two_models_are_interchangeable(pairs: list[tuple[bool, bool]]) -> None:
    first, second = _sides(pairs)
    low, high = paired_interval(first, second)
    assert low <= 0.0 <= high or discordant(first, second)[0] != discordant(first, second)[1]
    assert paired_interval(second, first) == pytest.approx((-high, -low))
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_mcnemar_by_hand() -> None:
    """6 to 1: two tails of (1 + 7) / 128; nothing discordant, or as many on both sides: 1."""
    first = np.array([True] * 6 + [False] + [True] * 20)
    second = np.array([False] * 6 + [True] + [True] * 20)
    assert discordant(first, second) == (6, 1)
    assert mcnemar_p(first, second) == pytest.approx(2 * 8 / 128)
    assert mcnemar_p(first, first) == 1.0
    many = np.arange(5000) % 2 == 0  # 2 ** 5000 is beyond a float
    assert mcnemar_p(many, ~many) == 1.0
    assert mcnemar_p(np.array([True, False]), np.array([False, True])) == 1.0


def test_the_interval_holds_what_it_promises() -> None:
    """Of 2,000 draws of a known difference, at least 94 % of the intervals hold it: few discordant pictures or many."""
    rng = np.random.default_rng(0)
    for lost, won in ((0.02, 0.01), (0.2, 0.1)):
        held = 0
        for _ in range(2000):
            draw = rng.random(200)
            first, second = draw >= lost, ~((draw >= lost) & (draw < lost + won))
            low, high = paired_interval(first, second)
            held += low <= 100 * (won - lost) <= high
        assert held >= 0.94 * 2000


def test_percent() -> None:
    assert percent(np.array([True, False, False, True])) == 50.0

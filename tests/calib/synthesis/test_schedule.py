"""The learning rate's end points and shape."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from calib.synthesis.schedule import warmup_cosine


def test_end_points() -> None:
    rates = [warmup_cosine(step, 500, 100, 0.2) for step in range(500)]
    assert rates[0] == pytest.approx(0.2 / 100)
    assert rates[99] == rates[100] == 0.2 == max(rates)
    assert rates[300] == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-5
    assert warmup_cosine(500, 500, 100, 0.2) == pytest.approx(0)


def test_rises_then_falls() -> None:
    rates = [warmup_cosine(step, 50, 10, 1.0) for step in range(50)]
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_no_warm_up_and_single_steps() -> None:
    assert warmup_cosine(0, 10, 0, 0.3) == 0.3
    assert warmup_cosine(0, 1, 0, 0.3) == 0.3
    assert warmup_cosine(0, 1, 1, 0.3) == 0.3
    assert math.isfinite(warmup_cosine(5, 5, 5, 0.3))

"""Which round a step is in, and the learning rate's end points and shape."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from calib.synthesis.methods import MIMIQ, PSAQ, Optimiser, Round
from calib.synthesis.schedule import rate_at, round_at, warmup_cosine

HALVES = (Round(0.5, 15), Round(0.5, 30))


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (8, [(0, 0, 4), (0, 3, 4), (1, 0, 4), (1, 3, 4)]),
        (1000, [(0, 0, 500), (0, 499, 500), (1, 0, 500), (1, 499, 500)]),
        (5, [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 2, 3)]),
        (1, [(1, 0, 1)]),
    ],
)
def test_rounds(iterations: int, expected: list[tuple[int, int, int]]) -> None:
    runs = [round_at(HALVES, iterations, step) for step in range(iterations)]
    found = [(HALVES.index(part), inner, length) for part, inner, length in runs]
    assert [run for run in found if run[1] in (0, run[2] - 1)] == expected
    assert all(0 <= inner < length for _, inner, length in found)
    assert all(b[1] == a[1] + 1 or (b[0] == a[0] + 1 and b[1] == 0) for a, b in pairwise(found))


@pytest.mark.parametrize("rounds", [HALVES, (Round(1.0, 0),), ()])
def test_past_the_last_round(rounds: tuple[Round, ...]) -> None:
    with pytest.raises(ValueError, match="step 8 is past"):
        round_at(rounds, 8, 8)


def test_end_points() -> None:
    rates = [warmup_cosine(step, 500, 100, 0.2) for step in range(500)]
    assert rates[0] == pytest.approx(0.2 / 100)
    assert rates[99] == rates[100] == 0.2 == max(rates)
    assert rates[300] == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-5
    assert warmup_cosine(500, 500, 100, 0.2) == pytest.approx(0)
    assert warmup_cosine(500, 500, 100, 0.2, floor=0.05) == pytest.approx(0.05)
    assert warmup_cosine(300, 500, 100, 0.2, floor=0.05) == pytest.approx(0.125)


def test_rises_then_falls() -> None:
    rates = [warmup_cosine(step, 50, 10, 1.0, 0.1) for step in range(50)]
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] > 0.1


def test_no_warm_up_and_single_steps() -> None:
    assert warmup_cosine(0, 10, 0, 0.3) == 0.3
    assert warmup_cosine(0, 1, 0, 0.3) == 0.3
    assert warmup_cosine(0, 1, 1, 0.3) == 0.3
    assert math.isfinite(warmup_cosine(5, 5, 5, 0.3))


def test_psaqs_rate_warms_up_for_100_iterations_of_each_500() -> None:
    for swin, peak in ((False, 0.2), (True, 0.25)):
        rates = [rate_at(PSAQ.optimiser, swin, step, 500) for step in range(500)]
        assert rates == [warmup_cosine(step, 500, 100, peak) for step in range(500)]


def test_mimiqs_rate_is_torchs_cosine_annealing() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=2000, eta_min=0.001)
    for step in range(2000):
        assert rate_at(MIMIQ.optimiser, step % 2 == 0, step, 2000) == pytest.approx(
            annealing.get_last_lr()[0], rel=1e-6
        )
        optimiser.step()
        annealing.step()


def test_warm_up_is_a_share_of_the_steps_given() -> None:
    rates = [rate_at(Optimiser(rate=1.0, warmup=0.25), False, step, 8) for step in range(8)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[3] < 1

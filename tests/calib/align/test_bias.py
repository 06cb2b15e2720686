"""Bias correction takes out the mean error, every token counted by the inverse of its energy."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.align.bias import bias_correction


def weighted_mean(error: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Token by token, in float64."""
    total, weights = torch.zeros(error.shape[1], dtype=torch.float64), 0.0
    mean = float(target.double().square().sum(1).mean())
    for made, wanted in zip(error.double(), target.double(), strict=True):
        weight = 1 / (float(wanted.square().sum()) + 1e-6 * mean)
        total += weight * made
        weights += weight
    return total / weights


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 8))
def test_the_weighted_mean_error_is_zero_afterwards(seed: int, tokens: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(tokens, channels, generator=generator)
    made = target + 0.3 + 0.1 * torch.randn(tokens, channels, generator=generator)
    correction = bias_correction(made, target)
    assert correction.shape == (channels,)
    assert torch.allclose(correction.double(), weighted_mean(target - made, target), atol=1e-5)
    assert float(weighted_mean(target - (made + correction), target).abs().max()) < 1e-5


def test_one_massive_token_barely_moves_it() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(100, 4, generator=generator)
    made = target - 0.1
    made[0], target[0] = 0.0, 1000.0  # an error of 1000 on a token of size 2000
    correction, plain = bias_correction(made, target), (target - made).mean(0)
    assert float((correction - 0.1).abs().max()) < 0.01
    assert float((plain - 0.1).min()) > 9


def test_unweighted_is_the_plain_mean_error() -> None:
    target = torch.tensor([[1.0, 0.0], [1000.0, 4.0]])
    made = torch.tensor([[0.5, 0.0], [990.0, 5.0]])
    assert bias_correction(made, target, weighted=False).tolist() == [5.25, -0.5]


def test_nothing_to_correct() -> None:
    target = torch.randn(5, 3)
    assert torch.equal(bias_correction(target, target), torch.zeros(3))
    assert torch.equal(bias_correction(torch.zeros(5, 3), torch.zeros(5, 3)), torch.zeros(3))
    assert torch.isfinite(bias_correction(torch.ones(5, 3), torch.zeros(5, 3))).all()

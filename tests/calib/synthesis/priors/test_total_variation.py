"""Total variation against a loop over pixels; gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.synthesis.priors.total_variation import scaled_target, total_variation


def slow(images: list) -> float:
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        square = 0.0
        for image in images:
            for channel in image:
                rows, columns = len(channel), len(channel[0])
                for y in range(rows):
                    for x in range(columns):
                        if y + down < rows and 0 <= x + right < columns:
                            square += (channel[y][x] - channel[y + down][x + right]) ** 2
        total += math.sqrt(square)
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 2), st.integers(2, 5), st.integers(2, 5))
def test_equals_the_slow_form(seed: int, batch: int, height: int, width: int) -> None:
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    assert float(total_variation(images)) == pytest.approx(slow(images.double().tolist()), rel=1e-5)


def test_gradients() -> None:
    images = torch.randn(
        2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(total_variation, (images,))


def test_flat_images_have_none_and_finite_gradients() -> None:
    images = torch.full((2, 3, 4, 4), 0.3, requires_grad=True)
    assert float(total_variation(images).detach()) == 0
    (gradient,) = torch.autograd.grad(total_variation(images), images)
    assert torch.isfinite(gradient).all()


def test_the_target_grows_as_the_norm_does() -> None:
    assert scaled_target(2500.0, 32 * 3 * 224 * 224) == 2500.0
    small, large = (torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)) for n in (2, 32))
    grown = float(total_variation(large) / total_variation(small))
    assert grown == pytest.approx(scaled_target(1.0, large.numel()) / scaled_target(1.0, small.numel()), rel=0.05)
    assert scaled_target(2500.0, 8 * 3 * 224 * 224) == pytest.approx(1250.0)

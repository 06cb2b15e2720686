"""Activation ranges: the best step of the grid under the weighted error, symmetric and with a zero point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.align.ranges import CLIPS_8BIT, CLIPS_LOW, choose_range, clip_grid, lsq_range, search_range
from calib.quant.quantizer import levels, quantize

BITS = st.integers(2, 8)


def problem(seed: int, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(30, 7, generator=generator) * torch.exp(torch.randn(1, 7, generator=generator))
    return torch.nn.functional.gelu(rows) if gelu else rows, torch.rand(7, generator=generator)


def error_of(rows: np.ndarray, scale: float, zero: int, bits: int, weight: np.ndarray) -> float:
    low, high = levels(bits)
    integers = np.clip(np.rint(rows / np.float32(scale)).astype(np.float64) + zero, low, high)
    return float((weight * (rows - (integers - zero) * float(np.float32(scale))) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), BITS, st.booleans())
def test_equals_brute_force_over_its_grid(seed: int, bits: int, asymmetric: bool) -> None:
    rows, weight = problem(seed, gelu=asymmetric)
    found = search_range(rows, bits, weight, asymmetric)
    low, high = levels(bits)
    assert found.scale > 0 and low <= found.zero_point <= high
    assert float(np.float32(found.scale)) == found.scale  # what the quantizer stores is what was searched
    values, weights = rows.double().numpy(), weight.double().numpy()
    candidates = []
    for clip in clip_grid(bits):
        if asymmetric:
            scale = np.float32((values.max() * clip - min(values.min(), 0.0)) / (high - low))
            candidates.append((float(scale), round(low - min(values.min(), 0.0) / float(scale))))
        else:
            candidates.append((float(np.float32(np.abs(values).max() * clip / high)), 0))
    single = rows.numpy()
    best = min(error_of(single, scale, zero, bits, weights) for scale, zero in candidates)
    assert found.error == pytest.approx(error_of(single, found.scale, found.zero_point, bits, weights), rel=1e-3)
    assert found.error <= best * (1 + 1e-3)
    assert asymmetric or found.zero_point == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), BITS, st.booleans())
def test_never_worse_than_the_full_range(seed: int, bits: int, asymmetric: bool) -> None:
    rows, weight = problem(seed, gelu=asymmetric)
    low, high = levels(bits)
    top, bottom = float(rows.max()), float(rows.min())
    scale = (top - bottom) / (high - low) if asymmetric else float(rows.abs().max()) / high
    zero = round(low - bottom / scale) if asymmetric else 0
    plain = (quantize(rows, scale, zero, bits) - zero) * scale
    error = float(((rows - plain).double().square() * weight).sum())
    assert search_range(rows, bits, weight, asymmetric).error <= error * (1 + 1e-3)


def test_a_lopsided_range_gets_all_of_its_levels() -> None:
    rows = torch.nn.functional.gelu(3 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
    weight = torch.ones(8)
    with_zero, without = search_range(rows, 8, weight, True), search_range(rows, 8, weight, False)
    assert with_zero.zero_point < -110
    assert with_zero.error < 0.4 * without.error
    assert int(quantize(rows.min(), with_zero.scale, with_zero.zero_point, 8)) in (-128, -127)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_zero_is_a_level(asymmetric: bool) -> None:
    rows = torch.rand(20, 4) * 5 + 1
    found = search_range(rows, 8, torch.ones(4), asymmetric)
    assert int(quantize(torch.zeros(()), found.scale, found.zero_point, 8)) == found.zero_point


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("rows", [torch.zeros(4, 3), -torch.rand(4, 3) - 0.1], ids=["zeros", "negative"])
def test_odd_inputs_still_give_a_range(rows: torch.Tensor, asymmetric: bool) -> None:
    found = search_range(rows, 8, torch.ones(3), asymmetric)
    low, high = levels(8)
    assert found.scale > 0 and low <= found.zero_point <= high
    restored = (quantize(rows, found.scale, found.zero_point, 8) - found.zero_point) * found.scale
    assert float((rows - restored).abs().max()) < 0.02


def test_eight_bits_are_cut_little() -> None:
    assert clip_grid(8) == CLIPS_8BIT and min(CLIPS_8BIT) >= 0.8
    assert clip_grid(4) == CLIPS_LOW and CLIPS_LOW[0] == CLIPS_8BIT[0] == 1.0


def test_channels_that_cost_nothing_may_be_clipped() -> None:
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    rows[:, 1] *= 3
    careless = search_range(rows, 4, torch.tensor([1.0, 0.0]))
    careful = search_range(rows, 4, torch.tensor([1.0, 1.0]))
    assert careless.scale < 0.7 * careful.scale


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), BITS, st.booleans())
def test_lsq_starts_at_twice_the_mean_magnitude_over_the_root_of_the_highest_level(
    seed: int, bits: int, asymmetric: bool
) -> None:
    rows, _ = problem(seed, gelu=asymmetric)
    found = lsq_range(rows, bits, asymmetric)
    low, high = levels(bits)
    assert found.scale == pytest.approx(2 * np.abs(rows.numpy()).mean() / np.sqrt(high), rel=1e-5)
    assert low <= found.zero_point <= high
    smallest = (quantize(rows.min(), found.scale, found.zero_point, bits) - found.zero_point) * found.scale
    if asymmetric:  # as far down as the range goes where there are levels for 0
        assert abs(float(smallest - rows.min())) <= 0.51 * found.scale or found.zero_point == high
    else:
        assert found.zero_point == 0


def test_a_rule_is_chosen_by_name() -> None:
    rows, weight = problem(3, gelu=False)
    ends = -20.0, 10.0
    assert choose_range(rows, 4, weight, "lsq", ends=ends) == lsq_range(rows, 4)
    assert choose_range(rows, 4, weight, "mse", True, ends) == search_range(rows, 4, weight, True, ends)
    assert choose_range(rows, 4, weight, "minmax", ends=ends).scale == pytest.approx(20 / 7)


def test_rows_of_zeros_have_a_step() -> None:
    assert lsq_range(torch.zeros(3, 2), 4, True).scale > 0

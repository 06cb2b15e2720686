"""Weight rounding: the best scale of its own grid, by brute force; never worse than max scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.align.rounding import (
    extreme_rounding,
    extreme_scale,
    nearest,
    relative_error,
    search_rounding,
    token_importance,
)
from calib.quant.grid import weight_grid

BITS = st.integers(2, 8)


def problem(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.exp(torch.randn(rows, columns, generator=generator))  # heavy tails: clipping pays
    return weight, torch.rand(columns, generator=generator) ** 2


def levels_of(row: np.ndarray, scale: float, bits: int) -> np.ndarray:
    """The nearest level of every weight, looked for among all."""
    allowed = np.arange(-127, 128) if bits == 8 else np.arange(-(1 << bits - 1), 1 << bits - 1)
    if bits < 4:
        allowed = 2 * allowed + 1
    values = (row / np.float32(scale)).astype(np.float64)
    distance = np.abs(values[:, None] - allowed)
    even = np.abs((allowed - (bits < 4)) // (2 if bits < 4 else 1) % 2)  # half-way: the even place in the list
    return allowed[np.argmin(distance + 1e-9 * even, axis=1)]


def error_of(row: np.ndarray, scale: float, bits: int, importance: np.ndarray) -> float:
    levels = levels_of(row, scale, bits).astype(np.float64)
    return float((importance * (row.astype(np.float64) - levels * float(np.float32(scale))) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 12), BITS, st.sampled_from([1, 2, 10, 20]))
def test_equals_brute_force_over_its_grid(seed: int, rows: int, columns: int, bits: int, steps: int) -> None:
    weight, importance = problem(seed, rows, columns)
    limit = weight_grid(bits).high
    levels, scale = search_rounding(weight, bits, importance, steps)
    assert levels.dtype == torch.int8
    assert scale.dtype == torch.float32 and (scale > 0).all()
    weights, weighted = weight.numpy(), importance.numpy().astype(np.float64)
    for i, row in enumerate(weights):
        full = np.float32(np.abs(row).max()) / np.float32(limit)
        grid = [full * np.float32(f) for f in np.linspace(1.0, 0.8 if bits == 8 else 0.5, steps, dtype=np.float32)]
        best = min(error_of(row, s, bits, weighted) for s in grid)
        found = error_of(row, float(scale[i]), bits, weighted)
        assert found <= best * (1 + 1e-4) + 1e-12
        assert min(abs(float(scale[i]) / float(s) - 1) for s in grid) < 1e-6
        assert np.array_equal(levels[i].numpy(), levels_of(row, scale[i].numpy(), bits))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), BITS)
def test_never_worse_than_scaling_by_the_maximum(seed: int, bits: int) -> None:
    weight, importance = problem(seed, 6, 40)
    levels, scale = search_rounding(weight, bits, importance)
    rounded, plain_scale = extreme_rounding(weight, bits)
    plain = rounded * plain_scale[:, None]
    searched = levels * scale[:, None]
    errors = [((weight - made).square() * importance).double().sum(1) for made in (searched, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_clipping_pays_at_low_bits() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(256)
    for bits, gain in ((2, 0.8), (3, 0.8), (4, 0.95)):
        levels, scale = search_rounding(weight, bits, ones)
        rounded, full = extreme_rounding(weight, bits)
        plain = (weight - rounded * full[:, None]).square().sum()
        assert (weight - levels * scale[:, None]).square().sum() < gain * plain


def test_important_channels_are_served_first() -> None:
    weight = torch.tensor([[1.0, 0.1, 0.1, 0.1]])
    favoured, step = search_rounding(weight, 4, torch.tensor([1e-6, 1.0, 1.0, 1.0]))
    ignored, full = search_rounding(weight, 4, torch.tensor([1.0, 1e-6, 1e-6, 1e-6]))
    assert favoured.tolist() == [[7, 1, 1, 1]] and float(step) == pytest.approx(0.1, rel=0.03)
    assert ignored.tolist() == [[7, 1, 1, 1]] and float(full) == pytest.approx(1 / 7)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_of_zeros_have_a_positive_scale(bits: int) -> None:
    levels, scale = search_rounding(torch.zeros(2, 5), bits, torch.ones(5))
    assert (scale > 0).all() and float((levels * scale[:, None]).abs().max()) <= 1e-8


def test_exact_weights_stay_exact() -> None:
    levels = torch.tensor([[-7, 0, 3, 7], [7, -1, 2, 5]], dtype=torch.int8)
    found, scale = search_rounding(levels * 0.5, 4, torch.ones(4))
    assert torch.equal(found, levels) and scale.tolist() == [0.5, 0.5]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_importance_does_not_depend_on_any_tokens_size(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, 6, generator=generator)
    factors = 10 ** (6 * torch.rand(20, 1, generator=generator) - 3)  # a token of norm 1e-6 counts as none
    assert torch.allclose(token_importance(rows), token_importance(rows * factors), rtol=1e-4)
    assert float(token_importance(rows).sum()) == pytest.approx(1.0, rel=1e-5)


def test_importance_is_the_mean_square_of_unit_tokens() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1000.0, 0.0]])
    assert torch.allclose(token_importance(rows), torch.tensor([(0.36 + 1) / 3, (0.64 + 1) / 3]))
    assert torch.equal(token_importance(torch.zeros(3, 2)), torch.zeros(2))


def test_unweighted_importance_is_the_plain_mean_square() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert token_importance(rows, weighted=False).tolist() == [4.5, 10.0]


def test_relative_error_counts_every_token_alike() -> None:
    target = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    made = torch.tensor([[1.5, 0.0], [1000.0, 0.0]])
    # the floor, a millionth of the mean energy, halves the weight of the token that is a million times weaker
    floor = 1e-6 * float(target.square().sum(1).mean())
    assert relative_error(made, target) == pytest.approx(0.25 / (1 + floor) / 2, rel=1e-4)
    assert relative_error(target, target) == 0.0
    assert relative_error(2 * target[:1], target[:1]) == pytest.approx(1.0, rel=1e-4)


def test_relative_error_of_silence_is_a_number() -> None:
    assert relative_error(torch.zeros(3, 2), torch.zeros(3, 2)) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 4, 16]), BITS)
def test_a_group_is_rounded_as_a_row_of_its_own(seed: int, rows: int, groups: int, size: int, bits: int) -> None:
    weight, importance = problem(seed, rows, groups * size)
    levels, scale = search_rounding(weight, bits, importance, group=size)
    extreme, largest = extreme_rounding(weight, bits, size)
    assert scale.shape == largest.shape == (rows, groups) and torch.equal(largest, extreme_scale(weight, bits, size))
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        own, step = search_rounding(weight[:, part], bits, importance[part])
        assert torch.equal(levels[:, part], own) and torch.equal(scale[:, g], step)
        own, step = extreme_rounding(weight[:, part], bits)
        assert torch.equal(extreme[:, part], own) and torch.equal(largest[:, g], step)
    assert torch.equal(nearest(weight, scale, bits), levels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), BITS)
def test_one_group_of_all_channels_changes_no_bit(seed: int, bits: int) -> None:
    weight, importance = problem(seed, 5, 48)
    for plain, grouped in (
        (search_rounding(weight, bits, importance), search_rounding(weight, bits, importance, group=48)),
        (extreme_rounding(weight, bits), extreme_rounding(weight, bits, 48)),
    ):
        assert torch.equal(plain[0], grouped[0]) and torch.equal(plain[1][:, None], grouped[1])


@pytest.mark.parametrize(("bits", "gain"), [(3, 1.15), (4, 1.2)])
def test_smaller_groups_round_better(bits: int, gain: float) -> None:
    weight, _ = problem(0, 32, 128)
    errors = []
    for group in (None, 64, 16):
        levels, scale = search_rounding(weight, bits, torch.ones(128), group=group)
        steps = scale[:, None] if group is None else scale.repeat_interleave(group, 1)
        errors.append(float((weight - levels * steps).square().sum()))
    assert errors[0] > gain * errors[1] > gain**2 * errors[2]

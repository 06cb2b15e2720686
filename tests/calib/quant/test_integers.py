"""The integer functions of ``+int``: exact against Python's own integers, near the real functions, within int64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calib.quant import integers
from calib.quant.integer_only import exponent_of

LIMIT = 1 << 62
SHIFTS = st.integers(0, integers.MOST_SHIFT)
MULTIPLIERS = st.integers(-(1 << 31) + 1, (1 << 31) - 1)


def rows(most: int, least: int | None = None, width: int = 9) -> st.SearchStrategy[np.ndarray]:
    """int64 arrays (1..4, 1..width) with values within ``most``, the extremes among them."""
    low = -most if least is None else least
    elements = st.one_of(st.integers(low, most), st.sampled_from([low, most]))
    return arrays.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, width)), elements=elements)


def exact(values: np.ndarray) -> list[list[int]]:
    return [[int(value) for value in row] for row in values]


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=5))
def test_dyadic_numbers_are_near_and_of_31_bits(ratios: list[float]) -> None:
    multiplier, shift = integers.dyadic(torch.tensor(ratios, dtype=torch.float64))
    assert 0 <= shift <= integers.MOST_SHIFT
    assert int(multiplier.abs().max()) < 1 << 31
    largest = max(abs(ratio) for ratio in ratios)
    for made, ratio in zip(multiplier.tolist(), ratios, strict=True):
        assert abs(made / 2**shift - ratio) <= largest * 2**-29
    if largest:
        assert int(multiplier.abs().max()) >= 1 << 30


@given(rows(integers.MOST_INPUT), MULTIPLIERS, st.integers(-integers.MOST_OFFSET, integers.MOST_OFFSET), SHIFTS)
def test_rescaling_is_the_floor_of_the_exact_quotient(x: np.ndarray, m: int, o: int, e: int) -> None:
    made = integers.rescaled(torch.from_numpy(x), torch.tensor(m), torch.tensor(o), e)
    assert made.tolist() == [[(value * m + o) // 2**e for value in row] for row in exact(x)]
    assert all(abs(value * m + o) < LIMIT for row in exact(x) for value in row)


@given(rows(1 << 30, 0), st.integers(1, (1 << 31) - 1), SHIFTS)
def test_exponents_are_exact_and_end_where_the_power_is_0(x: np.ndarray, m: int, e: int) -> None:
    made = integers.exponent(torch.from_numpy(x), m, e)
    most = integers.OCTAVES << integers.FRACTION
    assert made.tolist() == [[min((v * m + 2**e // 2) // 2**e, most) for v in row] for row in exact(x)]
    assert int(integers.power(torch.tensor([most]))) == 0


@given(st.integers(0, integers.OCTAVES << integers.FRACTION))
def test_powers_of_two_lie_on_the_chord(t: int) -> None:
    made = int(integers.power(torch.tensor([t])))
    real = 2.0 ** (16 - t / 2**15)
    assert real - 1 <= made <= real * 1.0615  # the chord is above by 6.15 % at most, the shift loses less than 1
    if t:
        assert made <= int(integers.power(torch.tensor([t - 1])))
    assert abs(float(integers.straight_power(torch.tensor(t / 2**15))) - made / 2**16) < 2**-15


@given(st.one_of(st.integers(1, LIMIT - 1), st.integers(1, 1 << 31).map(lambda k: k * k - 1 or 1)))
def test_roots_are_exact(value: int) -> None:
    near = [v for v in (value - 1, value, value + 1) if 1 <= v < LIMIT]
    assert integers.root(torch.tensor(near)).tolist() == [math.isqrt(v) for v in near]


def test_roots_at_both_ends_of_every_octave() -> None:
    values = sorted({v for i in range(62) for v in (2**i - 1, 2**i, 2**i + 1) if v >= 1} | {LIMIT - 1})
    assert integers.root(torch.tensor(values)).tolist() == [math.isqrt(v) for v in values]


@settings(deadline=None)
@given(rows(1 << 29, width=40), st.floats(1e-9, 1e-2))
def test_shiftmax(scores: np.ndarray, unit: float) -> None:
    m, e = exponent_of(unit)
    levels, sums = integers.shiftmax(torch.from_numpy(scores), m, e)
    assert levels.amax(-1).eq(integers.PROBABILITY).all() and levels.ge(0).all()
    for row, made, total in zip(exact(scores), levels.tolist(), sums.flatten().tolist(), strict=True):
        powers = [power(((max(row) - value) * m + 2**e // 2) // 2**e) for value in row]
        assert made == [(p * 127 + 2**15) // 2**16 for p in powers]
        assert total == sum(powers) and total >= integers.ONE
    real = torch.from_numpy(scores).double().mul(unit).softmax(-1)
    close = levels / 127 * integers.ONE / sums
    assert (close - real).abs().max() < 0.062 + 1 / 127


def power(t: int) -> int:
    """2^-t on the chord, in Python's integers."""
    t = min(t, integers.OCTAVES << 15)
    return (2**16 - t % 2**15) // 2 ** (t // 2**15)


@given(st.lists(st.integers(0, 40 << 15), min_size=1, max_size=64), st.data())
def test_mixing_stays_within_its_bound(distances: list[int], data: st.DataObject) -> None:
    """Whatever the row: products of its levels with 8-bit values, over its sum."""
    scores = -torch.tensor([[0, *distances]])
    levels, sums = integers.shiftmax(scores, 1, 0)
    count = len(distances) + 1
    values = data.draw(st.lists(st.sampled_from([-128, 127, 0, 5]), min_size=count, max_size=count))
    total = int((levels[0] * torch.tensor(values)).sum())
    made = int(integers.mixed(torch.tensor([[total]]), sums))
    factor = 2**integers.RECIPROCAL // int(sums)
    assert made == (total * factor) >> integers.RECIPROCAL_SHIFT
    assert abs(made) <= integers.MOST_INPUT // 2 and abs(total * factor) <= 1 << 45
    assert abs(made - total * 2**30 / int(sums)) <= abs(total) * 2**-16 + 1


@pytest.mark.parametrize("tokens", [1, 197, 4096, 1 << 15])
def test_flat_rows_of_many_tokens(tokens: int) -> None:
    levels, sums = integers.shiftmax(torch.zeros(1, tokens, dtype=torch.int64), *exponent_of(1e-4))
    assert int(sums) == tokens * integers.ONE
    mixed = integers.mixed((levels * -128).sum(-1, keepdim=True), sums)
    assert abs(int(mixed) / (-128 * 127 * 2**14) - 1) < 1e-3


@settings(deadline=None)
@given(rows(integers.MOST_HIDDEN), st.floats(1e-6, 1e-1))
def test_shift_gelu(hidden: np.ndarray, unit: float) -> None:
    m, e = exponent_of(unit * integers.LOGISTIC)
    made = integers.shift_gelu(torch.from_numpy(hidden), m, e)
    for row, got in zip(exact(hidden), made.tolist(), strict=True):
        powers = [power((abs(h) * m + 2**e // 2) // 2**e) for h in row]
        upper = [2**16 if h >= 0 else p for h, p in zip(row, powers, strict=True)]
        assert got == [h * (u * 2**15 // (p + 2**16)) for h, u, p in zip(row, upper, powers, strict=True)]
    assert int(made.abs().max()) <= integers.MOST_INPUT
    x = torch.from_numpy(hidden).double() * unit
    real = torch.nn.functional.gelu(x)
    assert ((made * unit * 2.0**-15 - real).abs() <= 0.035 + x.abs() * 2**-14).all()
    assert ((integers.straight_gelu(x) - made * unit * 2.0**-15).abs() <= 1e-4 + x.abs() * 2**-14).all()


@settings(deadline=None)
@given(rows(integers.MOST_RESIDUAL, width=33), st.sampled_from([1, 700, integers.MOST_OFFSET]))
def test_layer_norm(x: np.ndarray, epsilon: int) -> None:
    made = integers.normalised(torch.from_numpy(x), epsilon)
    for row, got in zip(exact(x), made.tolist(), strict=True):
        mean = (sum(row) + len(row) // 2) // len(row)
        d = [value - mean for value in row]
        squares = sum(value * value for value in d) + epsilon
        assert squares < LIMIT
        factor = 2**integers.NORM // math.isqrt(squares)
        assert got == [(value * factor) >> integers.NORM_SHIFT for value in d]
        assert all(abs(value) <= 1 << 29 for value in got)


def test_layer_norm_is_layer_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((64, 192), generator=generator, dtype=torch.float64) * 3 + 1
    step = 2.0**-12
    made = integers.normalised((x / step).round().long(), round(192 * 1e-6 / step**2)) * 192**0.5 * 2.0**-29
    wanted = torch.nn.functional.layer_norm(x, (192,), eps=1e-6)
    assert (made - wanted).abs().max() < 3e-4


@pytest.mark.parametrize("channels", [1, 33, integers.MOST_CHANNELS])
def test_the_widest_layer_norm_stays_within_int64(channels: int) -> None:
    """The largest sum of squares there is: half of the channels at either end."""
    x = torch.full((1, channels), integers.MOST_RESIDUAL)
    x[:, ::2] *= -1
    d = x - torch.div(x.sum() + channels // 2, channels, rounding_mode="floor")
    squares = sum(int(value) ** 2 for value in d[0])
    assert squares + integers.MOST_OFFSET < LIMIT
    made = integers.normalised(x, 1)
    assert made.abs().max() <= 1 << 29
    if channels > 1:
        assert abs(float(made.double().square().sum()) / 2.0**58 - 1) < 1e-3

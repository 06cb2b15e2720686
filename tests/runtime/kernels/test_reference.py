"""The numpy reference against slower, obvious forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels import reference
from runtime.kernels.packing import pack_quantizer


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_sums_are_exact(m: int, k: int, n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.integers(-128, 128, (m, k)).astype(np.int8)
    levels = generator.integers(-127, 128, (n, k)).astype(np.int8)
    slow = [[sum(int(x) * int(w) for x, w in zip(row, column, strict=True)) for column in levels] for row in a]
    np.testing.assert_array_equal(reference.accumulate(a, levels), np.array(slow, np.int32))


def test_the_largest_sum_a_vit_can_have_is_exact() -> None:
    a, levels = np.full((1, 4096), -128, np.int8), np.full((1, 4096), -127, np.int8)
    assert reference.accumulate(a, levels)[0, 0] == 4096 * 128 * 127


def test_gelu_is_the_exact_one_within_its_bound() -> None:
    x = np.linspace(-8, 8, 160001, dtype=np.float32)
    exact = [0.5 * float(v) * math.erfc(-float(v) / math.sqrt(2)) for v in x]
    assert np.abs(reference.gelu(x) - np.array(exact)).max() <= 1.3e-6


def test_gelu_far_out() -> None:
    x = np.array([1e4, 60000.0, -1e4, -60000.0, 0.0], np.float32)
    np.testing.assert_allclose(reference.gelu(x), [1e4, 60000, 0, 0, 0], rtol=2e-7, atol=1e-6)


FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(FLOATS, FLOATS, FLOATS, st.floats(2.0**-20, 8, width=32), st.integers(-128, 0), st.integers(0, 127))
def test_requantize_one_rounding_at_a_time(
    x: float, factor: float, shift: float, step: float, low: int, high: int
) -> None:
    """Product, difference and quotient each round once to float32; half to even; the bounds saturate."""
    y = np.float32(np.float32(x) * np.float32(factor)) - np.float32(shift)
    expected = min(high, max(low, round(Fraction(float(y / np.float32(step))))))
    quantizer = pack_quantizer(step, shift, (low, high))
    assert reference.requantize(np.array([x], np.float32), quantizer, np.array([factor], np.float32))[0] == expected
    plain = min(high, max(low, round(Fraction(float(np.float32(x) / np.float32(step))))))
    assert reference.requantize(np.array([x], np.float32), quantizer)[0] == plain


@settings(deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.floats(2.0**-20, 8, width=32))
def test_quantize_rounds_half_to_even_and_saturates(value: float, step: float) -> None:
    quotient = np.float32(value) / np.float32(step)
    expected = min(127, max(-128, round(Fraction(float(quotient)))))  # Fraction rounds half to even
    assert reference.quantize(np.array([value], np.float32), step)[0] == expected


def test_a_layer_by_hand() -> None:
    a, levels = np.array([[2, -3]], np.int8), np.array([[7, 1], [-7, 0], [1, 1]], np.int8)
    scale, bias = np.array([0.5, 0.25, 1.0], np.float32), np.array([0.0, 1.0, 0.5], np.float32)
    np.testing.assert_array_equal(reference.accumulate(a, levels), [[11, -14, -1]])
    np.testing.assert_array_equal(reference.linear(a, levels, scale, bias), np.array([[5.5, -2.5, -0.5]], np.float16))
    np.testing.assert_array_equal(reference.linear(a, levels, scale, bias, quantizer=pack_quantizer(1.0)), [[6, -2, 0]])


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([8, 96, 192, 256, 384, 768, 1024]), st.integers(0, 2**32 - 1), st.booleans())
def test_layernorm_is_the_textbook_one(k: int, seed: int, with_branch: bool) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((3, k)).astype(np.float16)
    branch = generator.standard_normal((3, k)).astype(np.float16) if with_branch else None
    gamma, beta = generator.uniform(0.5, 2, k).astype(np.float32), generator.standard_normal(k).astype(np.float32)
    total, q = reference.layernorm(x, branch, gamma, beta, 1e-6, 0.05)
    values = total.astype(np.float64)
    np.testing.assert_allclose(values, x.astype(float) + (0 if branch is None else branch.astype(float)), atol=4e-3)
    normal = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    exact = (normal * gamma + beta) / 0.05
    assert np.abs(q - np.clip(exact, -128, 127)).max() <= 0.5 + 1e-3


def test_quantize_takes_infinities() -> None:
    with np.errstate(over="ignore"):
        q = reference.quantize(np.array([np.inf, -np.inf, 3e38, -3e38], np.float32), 1e-3)
    np.testing.assert_array_equal(q, [127, -128, 127, -128])


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_float32_round_once_to_even(sign: int) -> None:
    sums = np.array([[sign * (2**24 + 1), sign * (2**24 + 3)]], np.int32)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    np.testing.assert_array_equal(reference.dequantize(sums, one, zero), [[sign * 2.0**24, sign * (2.0**24 + 4)]])

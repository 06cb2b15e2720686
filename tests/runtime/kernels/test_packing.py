"""INT4 weights keep their values through packing, and lie where csrc/linear.cuh looks for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import IntvitError
from runtime.kernels.packing import STEP, pack_int4, pack_int8, pack_quantizer, padded, unpack_int4

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=200)


@settings(deadline=None)
@given(hnp.arrays(np.int8, SHAPES, elements=st.integers(-8, 7)))
def test_int4_comes_back(levels: np.ndarray) -> None:
    n, k = levels.shape
    packed = pack_int4(levels)
    assert packed.dtype == np.uint8
    assert packed.shape == (n, padded(k) // 2)
    np.testing.assert_array_equal(unpack_int4(packed, k), levels)
    assert not unpack_int4(packed, padded(k))[:, k:].any()


@settings(deadline=None)
@given(hnp.arrays(np.int8, SHAPES, elements=st.integers(-8, 7)))
def test_a_word_holds_four_levels_and_the_four_sixteen_further(levels: np.ndarray) -> None:
    """Masked, and shifted and masked, as the kernel does it: 16 times the values, as int8."""
    n, k = levels.shape
    whole = np.zeros((n, padded(k)), np.int32)
    whole[:, :k] = levels
    packed = pack_int4(levels)
    words = packed.view("<u4")
    first = ((words << np.uint32(4)) & np.uint32(0xF0F0F0F0)).view(np.int8).reshape(n, -1, 16)
    second = (words & np.uint32(0xF0F0F0F0)).view(np.int8).reshape(n, -1, 16)
    operands = np.concatenate([first, second], axis=2).reshape(n, -1)
    np.testing.assert_array_equal(operands, 16 * whole)


@settings(deadline=None)
@given(hnp.arrays(np.int8, SHAPES, elements=st.integers(-127, 127)))
def test_int8_is_padded_with_zeros(levels: np.ndarray) -> None:
    n, k = levels.shape
    packed = pack_int8(levels)
    assert packed.shape == (n, padded(k))
    np.testing.assert_array_equal(packed[:, :k], levels)
    assert not packed[:, k:].any()


def test_padded() -> None:
    assert [padded(k) for k in (1, STEP, STEP + 1, 96)] == [STEP, STEP, 2 * STEP, 128]


@pytest.mark.parametrize(
    ("pack", "levels", "why"),
    [
        (pack_int4, np.full((1, 1), 8, np.int8), "levels are 8..8, not -8..7"),
        (pack_int4, np.full((1, 1), -9, np.int8), "levels are -9..-9"),
        (pack_int8, np.full((1, 1), -128, np.int8), "levels are -128..-128"),
        (pack_int4, np.zeros((1, 1), np.int32), "they are int32"),
        (pack_int4, np.zeros(4, np.int8), r"int8 \(4,\)"),
        (pack_int8, np.zeros((0, 4), np.int8), r"int8 \(0, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(pack: object, levels: np.ndarray, why: str) -> None:
    with pytest.raises(IntvitError, match=why):
        pack(levels)  # type: ignore[operator]


def test_a_quantizer_is_four_numbers() -> None:
    made = pack_quantizer(0.1, -0.4, (-8, 7))
    assert made.dtype == np.float32 and made.tolist() == np.float32([0.1, -0.4, -8, 7]).tolist()
    assert pack_quantizer(2.0).tolist() == [2, 0, -128, 127]


@pytest.mark.parametrize(
    ("step", "shift", "levels"),
    [
        (0.0, 0.0, (-128, 127)),
        (-1.0, 0.0, (-128, 127)),
        (float("nan"), 0.0, (-128, 127)),
        (2.0**-101, 0.0, (-128, 127)),
        (float("inf"), 0.0, (-128, 127)),
        (1.0, float("inf"), (-128, 127)),
        (1.0, 0.0, (-129, 127)),
        (1.0, 0.0, (0, 255)),
        (1.0, 0.0, (7, -8)),
    ],
)
def test_a_quantizer_out_of_range_is_refused(step: float, shift: float, levels: tuple[int, int]) -> None:
    with pytest.raises(IntvitError, match="no such quantizer"):
        pack_quantizer(step, shift, levels)

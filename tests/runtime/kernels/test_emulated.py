"""The CUDA sources themselves, run thread by thread on a CPU (emulator.h), against numpy.

This proves the index arithmetic, the fragments, the pipeline's waits and the epilogues, for the matrix instructions as
PTX ISA defines them. It says nothing about speed, and is no run on a GPU.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.kernel_shapes import every
from runtime.kernels import reference
from runtime.kernels.packing import pack_quantizer
from runtime.kernels.tiles import OUTPUTS, TILES, WIDTHS, Bits, Output, Tile
from tests.runtime.kernels.emulate import NEEDS_GXX, Output16, WrongKernel, aligned, launch, library, linear

pytestmark = NEEDS_GXX
QUANTIZER = pack_quantizer(0.07, 0.21, (-120, 119))  # kernels without a factor leave out the shift
QUICK = [(4, "128x128"), (8, "64x64")]
EDGES = [(1, 1, 16), (1, 64, 64), (70, 100, 96), (129, 65, 48), (65, 1000, 32), (197, 192, 208)]
BY_NAME = {tile.name: tile for tile in TILES}
# Each is a compilation of its own: two in the quick tests, the others in the slow ones.
EVERY_TILE = pytest.mark.parametrize(
    ("bits", "tile"),
    [
        pytest.param(bits, tile, marks=[] if (bits, tile) in QUICK else pytest.mark.slow)
        for bits in WIDTHS
        for tile in BY_NAME
    ],
)


def operands(bits: Bits, m: int, n: int, k: int) -> tuple[np.ndarray, ...]:
    """Random integers, and scales that put the outputs' spread near 4: both saturation and small values occur."""
    generator = np.random.default_rng(m * 7919 + n * 31 + k)
    top = 7 if bits == 4 else 127
    a = generator.integers(-128, 128, (m, k)).astype(np.int8)
    levels = generator.integers(-8 if bits == 4 else -top, top + 1, (n, k)).astype(np.int8)
    spread = 4 / (74 * top * 0.58 * np.sqrt(k))
    scale = (spread * generator.uniform(0.3, 2, n)).astype(np.float32)
    bias = generator.standard_normal(n).astype(np.float32)
    return a, levels, scale, bias, generator.uniform(0.3, 2, n).astype(np.float32)


def expected(output: Output, a: np.ndarray, levels: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
    """``vectors``: scale, bias, factor, quantizer."""
    if output == "i32":
        return reference.accumulate(a, levels)
    scale, bias, factor, quantizer = vectors
    return reference.linear(
        a,
        levels,
        scale,
        bias,
        with_gelu="gelu" in output,
        factor=factor if output.endswith("affine") else None,
        quantizer=quantizer if output.startswith("i8") else None,
    )


def check(bits: Bits, output: Output, tile: Tile, m: int, n: int, k: int, eager: bool) -> None:
    arrays = (*operands(bits, m, n, k), QUANTIZER)
    np.testing.assert_array_equal(linear(bits, output, tile, *arrays, eager=eager), expected(output, *arrays))


@EVERY_TILE
@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
def test_every_tile_at_every_edge(bits: Bits, tile: str, eager: bool) -> None:
    """m, n and k short of a tile, past one, and odd; copies that land late and copies that land at once."""
    for turn, (m, n, k) in enumerate(EDGES):
        check(bits, OUTPUTS[turn % len(OUTPUTS)], BY_NAME[tile], m, n, k, eager)


@EVERY_TILE
def test_every_output_of_every_tile(bits: Bits, tile: str) -> None:
    for output in OUTPUTS:
        check(bits, output, BY_NAME[tile], 70, 100, 96, False)
        check(bits, output, BY_NAME[tile], 33, 128, 64, False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_layer_of_the_networks(bits: Bits) -> None:
    """All sums of one image, of 197 tokens where it has more, and, on 65 of them, the int8 outputs."""
    for turn, shape in enumerate(every()):
        tile = TILES[turn % len(TILES)]
        check(bits, "i32", tile, min(shape.tokens, 197), shape.n, shape.k, False)
        check(bits, "i8_gelu_affine", tile, 65, shape.n, shape.k, False)


def floats(low: float, high: float) -> st.SearchStrategy[np.float32]:
    return st.floats(low, high, width=32).map(np.float32)


@settings(deadline=None)
@given(
    st.sampled_from(["i8", "i8_gelu", "i8_gelu_affine"]),
    st.lists(st.tuples(*[floats(-(2.0**20), 2.0**20)] * 3), min_size=1, max_size=40),
    floats(2.0**-40, 2.0**40),
    floats(-(2.0**20), 2.0**20),
    st.tuples(st.integers(-128, 0), st.integers(0, 127)),
    st.integers(0, 2**16),
)
def test_any_numbers_behind_the_sums(
    output: Output,
    columns: list[tuple[np.float32, np.float32, np.float32]],
    step: np.float32,
    shift: np.float32,
    ends: tuple[int, int],
    seed: int,
) -> None:
    """Scale, bias, factor, step and shift of any size and sign, any bounds: numpy's int8, bit by bit."""
    generator = np.random.default_rng(seed)
    a, levels = (generator.integers(-8, 8, (rows, 16)).astype(np.int8) for rows in (3, len(columns)))
    scale, bias, factor = np.array(columns, np.float32).T.copy()
    arrays = (a, levels, scale, bias, factor, pack_quantizer(float(step), float(shift), ends))
    np.testing.assert_array_equal(linear(8, output, BY_NAME["64x64"], *arrays), expected(output, *arrays))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_sums(bits: Bits) -> None:
    """-128 times the level of largest magnitude: 16 times too large in INT4's product, and still in int32."""
    top = -8 if bits == 4 else 127
    a, levels = np.full((3, 3072), -128, np.int8), np.full((5, 3072), top, np.int8)
    one = np.ones(5, np.float32)
    y = linear(bits, "i32", BY_NAME["128x128" if bits == 4 else "64x64"], a, levels, one, one, one, QUANTIZER)
    assert (y == -128 * top * 3072).all()


def test_division_is_ieee_division() -> None:
    """Also where the hardware's reciprocal, which divide() starts from, is one unit off."""
    code = library("tokens")
    generator = np.random.default_rng(5)
    count = 400_000
    a = (generator.standard_normal(count) * 2.0 ** generator.integers(-30, 30, count)).astype(np.float32)
    b = (generator.uniform(1, 2, count) * 2.0 ** generator.integers(-20, 20, count)).astype(np.float32)
    halves = generator.integers(-300, 300, count // 4).astype(np.float32) / 2
    a[: count // 4] = halves * b[: count // 4]  # quotients at and beside the ties of quantize
    q = np.empty_like(a)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, q)]
    code.quotients(*pointers, count)
    np.testing.assert_array_equal(q, a / b)


@pytest.mark.parametrize("with_branch", [False, True])
@pytest.mark.parametrize("k", [8, 96, 192, 384, 768, 1000])
def test_layernorm(k: int, with_branch: bool) -> None:
    generator = np.random.default_rng(k)
    m, step, epsilon = 7, 0.03, 1e-6
    x, branch = (generator.standard_normal((m, k)).astype(np.float16) for _ in range(2))
    gamma, beta = (generator.standard_normal(k).astype(np.float32) for _ in range(2))
    total, q = reference.layernorm(x, branch if with_branch else None, gamma, beta, epsilon, step)
    y, out = Output16((m, k), np.float16), Output16((m, k), np.int8)
    constants = aligned(np.array([step, epsilon], np.float32))
    branches, totals = (aligned(branch), y) if with_branch else (0, 0)
    arguments = [aligned(x), branches, aligned(gamma), aligned(beta), constants, m, k, totals, out]
    launch(library("tokens"), "intvit_layernorm_i8", arguments, (2, 1), 128, 0, False)
    np.testing.assert_array_equal(out.array, q)
    if with_branch:
        np.testing.assert_array_equal(y.array, total)


def test_quantize() -> None:
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((5, 208)) * 6).astype(np.float16)
    x[0, :6] = [np.inf, -np.inf, 60000, -60000, 0.125, -0.375]  # with step 0.25 the last two are ties
    out, step = Output16(x.shape, np.int8), aligned(np.array([0.25], np.float32))
    launch(library("tokens"), "intvit_quantize_i8", [aligned(x), step, x.size, out], (2, 1), 128, 0, False)
    np.testing.assert_array_equal(out.array, reference.quantize(x.astype(np.float32), 0.25))
    assert list(out.array[0, :6]) == [127, -128, 127, -128, 0, -2]


WRONG = {
    "reads a stage before it has arrived": ("copy_wait<T::kStages - 2>", "copy_wait<T::kStages - 1>"),
    "a bank conflict": ("chunk ^ ((row >> 1) & 3)", "chunk ^ (row & 0)"),
    "writes a stage before everyone has read it": ("block_sync();", ";"),
    "takes the halves of a byte the wrong way round": ("(raw[t] << 4) &", "raw[t] &"),
    "a copy from outside the operands": ("row0 + row < m && at < k", "at < k"),
    "a copy to outside shared memory": ("constexpr unsigned kStageBytes = ", "constexpr unsigned kStageBytes = 64 + "),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_emulator_sees_a_wrong_kernel(what: str) -> None:
    """So the tests above can fail."""
    a, levels, *vectors = operands(4, 70, 100, 336)
    try:
        y = linear(4, "i32", TILES[-1], a, levels, *vectors, QUANTIZER, eager="writes" in what, change=WRONG[what])
    except WrongKernel as error:
        assert what in str(error)
    else:
        assert not what.startswith("a ")
        assert (y != reference.accumulate(a, levels)).any()

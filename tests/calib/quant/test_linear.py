"""A quantized layer computes what an integer GEMM with a float32 epilogue computes, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calib.quant.grid import weight_grid
from calib.quant.linear import QuantLinear, QuantPatchConv, patches, per_weight


def drawn(rows: int, columns: int, bits: int = 8, act_bits: int = 8, seed: int = 0, bias: bool = True) -> QuantLinear:
    """A layer with all of its numbers set at random."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    layer = QuantLinear(weight, torch.randn(rows, generator=generator) if bias else None, bits, act_bits)
    grid = weight_grid(bits)
    levels = torch.randint(grid.low, grid.high + 1, weight.shape, generator=generator)
    layer.set_weights(levels, torch.rand(rows, generator=generator) * 0.1 + 1e-3)
    if layer.in_quant is not None:
        zero_point = int(torch.randint(-(2 ** (act_bits - 1)), 2 ** (act_bits - 1), (), generator=generator))
        layer.in_quant.set(float(torch.rand((), generator=generator)) * 0.1 + 1e-3, zero_point)
    layer.quantized = True
    return layer


def by_integers(layer: QuantLinear, x: Tensor) -> np.ndarray:
    """Quantize in float32, multiply and add in int64, then ``total * (s_x * s_w) + b`` in float32."""
    assert layer.in_quant is not None
    half = 2 ** (layer.act_bits - 1)
    scale, zero = np.float32(layer.in_quant.scale), int(layer.in_quant.zero_point)
    integers = np.clip(np.rint(x.numpy() / scale).astype(np.int64) + zero, -half, half - 1)
    total = (integers - zero) @ layer.weight_q.numpy().astype(np.int64).T
    assert np.abs(total).max() < 2**24
    return total.astype(np.float32) * (scale * layer.weight_scale.numpy()) + layer.bias.numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 300), st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000), st.booleans()
)
def test_equals_integer_arithmetic_to_the_bit(
    rows: int, columns: int, bits: int, act_bits: int, seed: int, bias: bool
) -> None:
    layer = drawn(rows, columns, bits, act_bits, seed, bias)
    x = 3 * torch.randn(5, columns, generator=torch.Generator().manual_seed(seed + 1))
    out = layer(x)
    assert out.dtype == torch.float32
    assert np.array_equal(out.numpy(), by_integers(layer, x))


def test_the_largest_sums_are_still_exact() -> None:
    layer = drawn(3, 1032)
    assert layer.in_quant is not None
    layer.in_quant.set(0.01, 0)
    layer.weight_q.fill_(127)
    layer.weight_q[0, 0] = 126
    x = torch.full((2, 1032), -1e9)
    x[1, 1] = 0.01
    assert np.array_equal(layer(x).numpy(), by_integers(layer, x))
    assert float(layer(x)[0, 1]) == pytest.approx(-128 * 127 * 1032 * 0.01 * float(layer.weight_scale[1]), rel=0.05)


def test_leading_dimensions_are_kept() -> None:
    layer = drawn(6, 8)
    x = torch.randn(2, 3, 4, 8)
    assert layer(x).shape == (2, 3, 4, 6)
    assert torch.equal(layer(x).reshape(-1, 6), layer(x.reshape(-1, 8)))


@pytest.mark.parametrize("quantized", [False, True])
def test_premul_is_applied_to_the_input_in_both_forms(quantized: bool) -> None:
    layer = drawn(6, 8)
    layer.quantized = quantized
    x = torch.randn(5, 8)
    factors = torch.rand(8) + 0.5
    plain = layer(x * factors)
    assert not torch.equal(plain, layer(x))
    layer.premul = factors
    assert torch.equal(layer.scaled(x), x * factors)
    assert torch.equal(layer(x), plain)
    assert torch.equal(layer.integer_output(x * factors), by_or_layer(layer, x))
    assert "premul" in layer.state_dict()


def by_or_layer(layer: QuantLinear, x: Tensor) -> Tensor:
    before, layer.quantized = layer.quantized, True
    out = layer(x)
    layer.quantized = before
    return out


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weight_only_layers_leave_the_input_alone(bits: int) -> None:
    layer = drawn(6, 8, bits, act_bits=16)
    assert layer.in_quant is None
    x = torch.randn(5, 8)
    dequantized = layer.weight_q.float() * layer.weight_scale[:, None]
    assert torch.equal(layer(x), F.linear(x, dequantized, layer.bias))


def test_float_form_is_the_linear_layer() -> None:
    plain = nn.Linear(8, 6)
    layer = QuantLinear(plain.weight, plain.bias, 4, 4)
    x = torch.randn(5, 8)
    assert torch.equal(layer(x), plain(x))
    assert (layer.in_features, layer.out_features) == (8, 6)
    assert torch.equal(QuantLinear(plain.weight, None, 4, 4).bias, torch.zeros(6))


def test_the_layer_has_its_own_copy() -> None:
    plain = nn.Linear(8, 6)
    layer = QuantLinear(plain.weight, plain.bias, 8, 8)
    layer.weight.zero_()
    layer.bias.zero_()
    assert plain.weight.abs().sum() > 0 and plain.bias.abs().sum() > 0
    assert not list(layer.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [(4, 4), (2, 4)])
def test_patch_embedding_equals_the_convolution(kernel: tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(3, 10, kernel, kernel, bias=bias)
    layer = QuantPatchConv(conv, 8, 8)
    x = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        expected = conv(x)
    assert layer(x).shape == expected.shape
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_quantized_patch_embedding_is_the_quantized_layer_on_patches() -> None:
    conv = nn.Conv2d(3, 10, 4, 4)
    layer = QuantPatchConv(conv, 8, 8)
    assert layer.in_quant is not None
    layer.in_quant.set(3 / 127)
    scale = layer.weight.abs().amax(1) / 127
    layer.set_weights((layer.weight / scale[:, None]).round(), scale)
    layer.quantized = True
    x = torch.randn(2, 3, 8, 12)
    flat = by_integers(layer, patches(x, (4, 4)))
    assert np.array_equal(layer(x).flatten(2).transpose(1, 2).numpy(), flat)
    with torch.no_grad():
        assert float((layer(x) - conv(x)).abs().max()) < 0.2


def test_patches_are_channel_first_then_row_then_column() -> None:
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    found = patches(x, (2, 3))
    assert found.shape == (2, 4, 18)
    for image in range(2):
        for index, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            piece = x[image, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
            assert torch.equal(found[image, index], piece.flatten())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 16, 32]), st.integers(2, 8), st.integers(0, 1000))
def test_every_weight_of_a_group_is_its_level_times_its_scale(
    rows: int, groups: int, size: int, bits: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid, columns = weight_grid(bits), groups * size
    layer = QuantLinear(torch.zeros(rows, columns), torch.randn(rows, generator=generator), bits, 16, size)
    levels = torch.randint(grid.low, grid.high + 1, (rows, columns), generator=generator)
    layer.set_weights(levels, torch.rand(rows, groups, generator=generator) + 1e-3)
    layer.quantized = True
    slow = np.zeros((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            slow[i, j] = np.float32(levels[i, j]) * layer.weight_scale[i, j // size].numpy()
    assert np.array_equal((layer.weight_q * per_weight(layer.weight_scale, columns)).numpy(), slow)
    x = torch.randn(3, columns, generator=generator)
    assert torch.equal(layer(x), F.linear(x, torch.from_numpy(slow), layer.bias))


def test_one_group_is_one_scale_a_channel() -> None:
    plain = drawn(6, 32, 4, act_bits=16)
    grouped = QuantLinear(plain.weight, plain.bias, 4, 16, group=32)
    grouped.set_weights(plain.weight_q, plain.weight_scale[:, None])
    grouped.quantized = True
    x = torch.randn(5, 32)
    assert torch.equal(grouped(x), plain(x))


@pytest.mark.parametrize(("columns", "act_bits"), [(24, 16), (32, 8)])
def test_groups_need_whole_groups_and_a_float_input(columns: int, act_bits: int) -> None:
    with pytest.raises(ValueError, match=f"no groups of 16 in {columns} channels with {act_bits}-bit"):
        QuantLinear(torch.zeros(4, columns), None, 4, act_bits, group=16)

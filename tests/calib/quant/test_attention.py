"""Attention products equal integer arithmetic to the bit, and the rewritten attention is timm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.network import Network
from calib.quant.attention import OPERANDS, QuantAttention, QuantProduct, position_bias
from calib.quant.surgery import prepare, set_quantized
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, difference, pictures, tiny_swin, tiny_vit


def integers(values: np.ndarray, scale: Tensor) -> np.ndarray:
    """Quantized in float32 with zero point 0, as int64."""
    return np.clip(np.rint(values / np.float32(scale)), -128, 127).astype(np.int64)


def by_integers(product: QuantProduct, left: Tensor, right: Tensor) -> np.ndarray:
    """Quantize in float32, multiply and add in int64, then the float32 epilogue."""
    a, b = left.numpy(), right.numpy()
    peak = a.max(-1, keepdims=True) if product.by_row else None
    a = a if peak is None else a / peak
    total = integers(a, product.left.scale) @ integers(b, product.right.scale)
    assert np.abs(total).max(initial=0) < 2**24
    out = total.astype(np.float32) * (np.float32(product.left.scale) * np.float32(product.right.scale))
    return out if peak is None else out * peak


SIZE = st.integers(1, 40)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), SIZE, SIZE, SIZE, st.booleans(), st.integers(0, 1000))
def test_a_product_equals_integer_arithmetic_to_the_bit(
    batch: int, heads: int, rows: int, inner: int, columns: int, by_row: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = 3 * torch.randn(batch, heads, rows, inner, generator=generator)
    left = left.softmax(-1) if by_row else left
    right = torch.randn(batch, heads, inner, columns, generator=generator)
    product = QuantProduct(8, by_row)
    if not by_row:
        product.left.set(float(torch.rand((), generator=generator)) * 0.1 + 1e-3)
    product.right.set(float(torch.rand((), generator=generator)) * 0.05 + 1e-3)
    assert torch.equal(product(left, right), left @ right)  # float until it is switched
    product.quantized = True
    out = product(left, right)
    assert out.dtype == torch.float32 and out.shape == (batch, heads, rows, columns)
    assert np.array_equal(out.numpy(), by_integers(product, left, right))


def test_the_largest_sums_are_still_exact() -> None:
    product = QuantProduct(8, by_row=True)
    product.right.set(1.0)
    product.quantized = True
    flat, values = torch.full((1, 1, 2, 1032), 1 / 1032), torch.full((1, 1, 1032, 3), -128.0)
    values[..., 5, 1] = -127
    assert np.array_equal(product(flat, values).numpy(), by_integers(product, flat, values))
    assert float(product.left(torch.ones(1))) * 1032 * 128 < 2**24


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.floats(0.1, 30), st.integers(0, 1000))
def test_every_row_of_a_softmax_uses_all_levels_and_none_saturates(tokens: int, sharpness: float, seed: int) -> None:
    scores = sharpness * torch.randn(4, tokens, generator=torch.Generator().manual_seed(seed))
    product = QuantProduct(8, by_row=True)
    left, peak = product.rows(scores.softmax(-1))
    assert peak is not None and float(left.max()) == 1.0
    level = product.left(left)
    assert (level.amax(-1) == 127).all() and (level >= 0).all()
    assert float((level * product.left.scale * peak - scores.softmax(-1)).abs().max()) <= float(peak.max()) / 253


def attention_of(model: Any) -> tuple[QuantAttention, Network]:
    """The second block's attention, prepared; and timm's own."""
    student = prepare(model, parse("w8a8+attn8"))
    set_quantized(student, False)
    old, new = (next(m for n, m in net.named_modules() if n.endswith("blocks.1.attn")) for net in (model, student))
    assert isinstance(new, QuantAttention)
    return new, old


@torch.no_grad()
@pytest.mark.parametrize("windows", [0, 1, 4], ids=["vit", "swin", "swin, masked"])
def test_attention_is_timms_in_float_and_its_definition_in_integers(windows: int) -> None:
    new, old = attention_of(tiny_swin() if windows else tiny_vit())
    generator = torch.Generator().manual_seed(0)
    rows, tokens, width = 8, 49 if windows else 17, new.qkv.in_features
    x = torch.randn(rows, tokens, width, generator=generator)
    mask = -100.0 * (torch.rand(windows, tokens, tokens, generator=generator) < 0.3) if windows > 1 else None
    keywords = {} if not windows else {"mask": mask}
    assert difference(old(x, **keywords), new(x, **keywords)) < 1e-5

    heads, dim = new.num_heads, width // new.num_heads
    query, key, value = new.qkv(x).reshape(rows, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
    for quantizer, values in ((new.qk.left, query), (new.qk.right, key), (new.pv.right, value)):
        quantizer.set(float(values.abs().max()) / 127)
    new.qk.quantized = new.pv.quantized = True
    scores = torch.from_numpy(by_integers(new.qk, query, key.transpose(-2, -1)))
    bias = position_bias(old)
    if bias is not None:
        assert torch.equal(bias, position_bias(new))  # type: ignore[arg-type]
        scores = scores + bias
    if mask is not None:
        scores = scores + mask[torch.arange(rows) % windows, None]
    mixed = torch.from_numpy(by_integers(new.pv, scores.softmax(-1), value))
    wanted = new.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
    assert torch.equal(new(x, **keywords), wanted)
    assert difference(old(x, **keywords), wanted) < 0.05  # and the integers stand for what the float one computes


@torch.no_grad()
@pytest.mark.parametrize("variant", [*VARIANTS, "swin"])
def test_prepared_networks_keep_their_logits(variant: str) -> None:
    swin = variant == "swin"
    model = tiny_swin() if swin else tiny_vit(**VARIANTS[variant])
    images = pictures(3, SWIN_SIDE if swin else VIT_SIDE)
    student = prepare(model, parse("w8a8+attn8"))
    assert difference(model(images), student(images)) < 1e-4
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_operands_have_names_of_their_own() -> None:
    names = [name for pair in OPERANDS.values() for name in pair]
    assert names == ["query", "key", "softmax", "value"]
    attention, _ = attention_of(tiny_vit())
    assert all(isinstance(getattr(attention, name), QuantProduct) for name in OPERANDS)

"""A.V as the hooks read it is A.V computed by hand, and no hook stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calib.quant.families import block_names, is_swin
from calib.quant.surgery import prepare
from calib.scheme import parse
from calib.taps import AttentionOutputs
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit


def by_hand(attn: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + position bias + mask) v, one head and one row of the batch at a time."""
    rows, tokens, _ = x.shape
    qkv = (x @ attn.qkv.weight.T + attn.qkv.bias).double()
    width = qkv.shape[-1] // 3
    d = width // attn.num_heads
    out = torch.zeros(rows, attn.num_heads, tokens, d, dtype=torch.float64)
    for row in range(rows):
        for head in range(attn.num_heads):
            q, k, v = (qkv[row, :, p * width + head * d : p * width + (head + 1) * d] for p in range(3))
            scores = q @ k.T / d**0.5
            if hasattr(attn, "relative_position_bias_table"):
                bias = attn.relative_position_bias_table[attn.relative_position_index.flatten(), head]
                scores = scores + bias.reshape(tokens, tokens)
            if mask is not None:
                scores = scores + mask[row % mask.shape[0]]
            out[row, head] = scores.softmax(-1) @ v
    return out


@pytest.mark.parametrize("model", [tiny_vit(reg_tokens=2), tiny_swin()], ids=["vit", "swin"])
@torch.no_grad()
def test_equals_attention_by_hand(model: Any) -> None:
    seen: list[tuple[Any, Tensor, Tensor | None]] = []
    for name in block_names(model):
        model.get_submodule(f"{name}.attn").register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((module, args[0], kwargs.get("mask"))), with_kwargs=True
        )
    with AttentionOutputs(model) as taps:
        model(pictures(2, SWIN_SIDE if is_swin(model) else VIT_SIDE))
    assert len(taps.values) == len(seen) == len(block_names(model))
    assert not is_swin(model) or any(mask is not None for _, _, mask in seen)
    for value, (attn, x, mask) in zip(taps.values, seen, strict=True):
        expected = by_hand(attn, x, mask)
        assert value.shape == expected.shape
        assert float((value - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_shapes_and_prefix_tokens() -> None:
    with AttentionOutputs(tiny_vit(reg_tokens=2)) as taps:
        taps._model(pictures(3, VIT_SIDE))
    assert [tuple(value.shape) for value in taps.values] == [(3, 2, 1 + 2 + 16, 16)] * 2
    with AttentionOutputs(tiny_swin()) as taps:
        taps._model(pictures(3, SWIN_SIDE))
    assert [tuple(value.shape) for value in taps.values] == [(3 * 4, 2, 49, 8)] * 2 + [(3, 4, 49, 8)] * 2


def test_each_pass_starts_anew() -> None:
    model = tiny_vit()
    with AttentionOutputs(model) as taps:
        model(pictures(3, VIT_SIDE))
        model(pictures(1, VIT_SIDE))
        assert [len(value) for value in taps.values] == [1, 1]


def test_values_carry_gradients() -> None:
    model, images = tiny_vit(), pictures(1, VIT_SIDE).requires_grad_(True)
    with AttentionOutputs(model) as taps:
        model(images)
    (gradient,) = torch.autograd.grad(taps.values[1].square().sum(), images)
    assert float(gradient.abs().min()) >= 0 and float(gradient.abs().max()) > 0


@torch.no_grad()
def test_a_prepared_network_can_be_read_too() -> None:
    model, images = tiny_vit(), pictures(2, VIT_SIDE)
    student = prepare(model, parse("w8a8"))
    with AttentionOutputs(model) as ours, AttentionOutputs(student) as theirs:
        model(images)
        student(images)
    for one, two in zip(ours.values, theirs.values, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("model", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
def test_hooks_are_gone_afterwards_also_after_an_exception(model: Any) -> None:
    with AttentionOutputs(model):
        assert hooks_of(model) == len(block_names(model)) + 1
    assert hooks_of(model) == 0
    with pytest.raises(KeyboardInterrupt), AttentionOutputs(model):
        raise KeyboardInterrupt
    assert hooks_of(model) == 0

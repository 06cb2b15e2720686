"""What the hooks read is attention computed by hand, and no hook stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calib.quant.families import block_names, is_swin
from calib.quant.surgery import prepare
from calib.scheme import parse
from calib.taps import AttentionTaps, reading
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, pictures, tiny_swin, tiny_vit

NO_CLASS_TOKEN = {"global_pool": "avg", "class_token": False}


class ByHand:
    """softmax(q k^T / sqrt(d) + position bias + mask) v, one head and one row of the batch at a time, in float64."""

    def __init__(self, attn: Any, x: Tensor, mask: Tensor | None) -> None:
        rows, tokens, _ = x.shape
        bias = 0.0 if attn.qkv.bias is None else attn.qkv.bias
        qkv = (x @ attn.qkv.weight.T + bias).double()
        width = qkv.shape[-1] // 3
        d = width // attn.num_heads
        self.values, self.queries, self.keys = (
            torch.zeros(rows, attn.num_heads, tokens, d, dtype=torch.float64) for _ in range(3)
        )
        self.map = torch.zeros(rows, attn.num_heads, tokens, tokens, dtype=torch.float64)
        for row in range(rows):
            for head in range(attn.num_heads):
                q, k, v = (qkv[row, :, p * width + head * d : p * width + (head + 1) * d] for p in range(3))
                scores = q @ k.T / d**0.5
                if hasattr(attn, "relative_position_bias_table"):
                    table = attn.relative_position_bias_table[attn.relative_position_index.flatten(), head]
                    scores = scores + table.reshape(tokens, tokens)
                if mask is not None:
                    scores = scores + mask[row % mask.shape[0]]
                self.queries[row, head], self.keys[row, head] = q, k
                self.map[row, head] = scores.softmax(-1)
                self.values[row, head] = self.map[row, head] @ v


@torch.no_grad()
def observed(model: Any, count: int = 2) -> tuple[AttentionTaps, list[ByHand], list[Tensor | None]]:
    """One forward pass: what the taps saw of it, the same by hand, and the masks."""
    seen: list[tuple[Any, Tensor, Tensor | None]] = []
    hooks = [
        model.get_submodule(f"{name}.attn").register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((module, args[0], kwargs.get("mask"))), with_kwargs=True
        )
        for name in block_names(model)
    ]
    with AttentionTaps(model, ("values", "queries")) as taps:
        model(pictures(count, SWIN_SIDE if is_swin(model) else VIT_SIDE))
    for hook in hooks:
        hook.remove()
    return taps, [ByHand(*call) for call in seen], [mask for _, _, mask in seen]


def close(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and float((one - two).abs().max()) < 1e-5 * float(two.abs().max())


@pytest.mark.parametrize(
    "model", [tiny_vit(reg_tokens=2), tiny_vit(qkv_bias=False), tiny_swin()], ids=["vit", "no_bias", "swin"]
)
def test_equals_attention_by_hand(model: Any) -> None:
    taps, slow, masks = observed(model)
    assert len(taps.values) == len(taps.queries) == len(taps.keys) == len(slow) == len(block_names(model))
    assert not is_swin(model) or any(mask is not None for mask in masks)
    for value, query, key, expected in zip(taps.values, taps.queries, taps.keys, slow, strict=True):
        assert close(value, expected.values) and close(query, expected.queries) and close(key, expected.keys)


@pytest.mark.parametrize("variant", ["plain", "registers", "no_embed_class", "avg_fc_norm", "no_qkv_bias"])
def test_a_profile_is_the_class_tokens_row(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    taps, slow, _ = observed(model)
    for block, expected in enumerate(slow):
        profile = taps.profile(block)
        assert profile.shape == (2, 2, 16)
        assert close(profile, expected.map[:, :, 0, model.num_prefix_tokens :])
        assert (profile.sum(-1) < 1).all()  # the class token keeps a share for the prefix


@pytest.mark.parametrize("registers", [0, 3])
def test_without_a_class_token_a_profile_is_the_mean_row(registers: int) -> None:
    taps, slow, _ = observed(tiny_vit(**NO_CLASS_TOKEN, reg_tokens=registers))
    for block, expected in enumerate(slow):
        assert close(taps.profile(block), expected.map.mean(2)[..., registers:])


def test_a_profile_of_swin_is_the_mean_row_with_position_bias_and_mask() -> None:
    taps, slow, masks = observed(tiny_swin())
    assert [mask is not None for mask in masks] == [False, True, False, False]
    for block, expected in enumerate(slow):
        assert close(taps.profile(block), expected.map.mean(2))
        assert torch.allclose(taps.profile(block).sum(-1), torch.ones(()), atol=1e-5)
    masked = taps.profile(1)
    taps.masks[1] = None
    assert not torch.allclose(taps.profile(1), masked, atol=1e-3)
    taps.attentions[0].relative_position_bias_table.zero_()
    assert not close(taps.profile(0), slow[0].map.mean(2))


def test_a_profile_is_float32_under_autocast_float64_where_the_network_is_and_differentiable() -> None:
    model, images = tiny_vit(), pictures(1, VIT_SIDE).requires_grad_(True)
    with AttentionTaps(model, ("queries",)) as taps, torch.autocast("cpu", torch.bfloat16):
        model(images)
        assert taps.queries[1].dtype == torch.bfloat16 and taps.profile(1).dtype == torch.float32
    (gradient,) = torch.autograd.grad(taps.profile(1).square().sum(), images)
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0
    with AttentionTaps(model.double(), ("queries",)) as taps:
        model(images.double())
    assert taps.profile(1).dtype == torch.float64


def test_shapes_and_prefix_tokens() -> None:
    with AttentionTaps(tiny_vit(reg_tokens=2)) as taps:
        taps._model(pictures(3, VIT_SIDE))
    assert [tuple(value.shape) for value in taps.values] == [(3, 2, 1 + 2 + 16, 16)] * 2
    assert taps.prefix_tokens == 3
    with AttentionTaps(tiny_swin()) as taps:
        taps._model(pictures(3, SWIN_SIDE))
    assert [tuple(value.shape) for value in taps.values] == [(3 * 4, 2, 49, 8)] * 2 + [(3, 4, 49, 8)] * 2
    assert taps.prefix_tokens == 0


def test_each_pass_starts_anew() -> None:
    model = tiny_swin()
    with AttentionTaps(model, ("values", "queries")) as taps:
        model(pictures(3, SWIN_SIDE))
        model(pictures(1, SWIN_SIDE))
        for kept in (taps.values, taps.queries, taps.keys):
            assert [len(value) for value in kept] == [4, 4, 1, 1]
        assert len(taps.masks) == 4


@pytest.mark.parametrize("model", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
def test_only_what_is_wanted_is_kept(model: Any) -> None:
    images = pictures(1, SWIN_SIDE if is_swin(model) else VIT_SIDE)
    with AttentionTaps(model) as taps:
        model(images)
    assert taps.values and not (taps.queries or taps.keys or taps.masks)
    with AttentionTaps(model, ["queries"]) as taps:
        model(images)
    assert taps.queries and taps.keys and not taps.values
    with AttentionTaps(model, []) as taps:
        model(images)
    assert not (taps.queries or taps.keys or taps.values)


def test_what_is_read_carries_gradients() -> None:
    model, images = tiny_vit(), pictures(1, VIT_SIDE).requires_grad_(True)
    with AttentionTaps(model, ("values", "queries")) as taps:
        model(images)
    for read in (taps.values[1], taps.queries[1], taps.keys[1]):
        (gradient,) = torch.autograd.grad(read.square().sum(), images, retain_graph=True)
        assert float(gradient.abs().max()) > 0


@torch.no_grad()
def test_a_prepared_network_can_be_read_too() -> None:
    model, images = tiny_vit(), pictures(2, VIT_SIDE)
    student = prepare(model, parse("w8a8"))
    with AttentionTaps(model) as ours, AttentionTaps(student) as theirs:
        model(images)
        student(images)
    for one, two in zip(ours.values, theirs.values, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_every_pass_of_every_module_is_read_by_its_name_and_no_longer_than_open() -> None:
    model, seen = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), []
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    parts = {"first": model[0], "second": model[1]}
    with reading(parts, lambda name, read, out: seen.append((name, read, out))):
        made = model(x)
        model(x)
    model(x)
    assert [name for name, _, _ in seen] == ["first", "second"] * 2
    assert seen[0][1] is x and seen[1][1] is seen[0][2] and seen[1][2] is made
    with pytest.raises(KeyboardInterrupt), reading(parts, lambda *_: None):
        raise KeyboardInterrupt
    assert hooks_of(model) == 0


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("model", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
def test_hooks_are_gone_afterwards_also_after_an_exception(model: Any) -> None:
    with AttentionTaps(model):
        assert hooks_of(model) == len(block_names(model)) + 1
    assert hooks_of(model) == 0
    with pytest.raises(KeyboardInterrupt), AttentionTaps(model, ("values", "queries")):
        assert hooks_of(model) > len(block_names(model)) + 1
        raise KeyboardInterrupt
    assert hooks_of(model) == 0

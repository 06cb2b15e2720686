"""Copies to synthesise with: one set of weights, hooks apart, the caller's network as it was; measured memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from calib.quant.families import block_names
from calib.synthesis import twin
from calib.synthesis.twin import (
    CPU_BATCH,
    available_cores,
    fitting_batch,
    forward,
    half_size,
    kept_bytes,
    twins,
)
from calib.taps import AttentionTaps
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, difference, pictures, spec_of, sqnr_db, tiny_swin, tiny_vit


def fast_bf16(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(twin, "has_fast_bf16", lambda kind: fast)


def test_copies_are_frozen_and_share_one_set_of_weights() -> None:
    model = tiny_vit().train().requires_grad_(True)
    copies = twins(model, 3, "cpu")
    assert len(copies) == 3 and len({id(module) for copy in copies for module in copy.modules()}) == 3 * len(
        list(model.modules())
    )
    for copy in copies:
        assert not any(module.training for module in copy.modules())
        assert not any(parameter.requires_grad for parameter in copy.parameters())
        for mine, first, callers in zip(copy.parameters(), copies[0].parameters(), model.parameters(), strict=True):
            assert mine.data_ptr() == first.data_ptr() != callers.data_ptr()


def test_buffers_are_shared_too() -> None:
    one, two = twins(tiny_swin(), 2, "cpu")
    shared = dict(one.named_buffers())
    assert shared and all(shared[name].data_ptr() == tensor.data_ptr() for name, tensor in two.named_buffers())


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("build", [tiny_vit, tiny_swin])
def test_the_callers_network_stays_as_it_was(build: Any, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_bf16(monkeypatch, fast)
    model = build().train().requires_grad_(True)
    attentions = [model.get_submodule(f"{name}.attn") for name in block_names(model)]
    for attention in attentions:
        attention.fused_attn = True
    for copy in twins(model, 2, "cpu"):
        assert not any(copy.get_submodule(f"{name}.attn").fused_attn for name in block_names(copy))
    assert all(attention.fused_attn for attention in attentions)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_bfloat16_is_for_linear_and_convolution_layers_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, kind in ((True, torch.bfloat16), (False, torch.float32)):
        fast_bf16(monkeypatch, fast)
        (copy,) = twins(tiny_vit(), 1, "cpu")
        for module in copy.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert {parameter.dtype for parameter in module.parameters()} == {kind}
            elif isinstance(module, nn.LayerNorm):
                assert module.weight.dtype == torch.float32
        assert copy.pos_embed.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_vit, tiny_swin])
def test_a_copy_computes_what_the_network_does(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    images = pictures(4, VIT_SIDE if build is tiny_vit else SWIN_SIDE)
    expected = model(images)
    fast_bf16(monkeypatch, False)
    for copy in twins(model, 2, "cpu"):
        assert difference(expected, forward(copy, images)) < 1e-5
    fast_bf16(monkeypatch, True)
    logits = forward(twins(model, 1, "cpu")[0], images)
    assert logits.dtype == torch.float32 and sqnr_db(expected, logits) > 25


def test_hooks_on_one_are_not_seen_by_another() -> None:
    one, two = twins(tiny_vit(), 2, "cpu")
    with AttentionTaps(one) as taps:
        forward(two, pictures(1, VIT_SIDE))
        assert taps.values == []
        forward(one, pictures(1, VIT_SIDE))
        assert len(taps.values) == 2


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2}, {"global_pool": "avg", "class_token": False}], ids=str)
def test_half_the_size_shares_all_weights_but_the_positions(kwargs: dict[str, Any], exact: None) -> None:
    model = tiny_vit(**kwargs)
    before, grid = model.pos_embed.clone(), model.patch_embed.grid_size
    half: Any = half_size(model, spec_of(model, VIT_SIDE))
    assert half(pictures(3, 16)).shape == (3, 7)
    assert torch.equal(model.pos_embed, before) and model.patch_embed.grid_size == grid == (4, 4)
    assert model(pictures(3, 32)).shape == (3, 7)
    apart = {
        name
        for (name, mine), whole in zip(half.named_parameters(), model.parameters(), strict=True)
        if mine.data_ptr() != whole.data_ptr()
    }
    assert apart == {"pos_embed"} and half.pos_embed.shape[1] == before.shape[1] - 12
    assert not any(parameter.requires_grad for parameter in half.parameters())
    prefix = before.shape[1] - 16
    assert torch.equal(half.pos_embed[:, :prefix], before[:, :prefix])


@pytest.mark.parametrize(
    "model",
    [tiny_swin(), tiny_vit(img_size=24), tiny_vit(img_size=(32, 48)), tiny_vit(pos_embed="none")],
    ids=["windows", "odd", "oblong", "no positions"],
)
def test_some_networks_have_no_half_size(model: Any) -> None:
    assert half_size(model, spec_of(model, VIT_SIDE)) is None


def kept(**kwargs: Any) -> int:
    model = tiny_vit(**kwargs)
    return kept_bytes(twins(model, 1, "cpu")[0], spec_of(model, VIT_SIDE), "cpu")


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_kept_grows_with_the_depth(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_bf16(monkeypatch, fast)
    four, eight, twelve = kept(depth=4), kept(depth=8), kept(depth=12)
    assert twelve - eight == pytest.approx(eight - four, rel=0.02)
    assert 1.5 < eight / four < 2.1


def test_weights_are_not_counted_but_what_passes_through_them_is(exact: None) -> None:
    """Four tokens: a block's weights are 128 times as large as what it hands on."""
    model = tiny_vit(embed_dim=512, patch_size=16, num_heads=2)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    (copy,) = twins(model, 1, "cpu")
    found = kept_bytes(copy, spec_of(model, VIT_SIDE), "cpu")
    tokens, width = 5, 512
    assert found < weights / 20
    assert found > 2 * tokens * 4 * width * 4  # at least what GELU reads, four times as wide, in both blocks
    assert found < 2 * tokens * 30 * width * 4


def test_the_batch_is_the_largest_power_of_two_that_fits() -> None:
    model = tiny_vit()
    spec, (copy,) = spec_of(model, VIT_SIDE), twins(model, 1, "cpu")
    need = kept_bytes(copy, spec, "cpu")
    found = [fitting_batch(copy, spec, "cpu", 1, int(share * need)) for share in (0, 1, 4.9, 5.1, 9.9, 10.1, 20.1)]
    assert found == [1, 1, 1, 2, 2, 4, 8]  # two and a half times what the forward pass keeps
    assert fitting_batch(copy, spec, "cpu", 1, 10**15) == CPU_BATCH == 8
    assert fitting_batch(copy, spec, "cpu", 5, int(20.1 * need)) == 1
    assert fitting_batch(copy, spec, "cpu", 2, int(20.1 * need)) == 4


def test_the_budget_is_half_the_memory_shared_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vit()
    spec, (copy,) = spec_of(model, VIT_SIDE), twins(model, 1, "cpu")
    need = int(kept_bytes(copy, spec, "cpu") * 2.5)
    monkeypatch.setattr(twin, "physical_memory", lambda: 2 * 3 * 4 * need + 6)
    monkeypatch.setattr(twin, "available_cores", lambda: 3)
    assert fitting_batch(copy, spec, "cpu", 1) == 4
    monkeypatch.setattr(twin, "available_cores", lambda: 4)
    assert fitting_batch(copy, spec, "cpu", 1) == 2


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() >= 1
    monkeypatch.setattr(twin.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(twin.os, "sched_getaffinity")
    monkeypatch.setattr(twin.os, "cpu_count", lambda: None)
    assert available_cores() == 1

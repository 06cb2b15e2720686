"""The network in pieces: every linear layer is found once, and the pieces in a row are the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from calib.models import LoadedModel
from calib.quant.families import Site, block_names, is_swin, reads_class_token, segments, sites
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, difference, pictures, tiny_swin, tiny_vit


def chained(model: Any, images: torch.Tensor) -> torch.Tensor:
    for piece in segments(model):
        images = piece.run(images)
    return images


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_vit_pieces_in_a_row_are_its_forward_pass(variant: str) -> None:
    model, images = tiny_vit(**VARIANTS[variant]), pictures(3, VIT_SIDE)
    logits = model(images)
    assert float(logits.std(0).min()) > 1e-3  # the pictures matter
    assert difference(logits, chained(model, images)) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_head_reads_the_first_token_alone_or_it_reads_others(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    tokens = model.forward_features(pictures(2, VIT_SIDE))
    others = torch.cat([tokens[:, :1], tokens[:, 1:] + 1 + torch.rand(tokens[:, 1:].shape)], 1)
    same = torch.equal(model.forward_head(tokens), model.forward_head(others))
    assert reads_class_token(model) == same
    assert not reads_class_token(tiny_swin())


@torch.no_grad()
def test_swin_pieces_in_a_row_are_its_forward_pass() -> None:
    model, images = tiny_swin(), pictures(3, SWIN_SIDE)
    assert difference(model(images), chained(model, images)) < 1e-6


@torch.no_grad()
def test_digits_pieces_in_a_row_are_its_forward_pass(digits: LoadedModel) -> None:
    images = pictures(2, 32)
    assert difference(digits.module(images), chained(digits.module, images)) < 1e-6


@pytest.mark.parametrize("model", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
def test_sites_are_all_linear_layers_in_execution_order(model: Any) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda m, a, o, name=name: ran.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    model(pictures(1, SWIN_SIDE if is_swin(model) else VIT_SIDE))
    for hook in hooks:
        hook.remove()
    assert [site.name for site in sites(model)] == ran


@pytest.mark.parametrize("model", [tiny_vit(), tiny_swin()], ids=["vit", "swin"])
@torch.no_grad()
def test_a_site_reads_what_it_says(model: Any) -> None:
    """Each layer's input is the output of the LayerNorm it names, or GELU's."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if not name:
            continue
        module.register_forward_pre_hook(lambda m, a, name=name: inputs.__setitem__(name, a[0]))
        module.register_forward_hook(lambda m, a, o, name=name: outputs.__setitem__(name, o))
    model(pictures(1, SWIN_SIDE if is_swin(model) else VIT_SIDE))
    kinds = set()
    for site in sites(model):
        kinds.add(site.kind)
        if site.norm:  # Swin regroups tokens, pooling averages them: the channels' ranges stay
            got, source = inputs[site.name].flatten(0, -2), outputs[site.norm].flatten(0, -2)
            assert got.shape[1] == source.shape[1]
            assert (got.amax(0) <= source.amax(0) + 1e-6).all() and (got.amin(0) >= source.amin(0) - 1e-6).all()
        if site.gelu:
            assert torch.equal(inputs[site.name], nn.functional.gelu(inputs[site.name.replace("fc2", "act")]))
        if site.values:
            assert site.values == site.name.replace("proj", "qkv")
    assert kinds == {"embed", "qkv", "proj", "fc1", "fc2", "head"} | ({"reduction"} if is_swin(model) else set())


def test_blocks_by_name() -> None:
    assert block_names(tiny_vit()) == ["blocks.0", "blocks.1"]
    assert block_names(tiny_swin()) == [
        "layers.0.blocks.0",
        "layers.0.blocks.1",
        "layers.1.blocks.0",
        "layers.1.blocks.1",
    ]
    assert is_swin(tiny_swin()) and not is_swin(tiny_vit())


def test_swin_has_a_shifted_block_and_a_merging_to_test() -> None:
    model = tiny_swin()
    assert model.layers[0].blocks[1].shift_size == (3, 3)
    assert model.layers[0].blocks[1].attn_mask.shape[0] == 4
    assert [piece.name for piece in segments(model)].index("layers.1.downsample") == 3


@pytest.mark.parametrize(
    ("variant", "norm"),
    [("plain", "norm"), ("avg_fc_norm", "fc_norm"), ("avg_without_fc_norm", "norm"), ("no_final_norm", None)],
)
def test_the_heads_norm(variant: str, norm: str | None) -> None:
    assert sites(tiny_vit(**VARIANTS[variant]))[-1] == Site("head", "head", norm=norm)

"""A rotation from the inside changes no function, keeps every token's mean, and spreads outliers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.align.rotate import mean_keeping_rotation, random_rotation, rotated, streams
from calib.quant.families import block_names, is_swin, sites
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, difference, pictures, tiny_swin, tiny_vit

NETWORKS = {
    "swin": tiny_swin,
    "swin of three stages": lambda: tiny_swin(depths=(1, 1, 1), num_heads=(2, 4, 4)),
    **{f"vit {name}": lambda kwargs=kwargs: tiny_vit(**kwargs) for name, kwargs in VARIANTS.items()},
}


def images_of(model: Any) -> torch.Tensor:
    return pictures(2, SWIN_SIDE if is_swin(model) else VIT_SIDE)


@pytest.mark.parametrize("which", NETWORKS)
@torch.no_grad()
def test_a_turned_network_computes_the_same(which: str) -> None:
    model = NETWORKS[which]()
    kept = copy.deepcopy(model.state_dict())
    turned = rotated(model, 0)
    assert difference(model(images_of(model)), turned(images_of(model))) < 1e-5
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("which", ["swin", "vit plain", "vit layer_scale", "vit pre_norm"])
def test_every_layer_that_can_be_turned_is(which: str) -> None:
    model = NETWORKS[which]()
    turned = rotated(model, 0)
    same = [
        site.name
        for site in sites(model)
        if torch.allclose(model.get_submodule(site.name).weight, turned.get_submodule(site.name).weight, atol=1e-4)
    ]
    first = [f"layers.0.blocks.{j}.mlp.{layer}" for j in range(2) for layer in ("fc1", "fc2")]
    whole = [f"{block}.mlp.{layer}" for block in block_names(model) for layer in ("fc1", "fc2")]
    still = {"swin": ["patch_embed.proj", *first], "vit pre_norm": ["patch_embed.proj", *whole, "head"]}
    assert same == still.get(which, [])


def test_streams_of_swin_begin_behind_a_merging() -> None:
    first, second = streams(tiny_swin(depths=(1, 1, 1), num_heads=(2, 4, 4)))
    assert first.width == 32 and first.writers[0] == "layers.1.downsample.reduction"
    assert first.readers[-1] == ("layers.2.downsample.norm", "layers.2.downsample.reduction")
    assert second.width == 64 and second.readers[-1] == ("norm", "head.fc")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_rotations_are_orthogonal_and_keep_the_mean(width: int, seed: int) -> None:
    free = random_rotation(width, torch.Generator().manual_seed(seed))
    keeping = mean_keeping_rotation(width, torch.Generator().manual_seed(seed))
    for found in (free, keeping):
        assert torch.allclose(found @ found.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    ones = torch.ones(width, dtype=torch.float64)
    assert torch.allclose(keeping @ ones, ones, atol=1e-12)
    assert torch.allclose(keeping.T @ ones, ones, atol=1e-12)
    tokens = torch.randn(5, width, dtype=torch.float64)
    turned = tokens @ keeping.T
    assert torch.allclose(turned.mean(1), tokens.mean(1)) and torch.allclose(turned.var(1), tokens.var(1))


def test_an_outlying_channel_is_spread_over_all() -> None:
    tokens = torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens[:, 5] *= 30
    turned = tokens @ mean_keeping_rotation(64, torch.Generator().manual_seed(1)).T

    def crest(x: torch.Tensor) -> float:
        return float((x.abs().amax(1) / x.square().mean(1).sqrt()).mean())

    assert crest(tokens) > 1.5 * crest(turned)


def test_the_same_seed_gives_the_same_network_and_another_one_another() -> None:
    model = tiny_vit()
    once, again, other = (rotated(model, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    assert not torch.equal(once["pos_embed"], other["pos_embed"])

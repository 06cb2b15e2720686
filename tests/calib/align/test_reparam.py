"""Folds move scales and shifts without moving the function, and are chosen only where they help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.align.reparam import (
    STRENGTHS,
    Ends,
    Fold,
    fold_after_gelu,
    fold_into_norm,
    fold_into_values,
    layer_error,
    migration,
    search_fold,
)
from calib.quant.families import Site, is_swin, sites
from calib.quant.linear import QuantLinear
from calib.quant.surgery import prepare
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, difference, pictures, tiny_swin, tiny_vit


def random_fold(width: int, seed: int) -> Fold:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(width, generator=generator)
    return Fold(0.5, shift, torch.exp(torch.randn(width, generator=generator)), 0.0, 0.0)


def fold(student: Any, site: Site, seed: int) -> None:
    layer = student.get_submodule(site.name)
    found = random_fold(layer.in_features, seed)
    if site.norm:
        fold_into_norm(student.get_submodule(site.norm), layer, found)
    elif site.values:
        fold_into_values(student.get_submodule(site.values), layer, found)
    elif site.gelu:
        fold_after_gelu(layer, found)


NETWORKS = {
    "swin": tiny_swin,
    **{f"vit {name}": lambda kwargs=kwargs: tiny_vit(**kwargs) for name, kwargs in VARIANTS.items()},
}


@pytest.mark.parametrize("which", NETWORKS)
@torch.no_grad()
def test_folding_everywhere_leaves_the_function_as_it_was(which: str) -> None:
    model = NETWORKS[which]()
    images = pictures(2, SWIN_SIDE if is_swin(model) else VIT_SIDE)
    student = prepare(model, parse("w8a8"))
    weights = {site.name: student.get_submodule(site.name).weight.clone() for site in sites(student)}
    for seed, site in enumerate(sites(student)):
        fold(student, site, seed)
    assert difference(model(images), student(images)) < 1e-4
    folded = [site for site in sites(student) if site.norm or site.values or site.gelu]
    assert all(not torch.equal(student.get_submodule(site.name).weight, weights[site.name]) for site in folded)


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
@pytest.mark.parametrize("kind", ["qkv", "proj", "fc1", "fc2", "reduction", "head"])
@torch.no_grad()
def test_the_quantizer_sees_the_folded_input(make: Any, kind: str) -> None:
    student = prepare(make(), parse("w8a8"))
    chosen = [site for site in sites(student) if site.kind == kind]
    if not chosen:
        pytest.skip("a ViT merges no patches")
    site, seen = chosen[-1], []
    layer = student.get_submodule(site.name)
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.scaled(args[0])))
    images = pictures(2, SWIN_SIDE if is_swin(student) else VIT_SIDE)
    student(images)
    fold(student, site, seed=9)
    student(images)
    found = random_fold(layer.in_features, 9)
    shift = 0 if site.gelu else found.shift
    assert difference((seen[0] - shift) / found.scale, seen[1]) < 1e-4


def test_off_after_gelu_stores_no_factor() -> None:
    layer = QuantLinear(torch.randn(3, 4), None, 8, 8)
    before = layer.weight.clone()
    fold_after_gelu(layer, Fold(None, torch.zeros(4), torch.ones(4), 0.0, 0.0))
    assert layer.premul is None and torch.equal(layer.weight, before)


def test_the_ends_of_every_channel() -> None:
    rows = torch.tensor([[1.0, -4.0], [3.0, 2.0], [2.0, 0.0]])
    ends = Ends.of(rows)
    assert ends.middle.tolist() == [2.0, -1.0] and ends.half_range.tolist() == [1.0, 3.0]
    shift, scale = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    folded = (rows - shift) / scale
    assert ends.overall(shift, scale) == (float(folded.min()), float(folded.max()))


def test_the_judge_knows_of_values_its_sample_does_not_hold() -> None:
    """One large value among 4,096 rows is missed by any small sample; the fold must cover it all the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 8, generator=generator)
    layer = QuantLinear(torch.randn(6, 8, generator=generator), None, 8, 4)
    whole = torch.cat([rows, torch.zeros(1, 8)])
    whole[-1, 2] = 40
    unaware, aware = search_fold(layer, rows), search_fold(layer, rows, ends=Ends.of(whole))
    assert float(aware.shift[2]) == pytest.approx(float(Ends.of(whole).middle[2]))
    assert float(aware.scale[2] / aware.scale.median()) > 3 * float(unaware.scale[2] / unaware.scale.median())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(STRENGTHS))
def test_migration_is_the_published_formula_up_to_a_common_factor(seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    half, column = torch.rand(6, generator=generator) + 0.1, torch.rand(6, generator=generator) + 0.1
    scale = migration(half, column, strength)
    ratio = scale / (half**strength / column ** (1 - strength))
    assert torch.allclose(ratio, ratio[0].expand(6), rtol=1e-4)
    assert float(scale.log().mean()) == pytest.approx(0, abs=1e-5)


def test_migration_survives_dead_channels() -> None:
    scale = migration(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 0.0, 2.0]), 0.5)
    assert torch.isfinite(scale).all() and (scale >= 1e-3).all() and (scale <= 1e3).all()
    assert torch.isfinite(migration(torch.zeros(3), torch.zeros(3), 0.5)).all()


def test_full_strength_flattens_the_ranges() -> None:
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    ends = Ends.of(rows)
    flat = Ends.of((rows - ends.middle) / migration(ends.half_range, torch.ones(5), 1.0))
    assert float(flat.middle.abs().max()) < 1e-5
    assert torch.allclose(flat.half_range, flat.half_range[:1].expand(5), rtol=1e-4)


@pytest.mark.parametrize("gelu", [False, True])
def test_where_folding_cannot_help_it_is_off(gelu: bool) -> None:
    """Inputs and weights that are on the quantizers' grids to begin with."""
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randint(0, 2, (64, 6), generator=generator) * 2.0 - 1) * 127 / 128
    weight = (torch.randint(0, 2, (5, 6), generator=generator) * 2.0 - 1) * 127 / 128
    layer = QuantLinear(weight, None, 8, 8)
    if gelu:  # an asymmetric grid with the levels -128 .. 127 at 0 .. 255/256
        rows = rows.clamp_min(0) * (255 / 256) / (127 / 128)
    found = search_fold(layer, rows, gelu)
    assert found.strength is None
    assert found.error < 1e-12
    assert torch.equal(found.shift, torch.zeros(6)) and torch.equal(found.scale, torch.ones(6))


@pytest.mark.parametrize("gelu", [False, True])
def test_one_channel_a_hundred_times_the_others_gets_a_scale(gelu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 16, generator=generator)
    if gelu:
        rows = torch.nn.functional.gelu(rows)
    rows[:, 3] *= 100
    weight = torch.randn(12, 16, generator=generator)
    weight[:, 3] /= 100
    layer = QuantLinear(weight, None, 8, 8)
    found = search_fold(layer, rows, gelu)
    assert found.strength is not None and found.strength > 0
    assert int(found.scale.argmax()) == 3
    assert float(found.scale[3]) > 10 * float(found.scale.median())
    off = layer_error(layer, rows, weight, gelu, rows @ weight.T)
    assert found.error < 0.05 * off


def test_after_gelu_a_scale_is_taken_only_where_the_layer_needs_it() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.gelu(torch.randn(256, 16, generator=generator))
    rows[:, 3] *= 10
    layer = QuantLinear(torch.randn(12, 16, generator=generator), None, 8, 8)
    helped = search_fold(layer, rows, gelu=True)
    assert helped.strength is not None and 0 < helped.error < helped.off
    for enough, spared in ((helped.off, True), (0.99 * helped.off, False)):
        found = search_fold(layer, rows, gelu=True, enough=enough)
        assert (found.strength is None) == spared and found.off == helped.off
        assert found.error == (helped.off if spared else helped.error)
    norm = search_fold(layer, rows, enough=1.0)  # into LayerNorm it costs nothing
    assert norm.strength is not None and norm.error == search_fold(layer, rows).error


def test_a_channel_far_from_zero_gets_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 8, generator=generator)
    rows[:, 2] += 50
    layer = QuantLinear(torch.randn(6, 8, generator=generator), None, 8, 8)
    found = search_fold(layer, rows)
    assert found.strength is not None
    assert float(found.shift[2]) == pytest.approx(50, abs=2)


def test_after_gelu_there_is_no_shift() -> None:
    rows = torch.nn.functional.gelu(3 * torch.randn(128, 6, generator=torch.Generator().manual_seed(0)))
    found = search_fold(QuantLinear(torch.randn(4, 6), None, 8, 8), rows, gelu=True)
    assert torch.equal(found.shift, torch.zeros(6))


def test_the_search_is_never_worse_than_off() -> None:
    generator = torch.Generator().manual_seed(1)
    for bits, act_bits in ((8, 8), (4, 8), (4, 4), (3, 16)):
        layer = QuantLinear(torch.randn(6, 8, generator=generator), None, bits, act_bits)
        rows = torch.randn(64, 8, generator=generator)
        off = layer_error(layer, rows, layer.weight, False, rows @ layer.weight.T)
        assert search_fold(layer, rows).error <= off

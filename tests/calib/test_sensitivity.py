"""Which layer hurts, alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calib.quant.surgery import linears, prepare, residuals
from calib.scheme import parse
from calib.sensitivity import sensitivities
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_every_layer_is_ranked_and_the_network_is_left_alone(make: Any, side: int) -> None:
    model, calls = make(), []
    images = pictures(16, side)
    with torch.no_grad():
        before = model(images)
    found = sensitivities(model, parse("w4a8"), images, progress=lambda *call: calls.append(call))
    assert {each.layer for each in found} == set(linears(prepare(model, parse("w4a8"))))
    assert [each.divergence for each in found] == sorted((each.divergence for each in found), reverse=True)
    assert calls[0][:2] == (0, len(found)) and calls[-1][:2] == (len(found), len(found))
    with torch.no_grad():
        assert torch.equal(model(images), before)
    assert found == sensitivities(model, parse("w4a8"), images)


def test_attention_products_are_ranked_too_where_the_scheme_has_them() -> None:
    images = pictures(16, VIT_SIDE)
    plain, found = (sensitivities(tiny_vit(), parse(scheme), images) for scheme in ("w8a8", "w8a8+attn8"))
    rows = {each.layer: each for each in found if each.layer.endswith((".qk", ".pv"))}
    assert set(rows) == {f"blocks.{i}.attn.{part}" for i in range(2) for part in ("qk", "pv")}
    assert all((each.weights, each.weight_bits, each.act_bits) == (0, 8, 8) for each in rows.values())
    assert all(each.divergence > 0 and 20 < each.sqnr_db < 80 for each in rows.values())
    layers = {each.layer: each.divergence for each in found if each.layer not in rows}
    assert layers == pytest.approx({each.layer: each.divergence for each in plain}, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_points_of_the_residual_stream_are_ranked_too_where_the_scheme_has_them(make: Any, side: int) -> None:
    images = pictures(16, side)
    plain, found = (sensitivities(make(), parse(scheme), images) for scheme in ("w8a8", "w8a8+res8"))
    rows = {each.layer: each for each in found if ".residual_" in each.layer}
    assert set(rows) == set(residuals(prepare(make(), parse("w8a8+res8"))))
    assert all((each.weights, each.weight_bits, each.act_bits) == (0, 8, 8) for each in rows.values())
    assert all(each.divergence > 0 and 20 < each.sqnr_db < 80 for each in rows.values())
    layers = {each.layer: each.divergence for each in found if each.layer not in rows}
    assert layers == pytest.approx({each.layer: each.divergence for each in plain}, rel=1e-2, abs=1e-7)


def test_fewer_bits_cost_more() -> None:
    totals = [
        sum(each.divergence for each in sensitivities(tiny_vit(), parse(scheme), pictures(16, VIT_SIDE)))
        for scheme in ("w8a8", "w4a8", "w2a8")
    ]
    assert totals == sorted(totals) and totals[0] < 0.1 * totals[2]


def test_a_layer_that_is_hard_to_round_comes_first() -> None:
    model = tiny_vit()
    with torch.no_grad():  # one huge weight a row takes all the levels from the rest
        model.blocks[1].mlp.fc1.weight[:, 0] = 50.0
        model.blocks[1].norm2.weight[0] = 0.0
        model.blocks[1].norm2.bias[0] = 0.0
    assert sensitivities(model, parse("w4a16"), pictures(16, VIT_SIDE))[0].layer == "blocks.1.mlp.fc1"

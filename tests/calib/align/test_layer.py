"""One layer: every step stays only where held-out rows say so."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from calib.align import layer as steps
from calib.align.config import CorrectionConfig, Form, LayerConfig
from calib.align.correction import Correction
from calib.align.inputs import Split
from calib.align.layer import LayerRows, quantize_layer
from calib.align.rounding import relative_error
from calib.quant.families import Site
from calib.quant.linear import QuantLinear

SITE = Site("fc1", "fc1")
NONE = CorrectionConfig("none")


def problem(images: int = 32, width: int = 24, bits: int = 3) -> tuple[QuantLinear, Tensor, Split]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator) + 1
    rows = torch.randn(images * 10, width, generator=generator) @ mix
    layer = QuantLinear(torch.randn(16, width, generator=generator), torch.randn(16, generator=generator), bits, 8)
    return layer, rows, Split.of(images)


def quantize(layer: QuantLinear, inputs: Tensor, split: Split, **options: Any) -> dict[str, Any]:
    rows = LayerRows(inputs, split)
    return quantize_layer(layer, SITE, rows, LayerConfig(**options), torch.Generator().manual_seed(1))


def test_gptq_lowers_the_error_on_rows_it_never_saw() -> None:
    layer, rows, split = problem()
    row = quantize(layer, rows, split, rounding="gptq")
    assert row["error_gptq"] < 0.7 * row["error"]
    held = split.rows(rows)[1]
    last = row["error_uncorrected"] if row["rejected"] else row["error_corrected"]
    fresh = problem()[0]
    target = torch.nn.functional.linear(held, fresh.weight, fresh.bias)
    assert relative_error(layer.integer_output(held), target) == pytest.approx(last, rel=1e-4)


def test_a_rounding_that_does_not_help_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rows, split = problem()
    quantize(plain, rows, split, correction=NONE)
    layer = problem()[0]
    monkeypatch.setattr(steps, "gptq", lambda weight, *args: torch.zeros_like(weight, dtype=torch.int8))
    row = quantize(layer, rows, split, rounding="gptq", correction=NONE)
    assert row["rejected"] == ["gptq"] and row["error_gptq"] > row["error"]
    assert torch.equal(layer.weight_q, plain.weight_q)


def test_a_correction_that_does_not_help_once_folded_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows, split = problem()
    before = layer.bias.clone()
    broken = Correction(torch.eye(16), torch.full((16,), 100.0))
    monkeypatch.setattr(steps, "search_correction", lambda *args: broken)
    monkeypatch.setattr(steps, "bias_correction", lambda made, target, weighted: torch.zeros(16))
    row = quantize(layer, rows, split)
    assert row["rejected"] == ["bias"] and row["error_corrected"] > row["error_uncorrected"]
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize(("form", "share"), [("bias", 0.9), ("diag", 0.7), ("full", 0.7)])
def test_a_correction_lowers_the_error_on_rows_it_never_saw(form: Form, share: float) -> None:
    layer, rows, split = problem(bits=6)
    wanted = torch.nn.functional.linear(rows, layer.weight, layer.bias) * torch.linspace(0.8, 1.1, 16) + 3
    inputs = LayerRows(rows, split, wanted)
    config = LayerConfig(correction=CorrectionConfig(form, "float"))
    row = quantize_layer(layer, SITE, inputs, config, torch.Generator().manual_seed(1))
    assert not row["rejected"] and row["error_corrected"] < share * row["error_uncorrected"]
    made, target = layer.integer_output(split.rows(rows)[1]), split.rows(wanted)[1]
    assert relative_error(made, target) == pytest.approx(row["error_corrected"], rel=1e-4)


def test_no_correction_is_none_whatever_it_would_aim_at() -> None:
    plain, rows, split = problem()
    quantize(plain, rows, split, correction=NONE)
    layer = problem()[0]
    wanted = torch.nn.functional.linear(rows, layer.weight, layer.bias) + 3
    config = LayerConfig(correction=CorrectionConfig("none", "float"))
    row = quantize_layer(layer, SITE, LayerRows(rows, split, wanted), config, torch.Generator().manual_seed(1))
    assert torch.equal(layer.bias, plain.bias) and "correction" not in row


def test_a_diagonal_correction_moves_no_integer() -> None:
    plain, rows, split = problem()
    quantize(plain, rows, split, correction=NONE)
    layer = problem()[0]
    wanted = torch.nn.functional.linear(rows, layer.weight, layer.bias) * 1.5
    config = LayerConfig(correction=CorrectionConfig("diag", "float"))
    quantize_layer(layer, SITE, LayerRows(rows, split, wanted), config, torch.Generator().manual_seed(1))
    assert torch.equal(layer.weight_q, plain.weight_q)
    assert not torch.allclose(layer.weight_scale, plain.weight_scale, rtol=0.1)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_groups_of_a_layer(rounding: Literal["nearest", "gptq"]) -> None:
    """A scale for every 8 of 24 inputs rounds better than one for all; a diagonal correction multiplies them alike."""
    made = {}
    for group in (None, 8):
        layer, rows, split = problem()
        weight = layer.weight * torch.tensor([1.0, 4.0, 0.25]).repeat_interleave(8)
        layer = QuantLinear(weight, layer.bias, 3, 16, group)
        made[group] = quantize(layer, rows, split, rounding=rounding, correction=NONE)["error"]
    assert made[8] < 0.7 * made[None]
    kept = layer.weight_q.clone(), layer.weight_scale.clone()
    assert kept[1].shape == (16, 3)
    wanted = torch.nn.functional.linear(rows, layer.weight, layer.bias) * 1.5
    config = LayerConfig(rounding=rounding, correction=CorrectionConfig("diag", "float"))
    quantize_layer(layer, SITE, LayerRows(rows, split, wanted), config, torch.Generator().manual_seed(1))
    assert torch.equal(layer.weight_q, kept[0])
    gain = layer.weight_scale / kept[1]
    assert torch.allclose(gain, gain[:, :1].expand(-1, 3)) and (gain > 1.1).all()


def test_the_range_covers_every_row() -> None:
    layer, rows, split = problem()
    rows[5] *= 30  # one of 320, in an image to fit; of 8 rows looked at it is missed
    row = quantize(layer, rows, split, rows=8)
    assert row["scale"] * 128 > 0.75 * float(rows.abs().max())


@pytest.mark.parametrize("form", ["none", "bias"])
def test_a_shift_that_stands_for_a_zero_point_is_multiplied_by_the_integer_weights(form: Form) -> None:
    """What an asymmetric min-max quantizer computes: W_q x, the zero point's part included, plus the float bias."""
    layer, rows, split = problem()
    float_bias, zero = layer.bias.clone(), torch.full((24,), float(rows.amax() + rows.amin()) / 2 + 20)
    wanted = torch.nn.functional.linear(rows + zero, layer.weight, layer.bias)
    layer.bias += layer.weight @ zero
    config = LayerConfig(ranges="minmax", correction=CorrectionConfig(form))
    row = quantize_layer(layer, SITE, LayerRows(rows, split, zero=zero), config, torch.Generator().manual_seed(1))
    assert layer.in_quant is not None
    seen = layer.in_quant(rows) * layer.in_quant.scale + zero
    made = seen @ (layer.weight_q.float() * layer.weight_scale[:, None]).T + float_bias
    if form == "none":
        assert torch.allclose(layer.integer_output(rows), made, atol=1e-3 * float(made.std()))
        return
    judged = split.rows(wanted)[1]
    before, after = (relative_error(split.rows(y)[1], judged) for y in (made, layer.integer_output(rows)))
    assert not row["rejected"] and row["error_uncorrected"] == pytest.approx(before, rel=1e-3)
    assert after == pytest.approx(row["error_corrected"], rel=1e-3) and after < before

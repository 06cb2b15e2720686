"""One layer: every step stays only where held-out rows say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from calib.align import layer as steps
from calib.align.inputs import Split
from calib.align.layer import LayerConfig, quantize_layer
from calib.align.rounding import relative_error
from calib.quant.families import Site
from calib.quant.linear import QuantLinear

SITE = Site("fc1", "fc1")


def problem(images: int = 32, width: int = 24) -> tuple[QuantLinear, Tensor, Split]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator) + 1
    rows = torch.randn(images * 10, width, generator=generator) @ mix
    layer = QuantLinear(torch.randn(16, width, generator=generator), torch.randn(16, generator=generator), 3, 8)
    return layer, rows, Split.of(images)


def quantize(layer: QuantLinear, inputs: Tensor, split: Split, **options: Any) -> dict[str, Any]:
    return quantize_layer(layer, SITE, inputs, split, LayerConfig(**options), torch.Generator().manual_seed(1))


def test_gptq_lowers_the_error_on_rows_it_never_saw() -> None:
    layer, rows, split = problem()
    row = quantize(layer, rows, split, rounding="gptq")
    assert row["error_gptq"] < 0.7 * row["error"]
    held = split.rows(rows)[1]
    assert row["rejected"] == ["bias"] or row["error_bias"] <= row["error_gptq"]
    bias = row["error_gptq"] if "bias" in row["rejected"] else row["error_bias"]
    fresh = problem()[0]
    target = torch.nn.functional.linear(held, fresh.weight, fresh.bias)
    assert relative_error(layer.integer_output(held), target) == pytest.approx(bias, rel=1e-4)


def test_a_rounding_that_does_not_help_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rows, split = problem()
    quantize(plain, rows, split, correct_bias=False)
    layer = problem()[0]
    monkeypatch.setattr(steps, "gptq", lambda weight, *args: torch.zeros_like(weight, dtype=torch.int8))
    row = quantize(layer, rows, split, rounding="gptq", correct_bias=False)
    assert row["rejected"] == ["gptq"] and row["error_gptq"] > row["error"]
    assert torch.equal(layer.weight_q, plain.weight_q)


def test_a_correction_that_does_not_help_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows, split = problem()
    before = layer.bias.clone()
    monkeypatch.setattr(steps, "bias_correction", lambda made, target, weighted: torch.full((16,), 100.0))
    row = quantize(layer, rows, split)
    assert row["rejected"] == ["bias"] and row["error_bias"] > row["error"]
    assert torch.allclose(layer.bias, before, atol=1e-4)


def test_the_range_covers_every_row() -> None:
    layer, rows, split = problem()
    rows[5] *= 30  # one of 320, in an image to fit; of 8 rows looked at it is missed
    row = quantize(layer, rows, split, rows=8)
    assert row["scale"] * 128 > 0.75 * float(rows.abs().max())

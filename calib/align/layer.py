"""Quantize one linear layer: its input range, its integer weights, its bias, each step judged on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.align.bias import bias_correction
from calib.align.gptq import DAMPING, gptq, second_moment
from calib.align.inputs import Split, sample
from calib.align.ranges import Range, search_range
from calib.align.rounding import relative_error, search_rounding, token_importance
from calib.quant.families import Site
from calib.quant.linear import QuantLinear

Rounding = Literal["nearest", "gptq"]


@dataclass(frozen=True)
class LayerConfig:
    """How a layer is quantized.

    Attributes:
        rows: most token rows a search looks at. weight_tokens: every token counts by the inverse of its energy
        (False: all alike, the textbook form, for ablations). rounding: of the weights. damping: of GPTQ.
        correct_bias: on or off.
    """

    rows: int = 4096
    weight_tokens: bool = True
    rounding: Rounding = "nearest"
    damping: float = DAMPING
    correct_bias: bool = True


def quantize_layer(
    layer: QuantLinear, site: Site, rows: Tensor, split: Split, config: LayerConfig, generator: torch.Generator
) -> dict[str, Any]:
    """Fix the layer's quantizer, weights and bias, in place, and switch it to integers; the row for the report.

    A step after plain rounding stays only where it lowers the layer's error on the held-out images: ``error`` is plain
    rounding's, ``error_<step>`` that with a step added, ``rejected`` names those put back.

    Args:
        rows: (T, K) what the quantized network feeds the layer, image after image. split: of those images.
    """
    fit, held = split.rows(rows)
    few, judge = sample(fit, config.rows, generator), sample(held, config.rows, generator)
    report: dict[str, Any] = {"step": "quantize", "layer": site.name, "weight_bits": layer.weight_bits, "rejected": []}
    if layer.in_quant is not None:
        found = _input_range(layer, site, rows, few)
        layer.in_quant.set(found.scale, found.zero_point)
        report |= {"scale": found.scale, "zero_point": found.zero_point}
    layer.quantized = True
    target = F.linear(judge, layer.weight, layer.bias)
    plain, scale = search_rounding(layer.weight, layer.weight_bits, token_importance(few, config.weight_tokens))
    layer.set_weights(plain, scale)
    report["error"] = error = relative_error(layer.integer_output(judge), target)
    if config.rounding == "gptq":
        moment = second_moment(_restored(layer, fit), config.weight_tokens)
        layer.set_weights(gptq(layer.weight, scale, layer.weight_bits, moment, config.damping), scale)
        report["error_gptq"] = now = relative_error(layer.integer_output(judge), target)
        if now < error:
            error = now
        else:
            layer.set_weights(plain, scale)
            report["rejected"].append("gptq")
    if config.correct_bias:
        wanted = F.linear(fit, layer.weight, layer.bias)
        change = bias_correction(layer.integer_output(fit), wanted, config.weight_tokens)
        layer.bias += change
        report["error_bias"] = relative_error(layer.integer_output(judge), target)
        if report["error_bias"] > error:
            layer.bias -= change
            report["rejected"].append("bias")
    return report


def _restored(layer: QuantLinear, rows: Tensor) -> Tensor:
    """``rows`` after quantization, in their own units: (T, K)."""
    if layer.in_quant is None:
        return rows
    return (layer.in_quant(rows) - layer.in_quant.zero_point) * layer.in_quant.scale


def _input_range(layer: QuantLinear, site: Site, rows: Tensor, few: Tensor) -> Range:
    if site.kind == "embed":
        return Range(max(float(rows.abs().max()), 1e-8) / 127, 0, 0.0)
    ends = float(rows.min()), float(rows.max())
    return search_range(few, layer.act_bits, layer.weight.square().sum(0), site.gelu, ends)

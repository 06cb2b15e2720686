"""Quantize one linear layer: its input range, its integer weights, its correction, each judged on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.align.bias import bias_correction
from calib.align.config import LayerConfig, Ranges
from calib.align.correction import search_correction
from calib.align.gptq import flattened, gptq, second_moment
from calib.align.inputs import Split, sample
from calib.align.ranges import Range, choose_range
from calib.align.rounding import extreme_rounding, relative_error, search_rounding, token_importance
from calib.quant.families import Site
from calib.quant.linear import QuantLinear, per_weight

Rounder = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights (N, K) to levels (N, K) and their scales


@dataclass(frozen=True)
class LayerRows:
    """What one layer is quantized on.

    Attributes:
        inputs: (T, K), what the quantized network feeds the layer, image after image. split: of those images.
        wanted: (T, N), the float network's output of the same layer, where the correction aims at it.
        heads: of the attention, where the layer is its qkv; else 0. zero: (K,), what was taken off the inputs and put
        into the bias as W zero, where it stands for a zero point.
    """

    inputs: Tensor
    split: Split
    wanted: Tensor | None = None
    heads: int = 0
    zero: Tensor | None = None


def quantize_layer(
    layer: QuantLinear, site: Site, rows: LayerRows, config: LayerConfig, generator: torch.Generator
) -> dict[str, Any]:
    """Fix the layer's quantizer, weights and bias, in place, and switch it to integers; the row for the report.

    A step after plain rounding stays only where it lowers the layer's error on the held-out images: ``error`` is plain
    rounding's, ``error_<step>`` that with a step added, ``rejected`` names those put back.
    """
    fit, held = rows.split.rows(rows.inputs)
    few, judge = sample(fit, config.rows, generator), sample(held, config.rows, generator)
    report: dict[str, Any] = {"step": "quantize", "layer": site.name, "weight_bits": layer.weight_bits, "rejected": []}
    if layer.in_quant is not None:
        found = _input_range(layer, site, rows.inputs, few, config.ranges)
        layer.in_quant.set(found.scale, found.zero_point)
        report |= {"scale": found.scale, "zero_point": found.zero_point}
    layer.quantized = True
    target = F.linear(judge, layer.weight, layer.bias)
    wanted = None
    if config.correction.form != "none":
        wanted = F.linear(rows.inputs, layer.weight, layer.bias) if rows.wanted is None else rows.wanted
    nearest = _nearest(layer, few, config)
    bias = layer.bias.clone()
    _place(layer, nearest(layer.weight), bias, rows.zero)
    rounder = nearest
    report["error"] = error = relative_error(layer.integer_output(judge), target)
    if config.rounding == "gptq":
        rounder = _gptq(layer, second_moment(_restored(layer, fit), config.weight_tokens), config, nearest)
        kept = _numbers(layer)
        _place(layer, rounder(layer.weight), bias, rows.zero)
        report["error_gptq"] = now = relative_error(layer.integer_output(judge), target)
        if now >= error:
            _put_back(layer, kept)
            report["rejected"].append("gptq")
            rounder = nearest
    if wanted is not None:
        report |= _correct(layer, rows, wanted, (fit, held), config, rounder, report["rejected"])
    return report


def _place(layer: QuantLinear, rounded: tuple[Tensor, Tensor], bias: Tensor, zero: Tensor | None) -> None:
    """Give the layer integer weights; where ``zero`` stands for a zero point, its bias becomes b + W_q s_w zero.

    That is what an asymmetric quantizer's integer weights make of its zero point. ``bias`` holds W zero in float.
    """
    layer.set_weights(*rounded)
    if zero is not None:
        scale = per_weight(layer.weight_scale, layer.in_features).double()
        left = layer.weight_q.double() * scale - layer.weight.double()
        layer.bias.copy_(bias + (left @ zero.double()).float())


def _correct(
    layer: QuantLinear,
    rows: LayerRows,
    wanted: Tensor,
    inputs: tuple[Tensor, Tensor],
    config: LayerConfig,
    rounder: Rounder,
    rejected: list[str],
) -> dict[str, Any]:
    """Correct the layer's output, in place: fold what the search finds, and put it back where the fold does not help.

    A correction that mixes rows has the weights rounded again, and the mean error of that taken out of the bias.
    ``wanted`` is what it should be, (T, N); ``inputs`` are the rows to fit and those held out.
    """
    form = config.correction.form
    fit, held = rows.split.rows(layer.integer_output(rows.inputs))
    fit_target, held_target = rows.split.rows(wanted)
    before = relative_error(held, held_target)
    report: dict[str, Any] = {"correction": form, "error_uncorrected": before}
    found = search_correction(
        (fit, fit_target), (held, held_target), config.correction, rows.heads, config.weight_tokens
    )
    if found is None:
        rejected.append(form)
        return report | {"error_corrected": before}
    kept = _numbers(layer)
    weight, bias = found.fold(layer.weight, layer.bias)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    if found.mixes:
        layer.set_weights(*rounder(layer.weight))
        made = layer.integer_output(inputs[0])
        layer.bias += bias_correction(made, fit_target, config.weight_tokens)
    else:
        layer.weight_scale *= found.gain if layer.group is None else found.gain[:, None]
    made = layer.integer_output(inputs[1])
    report["error_corrected"] = after = relative_error(made, held_target)
    if after >= before:
        _put_back(layer, kept)
        rejected.append(form)
    return report


def _numbers(layer: QuantLinear) -> tuple[Tensor, ...]:
    return tuple(t.clone() for t in (layer.weight, layer.bias, layer.weight_q, layer.weight_scale))


def _put_back(layer: QuantLinear, kept: tuple[Tensor, ...]) -> None:
    for own, value in zip((layer.weight, layer.bias, layer.weight_q, layer.weight_scale), kept, strict=True):
        own.copy_(value)


def _nearest(layer: QuantLinear, few: Tensor, config: LayerConfig) -> Rounder:
    importance = token_importance(few, config.weight_tokens)

    def round_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
        if config.ranges != "mse":
            return extreme_rounding(weight, layer.weight_bits, layer.group)
        return search_rounding(weight, layer.weight_bits, importance, group=layer.group)

    return round_weights


def _gptq(layer: QuantLinear, moment: Tensor, config: LayerConfig, nearest: Rounder) -> Rounder:
    counted = flattened(moment, config.flatten)

    def round_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
        _, scale = nearest(weight)
        return gptq(weight, scale, layer.weight_bits, counted, config.damping), scale

    return round_weights


def _restored(layer: QuantLinear, rows: Tensor) -> Tensor:
    """``rows`` after quantization, in their own units: (T, K)."""
    if layer.in_quant is None:
        return rows
    return (layer.in_quant(rows) - layer.in_quant.zero_point) * layer.in_quant.scale


def _input_range(layer: QuantLinear, site: Site, rows: Tensor, few: Tensor, ranges: Ranges) -> Range:
    if site.kind == "embed":
        return Range(max(float(rows.abs().max()), 1e-8) / 127, 0, 0.0)
    ends = float(rows.min()), float(rows.max())
    return choose_range(few, layer.act_bits, layer.weight.square().sum(0), ranges, site.gelu, ends)

"""Move per-channel scales and shifts out of an activation and into its neighbours, as strongly as helps.

A linear layer reads x. Quantize u = (x - c) / r instead and give the layer W diag(r) and b + W c: the function is the
same. c and r fold into LayerNorm's gamma and beta (RepQ-ViT, ICCV 2023, reparameterisation of post-LayerNorm
activations), or into the value rows before an attention product, because softmax rows sum to 1. After GELU the
scale stays as one multiplication, where the layer needs it, and the shift is a zero point.

r_j = range_j^a / max|W_:j|^(1-a) (SmoothQuant's migration, with the range for the maximum). The strength a is searched
per layer on the layer's own quantized output, and "off" is a candidate, since a scale that flattens the activations
makes the weights harder to round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.align.bias import bias_correction
from calib.align.ranges import search_range
from calib.align.rounding import relative_error, search_rounding, token_importance
from calib.network import Network
from calib.quant.linear import QuantLinear, per_weight
from calib.quant.quantizer import quantize

STRENGTHS = (0.25, 0.5, 0.65, 0.75, 0.85, 1.0)


@dataclass(frozen=True)
class Fold:
    """Shift c (K,) and scale r (K,) > 0 of one layer's input, with the strength that gave them (None = off).

    ``error`` is the quantized layer's with the fold, ``off`` that without any.
    """

    strength: float | None
    shift: Tensor
    scale: Tensor
    error: float
    off: float


@dataclass(frozen=True)
class Ends:
    """Smallest and largest value of every input channel over the images looked at: (K,) and (K,)."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Ends:
        """Of rows (T, K)."""
        return cls(rows.amin(0), rows.amax(0))

    @property
    def middle(self) -> Tensor:
        """(K,), the middle of each channel's range."""
        return (self.high + self.low) / 2

    @property
    def half_range(self) -> Tensor:
        """(K,), half the width of each channel's range."""
        return (self.high - self.low) / 2

    def overall(self, shift: Tensor, scale: Tensor) -> tuple[float, float]:
        """Smallest and largest value of ``(x - shift) / scale``, both (K,), over all channels."""
        return float(((self.low - shift) / scale).min()), float(((self.high - shift) / scale).max())


def migration(half_range: Tensor, column_max: Tensor, strength: float) -> Tensor:
    """r_j = half_range_j^a / column_max_j^(1-a), scaled to geometric mean 1 and kept within 1e-3 .. 1e3. (K,)"""
    half_range = half_range.clamp_min(1e-4 * float(half_range.max().clamp_min(1e-8)))
    column_max = column_max.clamp_min(1e-4 * float(column_max.max().clamp_min(1e-8)))
    log_scale = strength * half_range.log() - (1 - strength) * column_max.log()
    return (log_scale - log_scale.mean()).exp().clamp(1e-3, 1e3)


def layer_error(
    layer: QuantLinear,
    rows: Tensor,
    weight: Tensor,
    asymmetric: bool,
    target: Tensor,
    ends: tuple[float, float] | None = None,
) -> float:
    """Error of the quantized layer on ``rows``, each token measured against its own output's energy.

    Dividing by the token's energy keeps a few massive tokens from owning the sum. The error that bias correction will
    remove is taken off first.

    Args:
        layer: gives the bit widths. rows: (T, K) the layer's folded input. weight: (N, K) folded.
        asymmetric: whether the quantizer may have a zero point. target: (T, N) = rows @ weight.T in float.
        ends: smallest and largest value of the folded input over all images, where ``rows`` are a sample.
    """
    restored = rows
    if layer.in_quant is not None:
        found = search_range(rows, layer.act_bits, weight.square().sum(0), asymmetric, ends)
        restored = (quantize(rows, found.scale, found.zero_point, layer.act_bits) - found.zero_point) * found.scale
    levels, scale = search_rounding(weight, layer.weight_bits, token_importance(rows), steps=10, group=layer.group)
    made = restored @ (levels * per_weight(scale, weight.shape[1])).T
    return relative_error(made + bias_correction(made, target), target)


def search_fold(
    layer: QuantLinear, rows: Tensor, gelu: bool = False, ends: Ends | None = None, enough: float = 0.0
) -> Fold:
    """The fold of least quantized output error among off, shift alone, and every strength.

    Args:
        layer: float, not folded yet. rows: (T, K) float32, a sample of its input to judge by.
        gelu: True where only a scale is allowed and the quantizer takes the shift as its zero point.
        ends: of every row there is; default: of ``rows``. enough: with ``gelu``, where the engine pays for the scale:
        off it is, if the error is not above this.
    """
    ends = ends or Ends.of(rows)
    weight = layer.weight
    target = rows @ weight.T
    middle, half_range = ends.middle, ends.half_range
    if gelu:
        half_range = torch.maximum(ends.high, -ends.low)
    column_max = weight.abs().amax(0)
    zeros, ones = torch.zeros_like(middle), torch.ones_like(middle)
    candidates: list[tuple[float | None, Tensor, Tensor]] = [(None, zeros, ones)]
    if not gelu:
        candidates.append((0.0, middle, ones))
    for tried in STRENGTHS:
        candidates.append((tried, zeros if gelu else middle, migration(half_range, column_max, tried)))
    best: Fold | None = None
    off = 0.0
    for strength, shift, scale in candidates:
        left = target - weight @ shift
        error = layer_error(layer, (rows - shift) / scale, weight * scale, gelu, left, ends.overall(shift, scale))
        off = error if best is None else off
        if best is None or error < best.error:
            best = Fold(strength, shift, scale, error, off)
        if gelu and off <= enough:
            break
    assert best is not None
    return best


def middle_fold(layer: QuantLinear, rows: Tensor, ends: Ends, gelu: bool = False) -> Fold:
    """One shift for the whole tensor, the middle of its range: asymmetric min-max quantization with zero point 0.

    Args:
        layer: float. rows: (T, K), a sample of its input to judge by. ends: of every row there is. gelu: True where the
        quantizer's zero point does it already.
    """
    zeros, ones = torch.zeros_like(ends.low), torch.ones_like(ends.low)
    shift = zeros + (ends.low.min() + ends.high.max()) / 2
    off = layer_error(layer, rows, layer.weight, gelu, rows @ layer.weight.T, ends.overall(zeros, ones))
    if gelu:
        return Fold(None, zeros, ones, off, off)
    rows = rows - shift
    error = layer_error(layer, rows, layer.weight, gelu, rows @ layer.weight.T, ends.overall(shift, ones))
    return Fold(0.0, shift, ones, error, off)


def _into_layer(layer: QuantLinear, fold: Fold) -> None:
    layer.bias += (layer.weight.double() @ fold.shift.double()).float()
    layer.weight *= fold.scale


def fold_into_norm(norm: Network, layer: QuantLinear, fold: Fold) -> None:
    """Give LayerNorm gamma / r and (beta - c) / r, and the layer after it W diag(r) and b + W c."""
    norm.weight.data = norm.weight.data / fold.scale
    norm.bias.data = (norm.bias.data - fold.shift) / fold.scale
    _into_layer(layer, fold)


def fold_into_values(qkv: QuantLinear, layer: QuantLinear, fold: Fold) -> None:
    """The same through an attention product: the value rows of ``qkv`` become W_v / r and (b_v - c) / r."""
    rows = slice(2 * qkv.out_features // 3, None)
    qkv.weight[rows] /= fold.scale[:, None]
    qkv.bias[rows] = (qkv.bias[rows] - fold.shift) / fold.scale
    _into_layer(layer, fold)


def fold_after_gelu(layer: QuantLinear, fold: Fold) -> None:
    """Multiply the layer's input by 1 / r as part of the layer; nothing is stored when the search said off."""
    if fold.strength is not None:
        layer.premul = 1.0 / fold.scale
        layer.weight *= fold.scale

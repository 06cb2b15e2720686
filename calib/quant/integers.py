"""Softmax, GELU and LayerNorm on integers alone, and the rescaling between them (``+int``): I-ViT's functions.

Li and Gu, "I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference" (ICCV 2023): Shiftmax,
ShiftGELU and I-LayerNorm. What is taken: 2^-f is the straight line 1 - f/2 within each octave; one division a row and
multiplications for the rest; the integer square root by Newton's steps; dyadic multipliers m 2^-e. What is not
(docs/decisions/0020-integer-only.md): the dyadic multiplier itself brings exponents to one fixed-point format in base
2, so that every range below holds whatever the steps are.

All tensors are int64, every result is exact, and every function says what it needs and what it gives. No intermediate
value reaches 2^62. ``toolchain.graph.integer`` writes the same operations as ONNX nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIER_BITS = 31  # of a dyadic multiplier, I-ViT's choice: |m| < 2^31
MOST_SHIFT = 60
MOST_INPUT = 1 << 30  # |x| of a rescaling: m x < 2^61
MOST_OFFSET = 1 << 60
FRACTION = 15  # bits behind the point of an exponent of two
ONE = 1 << (FRACTION + 1)  # what 2^0 is; 2^-q is ONE >> q
OCTAVES = FRACTION + 2  # 2^-17 is 0
PROBABILITY = 127  # the level of a row's largest softmax value
RECIPROCAL, RECIPROCAL_SHIFT = 46, 16  # one over a sum of exponentials, and what the product drops
SIGMOID = 15  # bits of the logistic function: 0 .. 2^15
MOST_HIDDEN = (1 << 15) - 1  # GELU reads 16-bit integers
MOST_RESIDUAL = 1 << 23  # of the residual stream: float32 holds such integers, and sums of two, exactly
MOST_CHANNELS = 1 << 12  # of a LayerNorm
NORM, NORM_SHIFT = 52, 23  # one over a row's norm, and what the product drops
NORM_STEPS = 6  # of Newton's iteration, from within a factor of 2
LOGISTIC = 1.702  # GELU(x) is x times the logistic function of 1.702 x, within 0.021 (Hendrycks and Gimpel, 2016)


def dyadic(ratios: Tensor, most_shift: int = MOST_SHIFT) -> tuple[Tensor, int]:
    """Integers m and one e with ``m 2^-e`` nearest to ``ratios``: |m| < 2^31, 0 <= e <= ``most_shift``.

    The largest m uses all 31 bits where e may be as large as that takes; the others share its e.

    Args:
        ratios: float64, any shape, finite. most_shift: 0..60.
    """
    largest = float(ratios.abs().max())
    shift = MULTIPLIER_BITS - math.frexp(largest)[1] if largest else 0
    shift = min(max(shift, 0), most_shift)
    most = float((1 << MULTIPLIER_BITS) - 1)
    return (ratios * 2.0**shift).round().clamp(-most, most).long(), shift


def rescaled(x: Tensor, multiplier: Tensor, offset: Tensor, shift: int) -> Tensor:
    """``floor((x m + o) / 2^e)``: |x| <= 2^30, |m| < 2^31, |o| <= 2^60. With o = 2^(e-1) it rounds half up."""
    return (x * multiplier + offset) >> shift


def half(shift: int) -> int:
    """What makes a shift by ``shift`` round to nearest."""
    return (1 << shift) >> 1


def exponent(distance: Tensor, multiplier: int, shift: int) -> Tensor:
    """A distance below 0 as an exponent of two with 15 bits behind the point: 0 .. 17 * 2^15.

    Args:
        distance: 0 .. 2^30. multiplier, shift: dyadic, of the distance's unit times log2(e) 2^15.
    """
    return ((distance * multiplier + half(shift)) >> shift).clamp_max(OCTAVES << FRACTION)


def power(exponents: Tensor) -> Tensor:
    """``2^-t`` for t >= 0 with 15 bits behind the point, straight within each octave: 2^16 at 0, 0 .. 2^16."""
    whole = exponents >> FRACTION
    return (ONE - (exponents & ((1 << FRACTION) - 1))) >> whole


def shiftmax(scores: Tensor, multiplier: int, shift: int) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis, (..., T): levels 0 .. 127 with 127 the row's largest, and each row's sum (..., 1).

    The softmax is ``levels / 127 * 2^16 / sum``. Sums are 2^16 .. T 2^16.

    Args:
        scores: |x| <= 2^29. multiplier, shift: dyadic, of the scores' unit times log2(e) 2^15.
    """
    e = power(exponent(scores.amax(-1, keepdim=True) - scores, multiplier, shift))
    return (e * PROBABILITY + ONE // 2) // ONE, e.sum(-1, keepdim=True)


def mixed(products: Tensor, sums: Tensor) -> Tensor:
    """Sums of levels times values, over the row's sum of exponentials: ``products 2^30 / sum``, |result| <= 2^29.

    A level is at most 2 * 127 * e / 2^16, so that |products| <= 128 * 254 * sum / 2^16 for values of 8 bits.
    """
    return (products * ((1 << RECIPROCAL) // sums)) >> RECIPROCAL_SHIFT


def shift_gelu(hidden: Tensor, multiplier: int, shift: int) -> Tensor:
    """GELU of 16-bit integers, times 2^15: |result| <= 2^30.

    ``x sigmoid(1.702 x)``, and sigmoid(|x|) = 1 / (1 + e) with e = exp(-1.702 |x|).

    Args:
        hidden: |x| <= 2^15 - 1. multiplier, shift: dyadic, of the unit of ``hidden`` times 1.702 log2(e) 2^15.
    """
    e = power(exponent(hidden.abs(), multiplier, shift))
    upper = torch.where(hidden >= 0, ONE, e)
    return hidden * ((upper << SIGMOID) // (e + ONE))


def root(values: Tensor) -> Tensor:
    """``floor(sqrt(v))`` of 1 <= v < 2^62.

    Starts at the power of two above the root, at most twice as large. Newton's step takes a ratio r to (r + 1/r) / 2:
    2, 1.25, 1.025, 1.0003, 1 + 5e-8, 1 + 2e-15, 1 + 1e-30. A root is a whole number or at least 2^-32 below one, so the
    floor of the sixth is it; the minimum keeps it there.
    """
    powers = torch.tensor([1 << 2 * i for i in range(31)], device=values.device)
    k = torch.ones_like(values) << (values.unsqueeze(-1) >= powers).sum(-1)
    for _ in range(NORM_STEPS):
        k = torch.minimum(k, (k + values // k) >> 1)
    return k


def normalised(x: Tensor, epsilon: int) -> Tensor:
    """LayerNorm over the last axis, (..., C), without gain and bias: ``d / norm(d) * 2^29``, |result| <= 2^29.

    Times sqrt(C) 2^-29 it has variance 1. The mean is rounded to a whole number: at most half a unit off.

    Args:
        x: |x| <= 2^23, C <= 4096. So the sum of squares is at most 2^60. epsilon: C times LayerNorm's own, in squared
            units: 1 .. 2^60.
    """
    channels = x.shape[-1]
    d = x - torch.div(x.sum(-1, keepdim=True) + channels // 2, channels, rounding_mode="floor")
    norm = root((d * d).sum(-1, keepdim=True) + epsilon)
    return (d * ((1 << NORM) // norm)) >> NORM_SHIFT


def straight_power(t: Tensor) -> Tensor:
    """:func:`power` on real exponents t >= 0, float32: what calibration works with, gradients included."""
    whole = t.floor()
    return (1 - (t - whole) / 2) * torch.exp2(-whole)


def straight_softmax(scores: Tensor) -> Tensor:
    """:func:`shiftmax` on floats, over the last axis."""
    e = straight_power((scores.amax(-1, keepdim=True) - scores) * math.log2(math.e))
    return e / e.sum(-1, keepdim=True)


def straight_gelu(x: Tensor) -> Tensor:
    """:func:`shift_gelu` on floats."""
    e = straight_power(x.abs() * (LOGISTIC * math.log2(math.e)))
    return x * torch.where(x >= 0, 1.0, e) / (1 + e)

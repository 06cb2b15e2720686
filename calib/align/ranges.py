"""Choose an activation quantizer's step: the clipping range of least weighted squared error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calib.align.config import Ranges
from calib.quant.quantizer import levels, quantize

CLIPS_8BIT = (1.0, 0.95, 0.9, 0.85, 0.8)
CLIPS_LOW = tuple(0.93**k for k in range(32))  # down to a tenth


@dataclass(frozen=True)
class Range:
    """A quantizer's numbers: step (> 0, units of the input), zero point (level), and the weighted error it leaves."""

    scale: float
    zero_point: int
    error: float


def clip_grid(bits: int) -> tuple[float, ...]:
    """Fractions of the full range worth trying.

    ViTs lose all accuracy when 8-bit ranges are cut hard (the tails are the massive tokens), so the 8-bit grid
    stays near 1.
    """
    return CLIPS_8BIT if bits >= 8 else CLIPS_LOW


def choose_range(
    rows: Tensor,
    bits: int,
    weight: Tensor,
    ranges: Ranges,
    asymmetric: bool = False,
    ends: tuple[float, float] | None = None,
) -> Range:
    """The range of ``rows`` (T, K) by the rule ``ranges``; the other arguments are those of ``search_range``."""
    if ranges == "lsq":
        return lsq_range(rows, bits, asymmetric, ends)
    return search_range(rows, bits, weight, asymmetric, ends, (1.0,) if ranges == "minmax" else None)


def lsq_range(rows: Tensor, bits: int, asymmetric: bool = False, ends: tuple[float, float] | None = None) -> Range:
    """Where LSQ starts: a step of ``2 mean|x| / sqrt(highest level)`` (Esser et al., ICLR 2020, section 2.1).

    ``error`` is 0: nothing is compared. With ``asymmetric`` the smallest value lies on the lowest level.
    """
    low_level, high_level = levels(bits)
    smallest = float(rows.min()) if ends is None else ends[0]
    scale = max(2 * float(rows.abs().mean(dtype=torch.float64)) / math.sqrt(high_level), 1e-8)
    scale = float(torch.tensor(scale, dtype=torch.float32))
    zero_point = min(round(low_level - min(smallest, 0.0) / scale), high_level) if asymmetric else 0
    return Range(scale, zero_point, 0.0)


def search_range(
    rows: Tensor,
    bits: int,
    weight: Tensor,
    asymmetric: bool = False,
    ends: tuple[float, float] | None = None,
    clips: tuple[float, ...] | None = None,
) -> Range:
    """The step with the least ``sum_j weight_j (x_j - Q(x)_j)^2`` over all rows.

    Args:
        rows: (T, K) float32, the quantizer's input.
        bits: 2..8.
        weight: (K,) >= 0, how much an error in channel j costs: the squared norm of the next layer's column j.
        asymmetric: True lets the zero point differ from 0; only the upper end is then clipped.
        ends: smallest and largest value the quantizer will see, where ``rows`` are only a sample of them.
        clips: fractions of the full range to try; default ``clip_grid(bits)``, (1,) is min-max.
    """
    low_level, high_level = levels(bits)
    smallest, largest = (float(rows.min()), float(rows.max())) if ends is None else ends
    top = max(largest if asymmetric else max(largest, -smallest), 1e-8)
    bottom = min(smallest, 0.0)
    best: Range | None = None
    for clip in clips or clip_grid(bits):
        scale = (top * clip - bottom) / (high_level - low_level) if asymmetric else top * clip / high_level
        scale = float(torch.tensor(scale, dtype=torch.float32))
        zero_point = round(low_level - bottom / scale) if asymmetric else 0
        restored = (quantize(rows, scale, zero_point, bits) - zero_point) * scale
        error = float(((rows - restored).square().sum(0).double() * weight.double()).sum())
        if best is None or error < best.error:
            best = Range(scale, zero_point, error)
    assert best is not None
    return best

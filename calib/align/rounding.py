"""Round weights to the levels they may have (``calib.quant.grid``): the scale of least weighted squared error.

One scale a row of (N, K): (N,). With ``group`` one for every ``group`` neighbouring columns of a row, (N, K / group),
each chosen as if its columns were a row of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calib.quant.grid import weight_grid
from calib.quant.linear import per_weight


def extreme_scale(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """> 0: the scales that put the largest magnitude of every row, or group, of (N, K) at the highest level."""
    return _ungrouped(_extreme(_grouped(weight, group), bits), group)


def _extreme(parts: Tensor, bits: int) -> Tensor:
    """(N, G) from (N, G, K / G)."""
    return parts.abs().amax(-1).clamp_min(1e-8) / weight_grid(bits).high


def _grouped(weight: Tensor, group: int | None) -> Tensor:
    """(..., K) as (..., G, K / G)."""
    return weight.unflatten(-1, (-1, group or weight.shape[-1]))


def _ungrouped(scale: Tensor, group: int | None) -> Tensor:
    """(N, G) as it is, or (N,) where there are no groups."""
    return scale if group else scale[:, 0]


def search_rounding(
    weight: Tensor, bits: int, importance: Tensor, steps: int = 20, group: int | None = None
) -> tuple[Tensor, Tensor]:
    """Integer weights and scales that minimise ``sum_j importance_j (w_j - s q_j)^2`` in every row, or group.

    The scale is searched over ``steps`` fractions of max|w| / highest level, from 1 down to 0.5 (0.8 at 8 bits).

    Args:
        weight: (N, K) float32. bits: 2..8. importance: (K,) >= 0, the mean square of input channel j.

    Returns:
        levels (N, K) int8, scale (N,) or (N, K / group) float32 > 0.
    """
    grid = weight_grid(bits)
    parts, weights = _grouped(weight, group), _grouped(importance, group)
    full = _extreme(parts, bits)
    best_error = torch.full_like(full, float("inf"))
    best_scale = full.clone()
    for fraction in torch.linspace(1.0, 0.8 if bits >= 8 else 0.5, steps).tolist():
        scale = full * fraction
        rounded = grid.nearest(parts / scale[..., None])
        error = ((parts - rounded * scale[..., None]).square() * weights).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    scale = _ungrouped(best_scale, group)
    return nearest(weight, scale, bits), scale


def extreme_rounding(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Integer weights (N, K) int8 and scales, that of every row or group from its largest weight."""
    scale = extreme_scale(weight, bits, group)
    return nearest(weight, scale, bits), scale


def nearest(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The levels (N, K) int8 nearest to ``weight`` (N, K) for given scales, (N,) or (N, K / group)."""
    return weight_grid(bits).nearest(weight / per_weight(scale, weight.shape[1])).to(torch.int8)


def token_importance(rows: Tensor, weighted: bool = True) -> Tensor:
    """Mean square of each input channel after every token is divided by its norm: (K,) from rows (T, K).

    Without the division (``weighted`` False) a few massive tokens own the sum, and rounding serves them at the cost of
    all others.
    """
    if not weighted:
        return rows.square().mean(0)
    return (rows.square() / rows.square().sum(1, keepdim=True).clamp_min(1e-12)).mean(0)


def relative_error(made: Tensor, target: Tensor) -> float:
    """Mean over tokens of ``|made_t - target_t|^2 / |target_t|^2``; (T, N) both."""
    energy = target.square().sum(1)
    return float(((made - target).square().sum(1) / (energy + 1e-6 * energy.mean().clamp_min(1e-20))).mean())

"""Round weights: the per-channel scale of least weighted squared error, symmetric, round half to even."""

from __future__ import annotations

import torch
from torch import Tensor


def weight_limit(bits: int) -> int:
    """Largest weight level, 2^(b-1) - 1; the smallest is its negative."""
    return (1 << (bits - 1)) - 1


def extreme_scale(weight: Tensor, bits: int) -> Tensor:
    """(N,) > 0: the scale that puts the largest weight of every row of (N, K) at the last level."""
    return weight.abs().amax(1).clamp_min(1e-8) / weight_limit(bits)


def search_rounding(weight: Tensor, bits: int, importance: Tensor, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Integer weights and scales that minimise ``sum_j importance_j (w_j - s q_j)^2`` in every row.

    The scale is searched over ``steps`` fractions of max|w| / limit, from 1 down to 0.5 (0.8 at 8 bits).

    Args:
        weight: (N, K) float32. bits: 2..8. importance: (K,) >= 0, the mean square of input channel j.

    Returns:
        levels (N, K) int8 in -limit..limit, scale (N,) float32 > 0.
    """
    limit = weight_limit(bits)
    full = extreme_scale(weight, bits)
    best_error = torch.full_like(full, float("inf"))
    best_scale = full.clone()
    for fraction in torch.linspace(1.0, 0.8 if bits >= 8 else 0.5, steps).tolist():
        scale = full * fraction
        rounded = torch.clamp(torch.round(weight / scale[:, None]), -limit, limit)
        error = ((weight - rounded * scale[:, None]).square() * importance).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    rounded = torch.clamp(torch.round(weight / best_scale[:, None]), -limit, limit)
    return rounded.to(torch.int8), best_scale


def extreme_rounding(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integer weights (N, K) int8 and scales (N,) with the scale of every row from its largest weight."""
    limit, scale = weight_limit(bits), extreme_scale(weight, bits)
    return torch.clamp(torch.round(weight / scale[:, None]), -limit, limit).to(torch.int8), scale


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

"""GPTQ: round a layer's weights one input channel after another, each correcting for those before it.

The error counted is ``trace((W - Q) H (W - Q)^T)``, the output error on inputs with second moment H. Rounding channel j
leaves an error that the channels still unrounded can take up: ``W[:, k] -= (w_j - q_j) / U_jj * U_jk`` with U the upper
Cholesky factor of H^-1 (Frantar et al., "GPTQ", ICLR 2023, section 3.3). Channels go in order of falling H_jj.

Every channel is rounded with the scale of its group, chosen before: groups stay what they are in any order of channels.

Two things differ from the paper. H sums ``x x^T / |x|^2``, so that every token counts alike; a few massive tokens
otherwise own it (docs/decisions/0007-rounding-and-reconstruction.md). And H can be flattened first: synthetic images
use their main directions more than photographs do, and others less (docs/decisions/0029-flattened-moments.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from calib.align.config import DAMPING
from calib.quant.grid import weight_grid
from calib.quant.linear import per_weight

BLOCK = 64


def second_moment(rows: Tensor, weighted: bool = True) -> Tensor:
    """Mean over tokens of ``x x^T / |x|^2`` (of ``x x^T`` where ``weighted`` is False): (K, K) from rows (T, K)."""
    if weighted:
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return rows.T @ rows / rows.shape[0]


def flattened(moment: Tensor, exponent: float) -> Tensor:
    """The moment (K, K) with its eigenvalues to the power of ``exponent``, and the trace it had.

    Args:
        moment: symmetric, positive semi-definite. exponent: 1 leaves it as it is, 0 makes every direction count alike.
    """
    if exponent == 1:
        return moment
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(0)
    powers = torch.where(values > 0, values**exponent, values)
    powers *= values.sum() / powers.sum().clamp_min(1e-300)
    return ((vectors * powers) @ vectors.T).to(moment.dtype)


def damped(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """``moment`` plus ``damping`` times its mean diagonal on the diagonal; channels that are never used get 1."""
    diagonal = moment.diagonal()
    mean = diagonal.mean().clamp_min(1e-12)
    return moment + torch.diag(damping * mean + torch.where(diagonal <= 0, mean, torch.zeros_like(diagonal)))


def gptq(weight: Tensor, scale: Tensor, bits: int, moment: Tensor, damping: float = DAMPING) -> Tensor:
    """Integer weights (N, K) int8 for fixed scales.

    Args:
        weight: (N, K) float32. scale: (N,) or (N, K / group) > 0. bits: 2..8.
        moment: (K, K), symmetric, positive semi-definite, from ``second_moment``.
        damping: added to the diagonal, as a share of its mean.
    """
    grid = weight_grid(bits)
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    inverse = torch.linalg.inv(damped(moment.double(), damping)[order][:, order])
    upper = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True).float()
    left = weight[:, order].clone()
    scales = per_weight(scale, weight.shape[1]).expand_as(weight)[:, order]
    found = torch.empty_like(left)
    for begin in range(0, left.shape[1], BLOCK):
        end = min(begin + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, begin:end])
        for j in range(begin, end):
            found[:, j] = grid.nearest(left[:, j] / scales[:, j])
            error = (left[:, j] - found[:, j] * scales[:, j]) / upper[j, j]
            left[:, j:end] -= torch.outer(error, upper[j, j:end])
            errors[:, j - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    levels = torch.empty_like(found)
    levels[:, order] = found
    return levels.to(torch.int8)

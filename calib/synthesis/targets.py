"""What the network shall say of an image: one class, several, or a soft distribution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_targets(classes: list[list[int]], count: int) -> Tensor:
    """(V, count) float32: the mass spread evenly over each view's classes; one class gives the one-hot row."""
    rows = torch.zeros(len(classes), count)
    for row, mine in zip(rows, classes, strict=True):
        row[torch.tensor(mine)] = 1.0
    return rows / rows.sum(1, keepdim=True)


def soft_targets(
    classes: list[list[int]], count: int, low: float, high: float, rest: float, generator: torch.Generator
) -> Tensor:
    """(V, count) float32, softmax(Z): SPDFQ's soft labels.

    The classes of interest have logits ~ U(low, high), published as U(5, 10); all others ~ N(0, rest^2) (how they
    are distributed is not published: our reconstruction). No other class may pass the highest of interest, so that
    the first class of the target is always an intended one.
    """
    logits = rest * torch.randn(len(classes), count, generator=generator)
    for row, mine in zip(logits, classes, strict=True):
        picked = torch.tensor(mine)
        drawn = low + (high - low) * torch.rand(len(mine), generator=generator)
        row.clamp_(max=float(drawn.max()) - 1.0)
        row[picked] = drawn
    return logits.softmax(1)


def target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """- sum_c T_c log softmax(logits)_c, mean over the views: cross entropy for one-hot rows. A scalar."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()

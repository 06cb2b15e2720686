"""Total variation held near a target (PSAQ-ViT, ECCV 2022): neither flat nor noisy."""

from __future__ import annotations

import math

from torch import Tensor

PUBLISHED_NUMEL = 32 * 3 * 224 * 224


def total_variation(images: Tensor) -> Tensor:
    """Sum of the L2 norms of the four directional differences over the whole batch (B, 3, H, W); a scalar.

    Right, down and both diagonals, none weighted, as in the published code.
    """
    right = images[:, :, :, :-1] - images[:, :, :, 1:]
    down = images[:, :, :-1, :] - images[:, :, 1:, :]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    return right.norm() + down.norm() + falling.norm() + rising.norm()


def scaled_target(target: float, numel: int) -> float:
    """The published target, given for a batch of 32 x 3 x 224 x 224, for another number of values.

    An L2 norm grows with the square root of the number of values (our reconstruction for other sizes).
    """
    return target * math.sqrt(numel / PUBLISHED_NUMEL)

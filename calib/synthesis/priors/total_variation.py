"""Total variation: neither flat nor noisy (PSAQ-ViT, ECCV 2022; MimiQ, AAAI 2025).

Both papers take the L2 norms over a whole batch (of 32 and of 16 images). Here the norms are each image's own, times
the square root of the published batch: the same value when images are alike, and an image's gradient does not depend
on what stands beside it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PUBLISHED_NUMEL = 3 * 224 * 224


def _pairs(x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Views of (C, H, W) that hold each value and its neighbour: to the right, below, and along both diagonals."""
    return (
        (x[:, :, :-1], x[:, :, 1:]),
        (x[:, :-1], x[:, 1:]),
        (x[:, :-1, :-1], x[:, 1:, 1:]),
        (x[:, 1:, :-1], x[:, :-1, 1:]),
    )


class _Norms(torch.autograd.Function):
    """The weighted norms of one image after another, while it is in the cache, with their gradient in the same pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, diagonal: float) -> Tensor:
        slopes = torch.zeros_like(images)
        totals = images.new_zeros(len(images))
        for index, (image, slope) in enumerate(zip(images, slopes, strict=True)):
            for weight, (here, there), (up, down) in zip(
                (1.0, 1.0, diagonal, diagonal), _pairs(image), _pairs(slope), strict=True
            ):
                difference = here - there
                norm = difference.norm()
                totals[index] += weight * norm
                difference *= weight / norm.clamp_min(torch.finfo(images.dtype).tiny)
                up += difference
                down -= difference
        ctx.save_for_backward(slopes)
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * given[0].view(-1, 1, 1, 1), None


def total_variation(images: Tensor, diagonal: float = 1.0) -> Tensor:
    """Sum of the L2 norms of four directional differences, each image's own: (B,) from (B, C, H, W).

    Right, down, and both diagonals times ``diagonal``: 1 in PSAQ-ViT's code, 1 / sqrt(2) in MimiQ's. A norm that is 0
    has the gradient 0.
    """
    norms: Tensor = _Norms.apply(images, diagonal)
    return norms


def distance_to_target(images: Tensor, targets: Tensor, batch: int = 32) -> Tensor:
    """Mean over images of ``| sqrt(batch) TV(x) - target |`` (PSAQ-ViT), a scalar.

    Args:
        images: (B, 3, H, W). targets: (B,), published as U(2500, 3000) for 224 x 224 images; scaled here with the
            square root of the number of pixels, as an L2 norm grows (our reconstruction for other sizes).
    """
    scale = math.sqrt(images[0].numel() / PUBLISHED_NUMEL)
    return (math.sqrt(batch) * total_variation(images) - scale * targets.to(images)).abs().mean()


def plain_variation(images: Tensor, batch: int = 16) -> Tensor:
    """MimiQ's form, ``sqrt(batch) TV(x)`` with diagonals divided by sqrt(2), mean over images; a scalar."""
    return math.sqrt(batch) * total_variation(images, 1 / math.sqrt(2)).mean()

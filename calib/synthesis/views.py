"""What the network is shown at each step instead of the bare images."""

from __future__ import annotations

import torch
from torch import Tensor


def random_roll(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Roll (B, C, H, W) by one offset for the whole batch, each axis uniform in -reach..reach pixels."""
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    return torch.roll(images, shifts=(down, right), dims=(2, 3))


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror the whole batch left to right with probability one half."""
    return images.flip(3) if bool(torch.randint(0, 2, (1,), generator=generator)) else images

"""What the network is shown at each step instead of the bare images. All draws come from the generator given."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# (top, left, height, width) in pixels
Box = tuple[int, int, int, int]


def random_roll(images: Tensor, reach: int, generator: torch.Generator, diagonal: bool = False) -> Tensor:
    """Roll (B, C, H, W) by one offset for the whole batch, each axis uniform in -reach..reach pixels.

    ``diagonal``: both axes by the same number, as PSAQ-ViT's code has it.
    """
    drawn = torch.randint(-reach, reach + 1, (1 if diagonal else 2,), generator=generator).tolist()
    down, right = drawn[0], drawn[-1]
    return torch.roll(images, shifts=(down, right), dims=(2, 3))


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror the whole batch left to right with probability one half."""
    return images.flip(3) if bool(torch.randint(0, 2, (1,), generator=generator)) else images


def colour_offset(images: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Add a constant ~ N(0, spread^2) to every channel of every normalised image (MimiQ's noise augmentation)."""
    offset = spread * torch.randn(images.shape[0], images.shape[1], 1, 1, generator=generator)
    return images + offset.to(images)


def colour_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """(x - m) / s for every channel of every image, m ~ U(-1, 1), s = exp(U(-1, 1)) (MimiQ's colour augmentation)."""
    shape = (images.shape[0], images.shape[1], 1, 1)
    middle = torch.rand(shape, generator=generator) * 2 - 1
    scale = torch.exp(torch.rand(shape, generator=generator) * 2 - 1)
    return (images - middle.to(images)) / scale.to(images)


def easy_to_hard(step: int, steps: int, smallest: float) -> float:
    """Smallest share of the image's area a crop may have at ``step``: from 1 (easy) down to ``smallest`` (hard).

    Linear over the run. DFQ-ViT's schedule is not published: our reconstruction.
    """
    return 1.0 - (1.0 - smallest) * step / max(steps - 1, 1)


def draw_crop(height: int, width: int, smallest: float, ratio: float, generator: torch.Generator) -> Box:
    """A random crop: area uniform in smallest..1 of the image, aspect log-uniform in ratio..1/ratio.

    The rule of the usual random resized crop: ten draws, and the whole image when none fits.
    """
    for _ in range(10):
        first, second, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (smallest + (1 - smallest) * first)
        aspect = math.exp((2 * second - 1) * -math.log(ratio))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide
    return 0, 0, height, width


def resized_crops(images: Tensor, boxes: list[list[Box]]) -> Tensor:
    """Cut the boxes of each image out and enlarge them to the images' size, bilinear: (sum of boxes, C, H, W).

    Args:
        images: (B, C, H, W). boxes: one list an image. The gradient of a crop reaches its own box only.
    """
    size = images.shape[2:]
    made = []
    for image, mine in zip(images.unbind(0), boxes, strict=True):
        for top, left, high, wide in mine:
            part = image[:, top : top + high, left : left + wide]
            made.append(F.interpolate(part[None], size=size, mode="bilinear", align_corners=False))
    return torch.cat(made)


def random_crops(images: Tensor, smallest: float, ratio: float, generator: torch.Generator) -> Tensor:
    """One random resized crop of every image: (B, C, H, W), as in :func:`draw_crop`."""
    height, width = images.shape[2:]
    return resized_crops(images, [[draw_crop(height, width, smallest, ratio, generator)] for _ in images])


def place_patches(
    height: int, width: int, most: int, sides: tuple[float, float], generator: torch.Generator
) -> list[Box]:
    """Between 1 and ``most`` square patches that do not overlap (SPDFQ's multi-semantic reinforcement).

    How many is drawn first; a patch that finds no free place in 50 draws is left out. Their sides are uniform in
    ``sides``, as shares of the image's shorter side (the published ranges are not known: our reconstruction).
    """
    wanted = int(torch.randint(1, most + 1, (1,), generator=generator))
    placed: list[Box] = []
    for _ in range(wanted):
        for _ in range(50):
            size, down, right = torch.rand(3, generator=generator).tolist()
            side = max(1, round(min(height, width) * (sides[0] + (sides[1] - sides[0]) * size)))
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            if all(_apart((top, left, side, side), other) for other in placed):
                placed.append((top, left, side, side))
                break
    return placed


def _apart(one: Box, two: Box) -> bool:
    return (
        one[0] + one[2] <= two[0] or two[0] + two[2] <= one[0] or one[1] + one[3] <= two[1] or two[1] + two[3] <= one[1]
    )

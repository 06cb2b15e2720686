"""A contact sheet of synthetic images, for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


MOST = 32  # images on a sheet


def _columns(count: int) -> int:
    """The least number of columns that makes whole rows and a sheet at most twice as wide as tall; else near square."""
    side = math.ceil(math.sqrt(count))
    whole = (columns for columns in range(side, count + 1) if count % columns == 0 and columns**2 <= 2 * count)
    return next(whole, side)


def contact_sheet(images: Tensor, path: Path, most: int = MOST, tile: int = 112) -> None:
    """Write up to ``most`` of the images (B, 3, H, W), in [0, 1], as one PNG, near square, ``tile`` pixels each."""
    shown = images[:most].float().clamp(0, 1)
    columns = _columns(len(shown))
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * (tile + 2), rows * (tile + 2)), "white")
    for index, image in enumerate(shown):
        pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
        picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BILINEAR)
        sheet.paste(picture, ((index % columns) * (tile + 2) + 1, (index // columns) * (tile + 2) + 1))
    sheet.save(path, format="PNG")

"""A contact sheet of synthetic images, for people."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def contact_sheet(images: Tensor, path: Path, most: int = 32, tile: int = 112) -> None:
    """Write up to ``most`` of the images (B, 3, H, W), in [0, 1], as one PNG, about square, ``tile`` pixels each."""
    shown = images[:most].float().clamp(0, 1)
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * (tile + 2), rows * (tile + 2)), "white")
    for index, image in enumerate(shown):
        pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
        picture = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BILINEAR)
        sheet.paste(picture, ((index % columns) * (tile + 2) + 1, (index // columns) * (tile + 2) + 1))
    sheet.save(path, format="PNG")

"""Real images, for comparison only (``--method real``): pictures of a folder through timm's evaluation transform."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from calib.errors import IntvitError
from calib.models import ModelSpec

SUFFIXES = {".jpg", ".jpeg", ".png"}


def list_images(folder: Path) -> list[Path]:
    """Every picture under ``folder``, sorted; hidden files are left out.

    Raises:
        IntvitError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise IntvitError("no such folder", where=f"--calib-data {folder}", next="give a folder of JPEG or PNG files")
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise IntvitError(
            "the folder holds no pictures",
            where=f"--calib-data {folder}",
            why="looked for " + ", ".join(sorted(SUFFIXES)) + " in it and in every folder below",
            next="give a folder of JPEG or PNG files",
        )
    return found


def load_images(folder: Path, spec: ModelSpec, count: int) -> Tensor:
    """``count`` pictures spread evenly over the sorted list, normalised: (B, 3, H, W) float32.

    Raises:
        IntvitError: a picture cannot be read; it is named.
    """
    transform = create_transform(
        spec.input_size, is_training=False, interpolation=spec.interpolation, mean=spec.mean, std=spec.std,
        crop_pct=spec.crop_pct, crop_mode=spec.crop_mode,
    )  # fmt: skip
    paths = list_images(folder)
    chosen = [paths[i * len(paths) // min(count, len(paths))] for i in range(min(count, len(paths)))]
    out = []
    for path in chosen:
        try:
            with Image.open(path) as picture:
                if picture.mode.startswith(("I", "F")):  # Pillow's modes of 16 and 32 bits
                    raise ValueError("it has more than 8 bits a channel, which conversion would clip to white")
                out.append(transform(picture.convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise IntvitError(
                "cannot read a calibration picture", where=str(path), why=str(error), next="remove or replace the file"
            ) from error
    return torch.stack(out)

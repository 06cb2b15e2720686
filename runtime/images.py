"""From a picture on disk to the network's input, exactly as timm's evaluation transform makes it; no torch."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.errors import IntvitError
from runtime.manifest import Preprocess

SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resized_size(width: int, height: int, rule: Preprocess) -> tuple[int, int]:
    """The (width, height) in pixels a picture is resized to before the crop.

    A square input resizes the short side and cuts the long one down to a whole number, as torchvision's Resize does;
    any other input keeps the aspect ratio and rounds both sides, as timm's ResizeKeepRatio does.
    """
    to_height, to_width = math.floor(rule.height / rule.crop_pct), math.floor(rule.width / rule.crop_pct)
    if to_height != to_width:
        ratio = min(height / to_height, width / to_width)
        return round(width / ratio), round(height / ratio)
    short, long = min(width, height), max(width, height)
    other = int(to_height * long / short)
    return (to_height, other) if width <= height else (other, to_height)


def _crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    if picture.height < height or picture.width < width:  # only by rounding: torchvision pads with black
        padded = Image.new("RGB", (max(width, picture.width), max(height, picture.height)))
        left, top = max(0, (width - picture.width) // 2), max(0, (height - picture.height) // 2)
        padded.paste(picture, (left, top))
        picture = padded
    top = round((picture.height - height) / 2.0)
    left = round((picture.width - width) / 2.0)
    return picture.crop((left, top, left + width, top + height))


def preprocess(picture: Image.Image, rule: Preprocess) -> npt.NDArray[np.float32]:
    """The input tensor of one picture: float32 (3, H, W), normalised.

    Resize the short side to floor(side / crop_pct), crop the centre, scale to [0, 1], subtract the mean, divide by the
    standard deviation, all in float32. The last three are looked up: a byte has 256 values, a picture 150,000 bytes.
    """
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    size = resized_size(picture.width, picture.height, rule)
    if size != picture.size:
        picture = picture.resize(size, _FILTERS[rule.interpolation])
    pixels = np.asarray(_crop(picture, rule.height, rule.width), dtype=np.uint8)
    normalised = np.empty((3, rule.height, rule.width), dtype=np.float32)
    for channel, table in enumerate(_normalised_bytes(rule.mean, rule.std)):
        np.take(table, pixels[..., channel], out=normalised[channel], mode="clip")  # "raise" would copy the output
    return normalised


@functools.cache
def _normalised_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """(v / 255 - mean) / std of every byte v in each channel: float32 (3, 256)."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    centre, spread = (np.asarray(values, dtype=np.float32)[:, None] for values in (mean, std))
    table: npt.NDArray[np.float32] = (scaled - centre) / spread
    return table


def load_image(path: Path, rule: Preprocess) -> npt.NDArray[np.float32]:
    """:func:`preprocess` of a JPEG or PNG file.

    Raises:
        IntvitError: the file is no such picture, is truncated, or is too large to decode safely.
    """
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return preprocess(picture, rule)
    except (OSError, ValueError, SyntaxError, ArithmeticError, EOFError, Image.DecompressionBombError) as error:
        why = str(error) or type(error).__name__
        raise IntvitError("cannot read the image", where=str(path), why=why) from error

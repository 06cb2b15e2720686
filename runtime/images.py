"""From a picture on disk to the network's input, exactly as timm's evaluation transform makes it; no torch."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.errors import IntvitError
from runtime.manifest import Preprocess

SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
_BUFFER = 1 << 20  # most photographs in one read; Pillow's own many small reads cost a quarter of a JPEG's decoding
# What Pillow raises at files it cannot make sense of; MemoryError is a size that only the file's header claims.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, ArithmeticError, EOFError, LookupError, MemoryError),
    *(struct.error, Image.DecompressionBombError),
)
_DEEP = ("I", "F")  # Pillow's modes of 16 and 32 bits
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resized_size(width: int, height: int, rule: Preprocess) -> tuple[int, int]:
    """The (width, height) in pixels a picture is resized to before the crop.

    With crop mode "center", a square input resizes the short side and cuts the long one down to a whole number, as
    torchvision's Resize does; any other input keeps the aspect ratio and rounds both sides, as timm's ResizeKeepRatio
    does, and so does "border", which fits the long side. "squash" resizes both.
    """
    to_height, to_width = math.floor(rule.height / rule.crop_pct), math.floor(rule.width / rule.crop_pct)
    if rule.crop_mode == "squash":
        return to_width, to_height
    if rule.crop_mode == "border" or to_height != to_width:
        choose = max if rule.crop_mode == "border" else min
        ratio = choose(height / to_height, width / to_width)
        return round(width / ratio), round(height / ratio)
    short, long = min(width, height), max(width, height)
    other = int(to_height * long / short)
    return (to_height, other) if width <= height else (other, to_height)


def _crop(picture: Image.Image, rule: Preprocess) -> Image.Image:
    height, width = rule.height, rule.width
    if picture.height < height or picture.width < width:
        # Outside "border" only by rounding, where torchvision pads with black.
        fill = tuple(round(255 * value) for value in rule.mean) if rule.crop_mode == "border" else (0, 0, 0)
        padded = Image.new("RGB", (max(width, picture.width), max(height, picture.height)), fill)
        left, top = max(0, (width - picture.width) // 2), max(0, (height - picture.height) // 2)
        padded.paste(picture, (left, top))
        picture = padded
    top = round((picture.height - height) / 2.0)
    left = round((picture.width - width) / 2.0)
    return picture.crop((left, top, left + width, top + height))


def preprocess(
    picture: Image.Image, rule: Preprocess, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """The input tensor of one picture: float32 (3, H, W), normalised; written into ``out`` where that is given.

    Resize to :func:`resized_size`, crop the centre, scale to [0, 1], subtract the mean, divide by the standard
    deviation. The last three are one product and one sum, within 1e-6 of timm's three steps in float32.
    """
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    size = resized_size(picture.width, picture.height, rule)
    if size != picture.size:
        picture = picture.resize(size, _FILTERS[rule.interpolation])
    bands = _crop(picture, rule).split()
    normalised = np.empty((3, rule.height, rule.width), dtype=np.float32) if out is None else out
    for plane, band, mean, std in zip(normalised, bands, rule.mean, rule.std, strict=True):
        plane[...] = np.asarray(band)
        plane *= np.float32(1 / (255 * std))
        plane -= np.float32(mean / std)
    return normalised


def load_image(path: Path, rule: Preprocess, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """:func:`preprocess` of a JPEG or PNG file.

    Raises:
        IntvitError: the file is no such picture, is truncated, is too large to decode safely, or has more than 8 bits
            a channel.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as file, Image.open(file, formats=_FORMATS) as picture:
            if picture.mode.startswith(_DEEP):
                raise ValueError("it has more than 8 bits a channel, which conversion would clip to white")
            return preprocess(picture, rule, out)
    except _BROKEN as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise IntvitError("cannot read the image", where=str(path), why=why) from error

"""The golden vectors: images, what the fake-quant model answered, and every quantizer's integers on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.errors import IntvitError
from runtime.manifest import Manifest

_NEXT = "build the bundle again"


@dataclass(frozen=True)
class Golden:
    """Reference values for B images.

    Attributes:
        images: float32 (B, 3, H, W), already normalised.
        logits: float32 (B, classes), of the fake-quant model.
        float_logits: float32 (B, classes), of the float model.
        taps: the int8 tensor of each quantizer by ``Tap.golden``; batch first.
    """

    images: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    float_logits: npt.NDArray[np.float32]
    taps: dict[str, npt.NDArray[np.int8]]


def _take(
    tensors: dict[str, npt.NDArray[Any]], name: str, dtype: type, shape: tuple[int | None, ...] | None, where: str
) -> npt.NDArray[Any]:
    value = tensors.get(name)
    if value is None:
        raise IntvitError(f"the golden file has no tensor {name!r}", where=where, next=_NEXT)
    fits = shape is None or (
        value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
    )
    if value.dtype != np.dtype(dtype) or not fits:
        why = f"{value.dtype} {value.shape}, expected {np.dtype(dtype)} {shape or 'of any shape'}"
        raise IntvitError(f"the golden tensor {name!r} is not what it should be", where=where, why=why, next=_NEXT)
    return value


def load_golden(path: Path, manifest: Manifest) -> Golden:
    """Read and check a golden file against its manifest.

    Raises:
        IntvitError: a tensor is missing, of a wrong type or shape, not finite, or outside its quantizer's levels.
    """
    where = str(path)
    try:
        tensors: dict[str, npt.NDArray[Any]] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise IntvitError("cannot read the golden file", where=where, why=str(error), next=_NEXT) from error
    size = manifest.preprocess
    images = _take(tensors, "images", np.float32, (None, size.channels, size.height, size.width), where)
    batch = images.shape[0]
    logits = _take(tensors, "logits", np.float32, (batch, manifest.num_classes), where)
    float_logits = _take(tensors, "float_logits", np.float32, (batch, manifest.num_classes), where)
    for name, value in (("images", images), ("logits", logits), ("float_logits", float_logits)):
        if batch < 1 or not np.isfinite(value).all():
            raise IntvitError(f"the golden tensor {name!r} is empty or not finite", where=where, next=_NEXT)
    taps = {}
    for tap in manifest.taps:
        value = _take(tensors, tap.golden, np.int8, None, where)
        if value.ndim < 1 or value.size == 0 or value.shape[0] % batch != 0:
            why = f"shape {value.shape} for {batch} images: the batch must come first"
            raise IntvitError(f"the golden tensor {tap.golden!r} has a wrong shape", where=where, why=why, next=_NEXT)
        if int(value.min()) < tap.qmin or int(value.max()) > tap.qmax:
            why = f"levels {value.min()}..{value.max()}, the manifest says {tap.qmin}..{tap.qmax}"
            raise IntvitError(f"the golden tensor {tap.golden!r} is out of range", where=where, why=why, next=_NEXT)
        taps[tap.golden] = value
    return Golden(images, logits, float_logits, taps)

"""Weights and quantizers as the kernels read them.

A matrix of levels is (n, k): a row an output channel. The kernels step through k by 64, so k is padded with zero levels
to a multiple of 64: k' in what follows.

INT8 is (n, k') as it is. INT4 is (n, k' / 2) bytes: 16 bytes hold 32 neighbouring levels of a row, byte i the level i
in its low half and the level i + 16 in its high half, both in two's complement. So a 32-bit word of the packed row,
masked, is four neighbouring levels, and shifted and masked the four that are 16 further on: the two operands of the
tensor core's product over 32 channels, each 16 times its value.

A quantizer is four float32: step, shift, the lowest and the highest level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.errors import IntvitError

STEP = 64  # channels of k in one stage of the kernels' pipeline
LEVELS = {4: (-8, 7), 8: (-127, 127)}  # lowest and highest that a kernel takes, by bits


def padded(k: int) -> int:
    """``k`` rounded up to a multiple of :data:`STEP`."""
    return -(-k // STEP) * STEP


def _checked(levels: npt.NDArray[np.int8], allowed: tuple[int, int]) -> npt.NDArray[np.int8]:
    if levels.ndim != 2 or levels.dtype != np.int8 or not levels.size:
        raise IntvitError("weights cannot be packed", why=f"they are {levels.dtype} {levels.shape}, not int8 (n, k)")
    low, high = allowed
    if int(levels.max()) > high or int(levels.min()) < low:
        why = f"levels are {levels.min()}..{levels.max()}, not {low}..{high}"
        raise IntvitError("weights cannot be packed", why=why)
    return np.pad(levels, ((0, 0), (0, padded(levels.shape[1]) - levels.shape[1])))


def pack_int8(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Levels -127..127, int8 (n, k), as int8 (n, k').

    Raises:
        IntvitError: another type, another number of dimensions, or a level out of range.
    """
    return _checked(levels, LEVELS[8])


def pack_int4(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Levels -8..7, int8 (n, k), as uint8 (n, k' / 2).

    Raises:
        IntvitError: another type, another number of dimensions, or a level out of range.
    """
    bits = _checked(levels, LEVELS[4]).view(np.uint8) & np.uint8(15)
    low, high = np.moveaxis(bits.reshape(len(bits), -1, 2, 16), 2, 0)
    packed: npt.NDArray[np.uint8] = (low | high << np.uint8(4)).reshape(len(bits), -1)
    return packed


def unpack_int4(packed: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int8]:
    """What :func:`pack_int4` packed: int8 (n, k)."""
    groups = packed.reshape(len(packed), -1, 1, 16)
    both = np.concatenate([groups << np.uint8(4), groups & np.uint8(0xF0)], axis=2).view(np.int8)
    levels: npt.NDArray[np.int8] = (both >> np.int8(4)).reshape(len(packed), -1)[:, :k]
    return levels


def pack_quantizer(step: float, shift: float = 0.0, levels: tuple[int, int] = (-128, 127)) -> npt.NDArray[np.float32]:
    """What makes levels of y: ``clamp(round((y - shift) / step), *levels)``. float32 (4,).

    Args:
        step: at least 2^-100, at most 2^100: the range of the kernels' division.
        shift: of kernels with a factor; others take y as it is. levels: the lowest and the highest, within int8.

    Raises:
        IntvitError: a number is out of range.
    """
    low, high = levels
    if not (2.0**-100 <= step <= 2.0**100 and np.isfinite(shift) and -128 <= low <= high <= 127):
        why = f"step {step:g}, shift {shift:g}, levels {low}..{high}"
        raise IntvitError("the kernels have no such quantizer", why=why, next="a positive step, levels within int8")
    return np.array([step, shift, low, high], np.float32)

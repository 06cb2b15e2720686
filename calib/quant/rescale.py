"""From integer sums to the levels of the next integer tensor, without a float: dyadic rescaling (``+int``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calib.quant import integers

Limits = tuple[int, int]


class Rescale(nn.Module):
    """A dyadic rescaling of int64 sums to levels: ``clamp(floor((x m + o) / 2^e), low, high)``.

    Buffers:
        multiplier, offset: (N,) or (1,) int64. shift: () int64, -1 until ``fix``. low, high, zero: () int64, ends of
        the levels and the level that stands for 0. step: (N,) or (1,) float32, of a level.
    """

    multiplier: Tensor
    offset: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor
    zero: Tensor
    step: Tensor

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        for name in ("multiplier", "offset"):
            self.register_buffer(name, torch.zeros(channels, dtype=torch.int64))
        for name in ("low", "high", "zero"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("shift", torch.full((), -1, dtype=torch.int64))
        self.register_buffer("step", torch.ones(channels))

    @property
    def settled(self) -> bool:
        """Whether ``fix`` has been called."""
        return int(self.shift) >= 0

    def fix(
        self, unit: Tensor, step: Tensor, limits: Limits, bias: Tensor | None = None, zero: Tensor | int = 0
    ) -> None:
        """From sums in ``unit``, with ``bias`` added, to levels of ``step``; all broadcast to (N,), real numbers > 0.

        Where the offset would not fit beside a multiplier of 31 bits, the multiplier has fewer.

        Args:
            limits: lowest and highest level. zero: the level that stands for 0.
        """
        step = step.double()
        offset = (torch.zeros(()) if bias is None else bias).double() / step + zero
        most = integers.MOST_OFFSET // 2
        room = math.floor(math.log2(most / max(float(offset.abs().max()), 1.0)))
        ratio = (unit.double() / step).broadcast_to(self.multiplier.shape)
        multiplier, shift = integers.dyadic(ratio, min(max(room, 0), integers.MOST_SHIFT))
        self.multiplier.copy_(multiplier)
        self.offset.copy_((offset * 2.0**shift).round().clamp(-most, most).long() + integers.half(shift))
        self.step.copy_(step)
        for name, value in (("shift", shift), ("low", limits[0]), ("high", limits[1]), ("zero", int(zero))):
            getattr(self, name).fill_(value)

    def levels(self, x: Tensor) -> Tensor:
        """(..., N) int64 to levels, int64."""
        found = integers.rescaled(x, self.multiplier, self.offset, int(self.shift))
        return found.clamp(int(self.low), int(self.high))

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) int64 to the float32 numbers its levels stand for."""
        return (self.levels(x) - self.zero).float() * self.step


def whole(x: Tensor, step: Tensor) -> Tensor:
    """The integers that ``x`` stands for, int64: they must be below 2^20, or ``step`` a power of two."""
    return (x / step).round().long()

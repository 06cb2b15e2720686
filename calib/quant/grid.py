"""The levels a weight may have.

8 bits have -127..127: TensorRT wants the range symmetric (its quantization guide, "Explicit quantization"). From 4 to 7
bits every value of two's complement is a level, -2^(b-1) .. 2^(b-1)-1. With 2 or 3 bits, which are stored as INT4 all
the same, the levels are the odd numbers from -(2^b - 1) to 2^b - 1: a quantizer without a level at 0 (mid-rise, not
mid-tread). At 3 bits its error on Gaussian weights is a fifth smaller than that of -3..3
(docs/decisions/0035-every-level.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STORED = 4  # bits that fewer are stored in
SYMMETRIC = 8  # bits whose lowest level is left out


@dataclass(frozen=True)
class WeightGrid:
    """Levels ``spacing * i + offset`` for i in first..last.

    Attributes:
        first, last: ends of i. spacing: 1 or 2, between neighbouring levels. offset: 0 or 1.
    """

    first: int
    last: int
    spacing: int
    offset: int

    @property
    def low(self) -> int:
        """The lowest level."""
        return self.spacing * self.first + self.offset

    @property
    def high(self) -> int:
        """The highest level, > 0; no level is larger in magnitude but for the lowest one, by 1 at most."""
        return self.spacing * self.last + self.offset

    def index(self, values: Tensor) -> Tensor:
        """Where ``values``, in units of the weights' step, lie among the levels: i, not rounded; same shape."""
        return values if self.spacing == 1 else (values - self.offset) / self.spacing

    def level(self, index: Tensor) -> Tensor:
        """The level of whole ``index``; same shape."""
        return index if self.spacing == 1 else index * self.spacing + self.offset

    def nearest(self, values: Tensor) -> Tensor:
        """The levels nearest to ``values``, in units of the weights' step; half-way the even i. Same shape, float."""
        return self.level(torch.clamp(torch.round(self.index(values)), self.first, self.last))


def weight_grid(bits: int) -> WeightGrid:
    """The levels of weights with ``bits`` 2..8."""
    half = 1 << (bits - 1)
    if bits >= SYMMETRIC:
        return WeightGrid(1 - half, half - 1, 1, 0)
    return WeightGrid(-half, half - 1, 1, 0) if bits >= STORED else WeightGrid(-half, half - 1, 2, 1)

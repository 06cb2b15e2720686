"""The activation quantizer: one scale per tensor, an integer zero point, round half to even, saturating.

The arithmetic is ONNX QuantizeLinear's (float32 division, then rounding, then the zero point, then saturation), so that
the fake-quantized model and an engine produce the same integers from the same floats (docs/numerics.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def levels(bits: int) -> tuple[int, int]:
    """Lowest and highest level of a signed ``bits``-bit activation: -2^(b-1) .. 2^(b-1)-1."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def quantize(values: Tensor, scale: Tensor | float, zero_point: Tensor | int, bits: int) -> Tensor:
    """Integers of ``values`` as a float tensor of the same shape, in ``levels(bits)``.

    Args:
        values: float32, any shape. scale: > 0, in units of ``values``. zero_point: the level that stands for 0.
    """
    low, high = levels(bits)
    return torch.clamp(torch.round(values / scale) + zero_point, low, high)


class ActQuantizer(nn.Module):
    """Quantizes the input of one linear layer.

    Buffers:
        scale: () float32, > 0, one LSB. zero_point: () int32, 0 except after GELU, where it is the shift in LSB.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def set(self, scale: float, zero_point: int = 0) -> None:
        """Fix the step and the zero point. Raises ValueError for a step that is not a positive finite number."""
        if not (scale > 0 and scale < float("inf")):
            raise ValueError(f"a quantizer's scale is positive and finite, not {scale}")
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def forward(self, values: Tensor) -> Tensor:
        """Integer levels of ``values`` as float32 (hooks on this module read the taps)."""
        return quantize(values, self.scale, self.zero_point, self.bits)

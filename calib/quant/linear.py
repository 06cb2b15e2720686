"""Linear layers that can be float or quantized, and compute the quantized form in exact integers.

``y = (sum_k (q_k - z) w_k) * (s_x s_w) + b`` with integer q, z and w. The sum is formed in float32 on integers: below
2^24 in magnitude every partial sum is exact, and K * 128 * 127 stays below it up to K = 1032; beyond that only sums
that actually exceed 2^24 would round. This is what an integer GEMM with a float epilogue computes. Where the input
stays float, ``y = sum_k x_k (w_k s_w) + b``: every weight is one float32 product, as DequantizeLinear makes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.quant.quantizer import ActQuantizer
from calib.quant.rescale import Rescale


def per_weight(scale: Tensor, columns: int) -> Tensor:
    """The scale of every weight of (N, K): (N,) becomes (N, 1); (N, K / g), one for every g columns, becomes (N, K)."""
    return scale[:, None] if scale.ndim == 1 else scale.repeat_interleave(columns // scale.shape[1], 1)


class QuantLinear(nn.Module):
    """A linear layer with an explicit input quantizer and explicit integer weights.

    Attributes:
        weight: (N, K) float32, with every fold applied. bias: (N,) float32.
        premul: (K,) float32 or None; the input is multiplied by it first (fc2 only, after GELU).
        in_quant: the input quantizer, or None where activations stay float.
        weight_q: (N, K) int8 levels. weight_scale: (N,) float32, > 0; (N, K / g) with groups.
        group: g, the neighbouring input channels that share a scale; None = all K. Only without an input quantizer.
        quantized: False = float layer, True = integer layer.
        rescale: with ``+int``, what makes integers of the sums; else None, and the sums are scaled in float32.
    """

    weight: Tensor
    bias: Tensor
    premul: Tensor | None
    weight_q: Tensor
    weight_scale: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_bits: int, act_bits: int, group: int | None = None
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        if group is not None and (columns % group or act_bits <= 8):
            raise ValueError(f"no groups of {group} in {columns} channels with {act_bits}-bit activations")
        self.weight_bits = weight_bits
        self.act_bits = act_bits
        self.group = group
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", torch.zeros(rows) if bias is None else bias.detach().clone())
        self.register_buffer("premul", None)
        self.register_buffer("weight_q", torch.zeros(weight.shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows if group is None else (rows, columns // group)))
        self.in_quant = ActQuantizer(act_bits) if act_bits <= 8 else None
        self.quantized = False
        self.rescale: Rescale | None = None

    @property
    def in_features(self) -> int:
        """K, the number of input channels."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """N, the number of output channels."""
        return self.weight.shape[0]

    def scaled(self, x: Tensor) -> Tensor:
        """The quantizer's input: ``x`` (..., K), times ``premul`` where there is one."""
        return x if self.premul is None else x * self.premul

    def set_weights(self, weight_q: Tensor, weight_scale: Tensor) -> None:
        """Fix the integer weights (N, K) and their scales (N,) or (N, K / g)."""
        self.weight_q.copy_(weight_q.to(torch.int8))
        self.weight_scale.copy_(weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), float32."""
        u = self.scaled(x)
        return self.integer_output(u) if self.quantized else F.linear(u, self.weight, self.bias)

    def integer_output(self, u: Tensor) -> Tensor:
        """The quantized layer on its quantizer's input, ``premul`` already applied: (..., K) to (..., N)."""
        if self.in_quant is None:
            return F.linear(u, self.weight_q * per_weight(self.weight_scale, self.in_features), self.bias)
        centred = self.in_quant(u) - self.in_quant.zero_point
        if self.rescale is not None and self.rescale.settled:
            out: Tensor = self.rescale(F.linear(centred.double(), self.weight_q.double()).long())
            return out
        total = F.linear(centred, self.weight_q.to(u.dtype))
        return total * (self.in_quant.scale * self.weight_scale) + self.bias


class QuantPatchConv(QuantLinear):
    """A convolution whose stride is its kernel, as the linear layer over flattened patches that it is.

    A patch is flattened channel first, then row, then column, which is the order of the convolution's weight.
    """

    def __init__(self, conv: nn.Conv2d, weight_bits: int, act_bits: int) -> None:
        super().__init__(conv.weight.flatten(1), conv.bias, weight_bits, act_bits)
        self.patch: tuple[int, int] = (conv.kernel_size[0], conv.kernel_size[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H / patch height, W / patch width)."""
        batch, _, height, width = x.shape
        rows, columns = height // self.patch[0], width // self.patch[1]
        out = super().forward(patches(x, self.patch))
        return out.transpose(1, 2).reshape(batch, -1, rows, columns)


def patches(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Non-overlapping patches of (B, C, H, W), flattened: (B, H/ph * W/pw, C * ph * pw)."""
    batch, channels, height, width = x.shape
    rows, columns = height // patch[0], width // patch[1]
    grid = x.reshape(batch, channels, rows, patch[0], columns, patch[1]).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, rows * columns, channels * patch[0] * patch[1])

"""Attention whose two products, Q K^T and P V, can be float or computed in exact integers (``+attn8``).

Q, K and V have one symmetric step a tensor. P, the softmax output, is divided by the largest value of its row before
its quantizer and the product is multiplied by it afterwards: every row then uses all of 0 .. 127 with zero point 0 and
the fixed step 1/127 (docs/decisions/0012-softmax-by-row.md).

As in a linear layer, sums are formed in float32 on integers, exact below 2^24: always up to 1024 channels a head and
1032 tokens, and beyond where a row of P is not nearly flat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calib.network import Network
from calib.quant.quantizer import ActQuantizer, levels


class QuantProduct(nn.Module):
    """A matrix product of two activations with an explicit quantizer on each, zero points 0.

    Attributes:
        left, right: the quantizers. by_row: divide each row of the left operand by its largest value first, and
        multiply the result by it. quantized: False = float product, True = integer product.
    """

    def __init__(self, bits: int, by_row: bool = False) -> None:
        super().__init__()
        self.left, self.right = ActQuantizer(bits), ActQuantizer(bits)
        self.by_row = by_row
        self.quantized = False
        if by_row:
            self.left.set(1.0 / levels(bits)[1])

    def rows(self, left: Tensor) -> tuple[Tensor, Tensor | None]:
        """The left quantizer's input (..., M, K), and what the result's rows are multiplied by: (..., M, 1) or None."""
        if not self.by_row:
            return left, None
        peak = left.amax(-1, keepdim=True)
        return left / peak, peak

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., M, K) and (..., K, N) to (..., M, N), float32. Rows must have a largest value above 0 if ``by_row``."""
        return self.integer_output(left, right) if self.quantized else left @ right

    def integer_output(self, left: Tensor, right: Tensor) -> Tensor:
        """The quantized product: ``(sum_k l_k r_k) * (s_l * s_r)`` with integer l and r, then times the row's peak."""
        left, peak = self.rows(left)
        out = (self.left(left) @ self.right(right)) * (self.left.scale * self.right.scale)
        return out if peak is None else out * peak


class IntProduct(QuantProduct):
    """A product whose result is the integer sum itself, once ``whole`` says so: float64, exact."""

    def __init__(self, bits: int, by_row: bool = False) -> None:
        super().__init__(bits, by_row)
        self.whole = False

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., M, K) and (..., K, N) to (..., M, N); the operands are what their quantizers read."""
        if not self.whole:
            return super().forward(left, right)
        return self.left(left).double() @ self.right(right).double()


class QuantAttention(nn.Module):
    """A prepared ViT's or Swin's attention with both products as modules, ``qk`` and ``pv``.

    Attributes:
        qkv, proj: the prepared layers, the attention scale already in the query rows. position_bias: what Swin adds to
        the scores, (1, H, T, T); else None.
    """

    position_bias: Tensor | None

    def __init__(self, attn: Network, bits: int) -> None:
        super().__init__()
        self.num_heads: int = attn.num_heads
        self.register_buffer("position_bias", position_bias(attn))
        self.qkv = attn.qkv
        self.qk = QuantProduct(bits)
        self.pv = QuantProduct(bits, by_row=True)
        self.proj = attn.proj

    def forward(self, x: Tensor, mask: Tensor | None = None, **_unused: Any) -> Tensor:
        """(R, T, C) to (R, T, C). ``mask``: Swin's, (W, T, T), for R = images * W windows."""
        rows, tokens, _ = x.shape
        query, key, value = self.qkv(x).reshape(rows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = self.mixed(query, key, value, mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))
        return out

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What each query takes from the values: all (R, H, T, d). ``mask``: as ``forward``'s."""
        scores = self.qk(query, key.transpose(-2, -1))
        if self.position_bias is not None:
            scores = scores + self.position_bias
        if mask is not None:
            scores = windows_added(scores, mask[:, None])
        out: Tensor = self.pv(self.softmax(scores), value)
        return out

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax over the last axis of (R, H, T, T)."""
        return scores.softmax(-1)


def windows_added(scores: Tensor, bias: Tensor) -> Tensor:
    """Scores (R, H, T, T) plus what differs from window to window, (W, 1 or H, T, T), for R = images * W windows."""
    return (scores.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)


# The products of a QuantAttention, and what their operands are called in taps, graphs and reports.
OPERANDS = {"qk": ("query", "key"), "pv": ("softmax", "value")}


@torch.no_grad()
def position_bias(attn: Network) -> Tensor | None:
    """What ``attn``, timm's or ours, adds to its scores: (1, H, T, T), or None where it is no Swin's."""
    if isinstance(attn, QuantAttention):
        return attn.position_bias
    return attn._get_rel_pos_bias() if hasattr(attn, "_get_rel_pos_bias") else None

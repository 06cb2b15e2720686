"""The residual stream in 8-bit integers (``+res8``): a quantizer at every point of it.

Points are after each of a block's two additions, and before the block where a stream begins: in the first one, and in
Swin behind each patch merging. Everyone who reads a point, LayerNorm and the next addition, reads its levels times its
step, times one power of two a channel, which is the same along the whole stream: a few channels of a ViT are a hundred
times larger than the others. Powers of two move through additions without a rounding, so the graphs carry the stream
in these units, and each point is a quantizer with one step (docs/decisions/0030-residual-stream.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from calib.network import Network
from calib.quant.families import Site, block_names, is_swin
from calib.quant.quantizer import ActQuantizer

# A block's points by the kind of the layer that each is right before or after.
BEFORE: Mapping[str, str] = {"qkv": "residual_in"}
AFTER: Mapping[str, str] = {"proj": "residual_attn", "fc2": "residual_mlp"}


class QuantResidual(nn.Module):
    """One point of the residual stream.

    Attributes:
        unit: (C,) float32, the stream's powers of two. quant: the quantizer of ``x / unit``. quantized: False = float
        stream, True = what ``quant`` leaves of it.
    """

    unit: Tensor

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(channels))
        self.quant = ActQuantizer(bits)
        self.quantized = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C) float32."""
        return self.quant(x / self.unit) * self.quant.scale * self.unit if self.quantized else x


class ResidualBlock(Block):
    """timm's ViT block, LayerScale folded, whose stream goes through its points."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return _through_points(self, self.attn, x)


class ResidualSwinBlock(SwinTransformerBlock):
    """timm's Swin block whose stream goes through its points."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return _through_points(self, self._attn, x)


def _through_points(block: Network, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = block.residual_in(x)
    x = block.residual_attn(x + attention(block.norm1(x)))
    out: Tensor = block.residual_mlp(x + block.mlp(block.norm2(x)))
    return out


def install_residual(student: Network, bits: int) -> None:
    """Give every block of ``student``, prepared, its points; it still computes what it did.

    ``residual_in`` passes everything through where no stream begins. The blocks keep all they have and change their
    class, as torch's own ``parametrize`` does.
    """
    for name in block_names(student):
        block = student.get_submodule(name)
        channels = block.norm1.normalized_shape[0]
        block.residual_in = QuantResidual(channels, bits) if name.endswith("blocks.0") else nn.Identity()
        block.residual_attn, block.residual_mlp = QuantResidual(channels, bits), QuantResidual(channels, bits)
        block.__class__ = ResidualSwinBlock if is_swin(student) else ResidualBlock


def stream_of(name: str) -> str:
    """The stream that point ``name`` is of: "" in a ViT, ``layers.0.`` and so on in Swin."""
    return name.rpartition("blocks.")[0]


def point(model: Network, site: Site, beside: Mapping[str, str]) -> tuple[str, QuantResidual] | None:
    """The point of the stream ``beside`` a layer, ``BEFORE`` or ``AFTER`` it, and its name; None where there is none.

    Points are named after their block: ``blocks.0.residual_attn``.
    """
    if site.kind not in beside:
        return None
    block, which = site.name.rsplit(".", 2)[0], beside[site.kind]
    found = getattr(model.get_submodule(block), which, None)
    return (f"{block}.{which}", found) if isinstance(found, QuantResidual) else None

"""A whole ViT block with our kernels, and the same block in float16 as torch runs it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benches.gpu_timing import current_stream
from runtime.kernels.launch import Kernels
from runtime.kernels.packing import pack_int4, pack_int8, pack_quantizer
from runtime.kernels.tiles import Bits

HEAD = 64  # channels of a head in every DeiT
EPSILON = 1e-6


class Block(nn.Module):
    """LayerNorm, qkv, attention, proj, addition, LayerNorm, fc1, GELU, fc2, addition; random weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attention of (batch, tokens, 3 width), as torch's fused kernel does it: (batch, tokens, width)."""
        batch, tokens, wide = qkv.shape
        q, k, v = qkv.reshape(batch, tokens, 3, wide // 3 // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, wide // 3)

    def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The four inputs of linear layers and the output."""
        one = self.norm1(x)
        two = self.attend(self.qkv(one))
        middle = x + self.proj(two)
        three = self.norm2(middle)
        four = F.gelu(self.fc1(three))
        return {"qkv": one, "proj": two, "fc1": three, "fc2": four, "out": middle + self.fc2(four)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width)."""
        return self.stages(x)["out"]


def levels_of(weight: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of (n, k), int8 on the CPU, and the float32 scale of each row: the largest weight is the largest level."""
    weight = weight.detach().float().cpu()
    largest = 7 if bits == 4 else 127
    scale = weight.abs().amax(1).clamp(min=1e-8) / largest
    return (weight / scale[:, None]).round().clamp(-largest, largest).to(torch.int8), scale


def spread(values: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """A factor a channel, a step and a shift for (..., k), as calibration finds them behind GELU (docs/numerics.md).

    The factors, float32 (k,), bring the channels' ranges half way together; the shift is their middle in whole steps.
    """
    low, high = torch.aminmax(values.float().flatten(0, -2), dim=0)
    width = (high - low).clamp(min=1e-6)
    factor = (width.mean() / width).sqrt()
    least, most = float((low * factor).min()), float((high * factor).max())
    step = (most - least) / 254
    return factor, step, step * round((most + least) / 2 / step)


class IntegerBlock:
    """The block with integer linear layers: eight launches of ours, torch's attention and the last addition.

    Args:
        block: what it is made of. x: an input, on the GPU; ranges of activations are those it causes.
    """

    def __init__(self, kernels: Kernels, block: Block, x: torch.Tensor, bits: Bits) -> None:
        self.kernels, self.block = kernels, block
        stages = block.stages(x)
        steps = {name: float(value.abs().max()) / 127 for name, value in stages.items()}
        self.factor, steps["fc2"], shift = spread(stages["fc2"])
        device, batch, tokens = x.device, *x.shape[:2]
        self.packed, self.scale, self.bias = {}, {}, {}
        for name in ("qkv", "proj", "fc1", "fc2"):
            layer: nn.Linear = getattr(block, name)
            levels, scale = levels_of(layer.weight / self.factor if name == "fc2" else layer.weight, bits)
            packed: Any = pack_int4(levels.numpy()) if bits == 4 else pack_int8(levels.numpy())
            self.packed[name] = torch.from_numpy(packed).to(device)
            self.scale[name] = (scale * steps[name]).to(device)
            self.bias[name] = layer.bias.detach().float().contiguous()
            if name == "fc2":
                self.bias[name] = self.bias[name] + (shift * levels.float().sum(1) * scale).to(device)
        self.proj_step = torch.tensor([steps["proj"]], device=device)
        self.quantizer = torch.from_numpy(pack_quantizer(steps["fc2"], shift)).to(device)
        self.norms = [
            (norm.weight.detach().float(), norm.bias.detach().float(), torch.tensor([step, EPSILON], device=device))
            for norm, step in ((block.norm1, steps["qkv"]), (block.norm2, steps["fc1"]))
        ]

        def buffer(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((batch, tokens, width), dtype=dtype, device=device)

        width = x.shape[-1]
        self.narrow, self.wide = buffer(width, torch.int8), buffer(4 * width, torch.int8)
        self.qkv, self.branch, self.middle = (buffer(size * width, torch.float16) for size in (3, 1, 1))

    def _linear(self, name: str, a: torch.Tensor, y: torch.Tensor, **options: Any) -> None:
        scale, bias = self.scale[name], self.bias[name]
        self.kernels.linear(a, self.packed[name], y, scale, bias, stream=current_stream(), **options)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width), float16."""
        stream = current_stream()
        kernels, (first, second) = self.kernels, self.norms
        kernels.layernorm(x, None, *first, None, self.narrow, stream=stream)
        self._linear("qkv", self.narrow, self.qkv)
        attended = self.block.attend(self.qkv).contiguous()
        kernels.quantize(attended, self.proj_step, self.narrow, stream=stream)
        self._linear("proj", self.narrow, self.branch)
        kernels.layernorm(x, self.branch, *second, self.middle, self.narrow, stream=stream)
        self._linear("fc1", self.narrow, self.wide, gelu=True, factor=self.factor, quantizer=self.quantizer)
        self._linear("fc2", self.wide, self.branch)
        return self.middle + self.branch


def signal_to_noise(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Power of the reference over that of the difference, in decibels."""
    reference, other = reference.double(), other.double()
    return float(10 * torch.log10((reference**2).sum() / ((reference - other) ** 2).sum()))

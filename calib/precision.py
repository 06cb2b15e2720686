"""Which arithmetic is fast on this machine."""

from __future__ import annotations

import torch


def has_fast_bf16(device_type: str) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this kind of device."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device_type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())

"""Tiny networks with nothing left at its trivial initial value, so that a part that is forgotten shows."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.models import ModelSpec

VIT_SIDE, SWIN_SIDE = 32, 56


@torch.no_grad()
def trained(model: Any, seed: int = 0) -> Any:
    """Draw every parameter anew, of the sizes that trained networks have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.copy_(1 + 0.3 * normal(module.weight))
            if module.bias is not None:
                module.bias.copy_(0.3 * normal(module.bias))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.copy_(normal(module.weight) / fan_in**0.5)
            if module.bias is not None:
                module.bias.copy_(0.3 * normal(module.bias))
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "pos_embed", "cls_token", "reg_token", "relative_position_bias_table")):
            parameter.copy_(0.7 * normal(parameter))
    return model.eval().requires_grad_(False)


def tiny_vit(seed: int = 0, **kwargs: Any) -> Any:
    """A VisionTransformer of two blocks for 32 x 32 images, 16 patches, 7 classes."""
    plain = {"img_size": VIT_SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
    with torch.random.fork_rng(devices=[]):
        return trained(VisionTransformer(**{**plain, **kwargs}), seed)


def tiny_swin(seed: int = 0, **kwargs: Any) -> Any:
    """A SwinTransformer for 56 x 56 images: four windows of 7 x 7, a shifted block, one merging, 5 classes."""
    plain = {
        "img_size": SWIN_SIDE, "patch_size": 4, "window_size": 7, "embed_dim": 16, "depths": (2, 2),
        "num_heads": (2, 4), "num_classes": 5,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return trained(SwinTransformer(**{**plain, **kwargs}), seed)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 2},
    "avg_fc_norm": {"global_pool": "avg"},
    "avg_without_fc_norm": {"global_pool": "avg", "fc_norm": False},
    "no_class_token": {"global_pool": "avg", "class_token": False},
    "token_fc_norm": {"fc_norm": True},
    "layer_scale": {"init_values": 0.1},
    "pre_norm": {"pre_norm": True},
    "no_qkv_bias": {"qkv_bias": False},
    "no_proj_bias": {"proj_bias": False},
    "no_final_norm": {"final_norm": False},
    "everything": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1, "pre_norm": True, "qkv_bias": False},
}


def spec_of(model: Any, side: int) -> ModelSpec:
    """A spec that fits a tiny network; it cannot be built from its name."""
    ids = tuple(str(index) for index in range(model.num_classes))
    half = (0.5, 0.5, 0.5)
    return ModelSpec("tiny", "tiny", {}, (3, side, side), half, half, "bicubic", 1.0, model.num_classes, ids, ids)


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Normalised noise (count, 3, side, side), the same for the same seed."""
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(seed))


def difference(reference: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value of ``reference``."""
    return float((reference - other).abs().max() / reference.abs().max())


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Energy of ``reference`` over that of the difference, in decibel."""
    with torch.no_grad():
        return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


def complete(error: IntvitError) -> IntvitError:
    """The same error, seen to have all four parts."""
    assert error.what and error.where and error.why and error.next, error.render()
    return error

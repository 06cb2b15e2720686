"""The list of layers is that of timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from benches.kernel_shapes import Shape, every, swin_t, vit

NAMES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
}


@pytest.mark.parametrize("model", NAMES)
def test_layers(model: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(NAMES[model])
    there = {(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)}
    there -= {(network.num_features, 1000)}
    assert {(shape.k, shape.n) for shape in every() if shape.model == model} == there


def test_tokens() -> None:
    assert vit("deit_s")[0] == Shape("deit_s", "qkv", 197, 384, 1152)
    assert sorted({shape.tokens for shape in swin_t()}) == [49, 196, 784, 3136]
    assert Shape("swin_t", "reduction 3", 49, 1536, 768) in swin_t()

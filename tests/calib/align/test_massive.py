"""Layers that one hidden channel dominates are found, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calib.align.massive import massive_layers
from calib.quant.families import is_swin
from calib.quant.surgery import prepare, set_quantized
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit


@torch.no_grad()
def with_massive(model: Any, block: str, channel: int, size: float) -> Any:
    """``model`` with a neuron of ``block`` that answers every token with about ``size``."""
    model.get_submodule(f"{block}.mlp.fc1").bias[channel] = size
    return model


def found(model: Any, ratio: float = 16.0) -> list[dict[str, Any]]:
    network = prepare(model, parse("w4a4"))
    set_quantized(network, False)
    return massive_layers(network, pictures(4, SWIN_SIDE if is_swin(model) else VIT_SIDE), ratio, batch=2)


@pytest.mark.parametrize(
    ("make", "block"), [(tiny_vit, "blocks.1"), (tiny_swin, "layers.1.blocks.0")], ids=["vit", "swin"]
)
def test_the_layer_of_a_massive_neuron_is_named(make: Any, block: str) -> None:
    assert found(make()) == []
    row = found(with_massive(make(), block, 5, 300.0))[0]
    assert row["step"] == "widen" and row["layer"] == f"{block}.mlp.fc2" and row["channel"] == 5
    assert row["largest"] == pytest.approx(300, rel=0.1) and 0.3 < row["median"] < 3


def test_the_ratio_decides() -> None:
    model = with_massive(tiny_vit(), "blocks.1", 5, 300.0)
    (row,) = found(model)
    times = row["largest"] / row["median"]
    assert found(model, times * 1.01) == [] and found(model, times * 0.99) == [row]

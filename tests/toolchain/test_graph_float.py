"""The float32 twin computes what the timm network computes, through ONNX Runtime, at any batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from calib.models import ModelSpec
from tests.toolchain.nets import digits, noise, run, spec_of, swin, vit
from toolchain.graph import float_graph

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": vit,
    "registers": lambda: vit(reg_tokens=3),
    "no_embed_class": lambda: vit(no_embed_class=True, reg_tokens=2),
    "no_class_token": lambda: vit(class_token=False, global_pool="avg"),
    "avg_pool_fc_norm": lambda: vit(global_pool="avg", fc_norm=True),
    "avg_pool_registers": lambda: vit(global_pool="avg", reg_tokens=2),
    "token_pool_fc_norm": lambda: vit(fc_norm=True),
    "layer_scale": lambda: vit(init_values=0.1),
    "pre_norm": lambda: vit(pre_norm=True),
    "no_qkv_bias": lambda: vit(qkv_bias=False),
    "swin": swin,
    "swin_one_shifted_window": lambda: swin(img_size=(16, 16), always_partition=True),
    "swin_no_merging": lambda: swin(depths=(2,), num_heads=(2,)),
}


def relative(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(made - wanted).max() / np.abs(wanted).max())


def hold_equal(module: nn.Module, spec: ModelSpec) -> ir.Model:
    graph = float_graph(module, spec)
    for batch in (1, 3):
        images = noise(spec, batch)
        with torch.no_grad():
            wanted = module(images).numpy()
        made = run(graph, {"images": images})
        assert made.shape == wanted.shape == (batch, spec.num_classes)
        assert relative(made, wanted) < 1e-4
    return graph


@pytest.mark.parametrize("name", NETWORKS)
def test_tiny_networks(name: str) -> None:
    module = NETWORKS[name]()
    hold_equal(module, spec_of(module))


def test_vit_digits() -> None:
    graph = hold_equal(*digits())
    types = {node.op_type for node in graph.graph}
    assert not types & {"QuantizeLinear", "DequantizeLinear"}


def test_shifted_windows_and_mergings_are_really_in_the_tiny_swin() -> None:
    module: nn.Module = swin()
    blocks = [module.get_submodule(f"layers.{i}.blocks.{j}") for i in range(2) for j in range(2)]
    assert [block.shift_size for block in blocks] == [(0, 0), (2, 2), (0, 0), (2, 2)]
    assert [block.attn_mask is not None for block in blocks] == [False, True, False, True]
    assert not isinstance(module.get_submodule("layers.1.downsample"), nn.Identity)


def test_what_a_shifted_window_may_not_see_weighs_exactly_nothing() -> None:
    """timm's -100 leaves weights of 1e-44, subnormal numbers, on which processors take ten times as long and more."""
    module: nn.Module = swin()
    spec = spec_of(module)
    graph = float_graph(module, spec)
    graph.graph.outputs.extend(node.outputs[0] for node in graph.graph if node.op_type == "Softmax")
    session = InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    images = noise(spec, 2)
    with torch.no_grad():
        wanted = module(images).numpy()
    logits, *weights = session.run(None, {"images": images.numpy()})
    assert relative(logits, wanted) < 1e-4
    for i, made in enumerate(weights):
        mask = module.get_submodule(f"layers.{i // 2}.blocks.{i % 2}").attn_mask
        closed = np.zeros((1, 16, 16), bool) if mask is None else mask.numpy() != 0
        found = made.reshape(2, -1, *made.shape[1:])  # (images, windows, heads, T, T)
        assert (mask is None) == (i % 2 == 0)
        assert np.array_equal(found == 0, np.broadcast_to(closed[:, None], found.shape))
        assert found[found > 0].min() >= np.finfo(np.float32).smallest_normal


def test_a_wrong_weight_is_seen() -> None:
    module, spec = digits()
    graph = float_graph(module, spec)
    with torch.no_grad():
        module.get_submodule("blocks.1.mlp.fc1").weight[0, 0] += 1.0
        wanted = module(noise(spec, 2)).numpy()
    assert relative(run(graph, {"images": noise(spec, 2)}), wanted) > 1e-4

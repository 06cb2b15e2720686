"""TensorRT takes every graph we emit for it: parsed and built by TensorRT-RTX, which needs neither a GPU nor a driver.

Runs where ``tensorrt-rtx`` is installed: with the ``dev`` extra on Linux x86-64, or ``pip install 'intvit[rtx]'``.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.toolchain.nets import calibrated, digits, spec_of, swin, vit
from tests.toolchain.rules.engines import refusal
from toolchain.graph import canonical_graph, float_graph

NETWORKS = {
    "vit": vit,
    "vit, averaged, no class token": lambda: vit(global_pool="avg", class_token=False),
    "vit, register tokens": lambda: vit(reg_tokens=1),
    "swin": swin,
}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16"])
@pytest.mark.parametrize("network", ["vit", "swin"])
def test_canonical_graphs_are_built(network: str, scheme: str) -> None:
    module = NETWORKS[network]()
    assert refusal(canonical_graph(calibrated(module, spec_of(module), scheme))) == ""


@pytest.mark.parametrize("network", NETWORKS)
def test_float_twins_are_built(network: str) -> None:
    module = NETWORKS[network]()
    assert refusal(float_graph(module, spec_of(module))) == ""


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_trained_network_is_built(scheme: str) -> None:
    module, spec = digits()
    assert refusal(canonical_graph(calibrated(module, spec, scheme))) == ""


def nonzero_zero_point(graph: ir.Model) -> None:
    """What would come of the ORT dialect's zero points."""
    zero = next(node for node in graph.graph if node.op_type == "QuantizeLinear").inputs[2]
    assert zero is not None and zero.const_value is not None
    zero.const_value = ir.tensor(zero.const_value.numpy() + 1, name=zero.name)


def test_the_test_can_fail() -> None:
    module = vit()
    graph = canonical_graph(calibrated(module, spec_of(module), "w8a8"))
    nonzero_zero_point(graph)
    assert "zero point" in refusal(graph)

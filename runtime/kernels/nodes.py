"""The ONNX nodes that stand for our plugins. The emitter, the linter and both plugins take them from here.

``linear_f16`` and ``linear_i8`` of the domain ``intvit``: one linear layer. Inputs: a int8 (..., k), the output of a
QuantizeLinear that no DequantizeLinear follows; w int8 (n, k' bits / 8), what :mod:`runtime.kernels.packing` packs;
scale float32 (n,), the product of both scales; bias float32 (n,); for ``linear_i8`` step float32 (1,). Attributes:
``plugin_namespace`` and ``plugin_version``, by which TensorRT's parser looks for the plugin; ``aot``, which says that
the kernel goes into the plan (only quickly deployable plugins know it, IPluginV3's creator does not ask for it);
``bits``, 4 or 8; ``gelu``, 0 or 1. Output: (..., n), float16 or int8.
"""

from __future__ import annotations

from typing import Protocol

from runtime.onnx_wire import Graph

NAMESPACE = "intvit"
VERSION = 1
LINEAR_F16, LINEAR_I8 = "linear_f16", "linear_i8"
INPUTS = {LINEAR_F16: ("a", "w", "scale", "bias"), LINEAR_I8: ("a", "w", "scale", "bias", "step")}
K_MULTIPLE = 16  # rows of the activations start at multiples of 16 bytes


class Operator(Protocol):
    """A node of an ONNX graph, whichever library read it."""

    @property
    def domain(self) -> str: ...
    @property
    def op_type(self) -> str: ...


def is_kernel(node: Operator) -> bool:
    """Whether a node is one of ours."""
    return node.domain == NAMESPACE and node.op_type in INPUTS


def uses_kernels(graph: Graph) -> bool:
    """Whether a graph holds such a node."""
    return any(is_kernel(node) for node in graph.nodes)

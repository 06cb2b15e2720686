"""The ONNX nodes that stand for our plugins. The emitter, the linter and both plugins take them from here.

``linear_f16`` and ``linear_i8`` of the domain ``intvit``: one linear layer. Inputs: a int8 (..., k), the output of a
QuantizeLinear that no DequantizeLinear follows; w int8 (n, k' bits / 8), what :mod:`runtime.kernels.packing` packs;
scale float32 (n,), the product of both scales; bias float32 (n,); for ``linear_i8`` factor float32 (n,), by which the
output is multiplied before it is quantized, and quantizer float32 (4,): step, shift, lowest and highest level.
Attributes: ``plugin_namespace`` and ``plugin_version``, by which TensorRT's parser looks for the plugin (the version of
quickly deployable ones is always 1); ``aot``, which says that the kernel goes into the plan (only quickly deployable
plugins know it, IPluginV3's creator does not ask for it); ``bits``, 4 or 8; ``gelu``, 0 or 1; for ``linear_i8``
``affine``, 0 or 1, and 1 behind GELU only: whether there are a factor and a shift. Without, the kernel that leaves them
out is taken, and factor is 1, shift 0. Output: (..., n), float16 or int8.
"""

from __future__ import annotations

from typing import Protocol

from runtime.errors import IntvitError
from runtime.onnx_wire import Graph

NAMESPACE = "intvit"
VERSION = 1
LINEAR_F16, LINEAR_I8 = "linear_f16", "linear_i8"
INPUTS = {LINEAR_F16: ("a", "w", "scale", "bias"), LINEAR_I8: ("a", "w", "scale", "bias", "factor", "quantizer")}
# What chooses the kernel, and the values it may have.
ATTRIBUTES = {
    LINEAR_F16: {"bits": (4, 8), "gelu": (0, 1)},
    LINEAR_I8: {"bits": (4, 8), "gelu": (0, 1), "affine": (0, 1)},
}
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
    """Whether a graph holds such a node.

    Raises:
        IntvitError: one has another number of inputs: another release of this package wrote it.
    """
    found = [node for node in graph.nodes if is_kernel(node)]
    for node in found:
        names = INPUTS[node.op_type]
        if len(node.inputs) != len(names):
            why = f"{node.op_type} has {len(node.inputs)}; here they are {', '.join(names)}"
            raise IntvitError(
                "a node of our kernels has other inputs", where=node.name, why=why, next="build the bundle again"
            )
    return bool(found)

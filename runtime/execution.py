"""What really runs as integer: read from the graph ONNX Runtime's optimizer left, not from what we hoped for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.manifest import Layer
from runtime.onnx_wire import Graph, Node

# Operators that multiply integer matrices (ONNX Runtime's names, and the standard ones).
INTEGER_KERNELS = frozenset(
    {
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "QLinearConv",
        "ConvInteger",
        "NhwcQLinearConv",
    }
)
_FLOAT_KERNELS = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv", "MatMulNBits"})
_SHAPE_ONLY = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Fallback:
    """A float kernel fed by an activation that was quantized: all of the cost of INT8 and none of its speed."""

    node: str
    op_type: str
    tensor: str


@dataclass(frozen=True)
class Execution:
    """What an optimized graph runs.

    Attributes:
        operators: node count by operator type.
        integer_kernels: node count by operator type, integer matrix products only.
        expected: how many layers the manifest calls integer (weights and activations of 8 bits or fewer).
        fallbacks: float products whose left operand was quantized and put back to float.
    """

    operators: dict[str, int]
    integer_kernels: dict[str, int]
    expected: int
    fallbacks: tuple[Fallback, ...]

    @property
    def as_expected(self) -> bool:
        """Every integer layer has an integer kernel and no quantized activation ends in a float product."""
        return sum(self.integer_kernels.values()) >= self.expected and not self.fallbacks


def _dequantized(graph: Graph, name: str) -> Node | None:
    """The DequantizeLinear of an activation that ``name`` comes from, through operators that only move data."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in _SHAPE_ONLY and node.inputs:
        node = graph.producer.get(node.inputs[0])
    if node is None or node.op_type != "DequantizeLinear" or not node.inputs:
        return None
    return None if node.inputs[0] in graph.constant else node


def execution(optimized: Graph, layers: Sequence[Layer]) -> Execution:
    """Judge an optimized graph against the layers of its manifest."""
    operators = optimized.op_histogram()
    fallbacks = []
    for node in optimized.nodes:
        if node.op_type in _FLOAT_KERNELS and node.inputs:
            source = _dequantized(optimized, node.inputs[0])
            if source is not None:
                fallbacks.append(Fallback(node.name, node.op_type, source.inputs[0]))
    return Execution(
        operators=operators,
        integer_kernels={name: count for name, count in operators.items() if name in INTEGER_KERNELS},
        expected=sum(layer.activation_bits <= 8 and layer.weight_bits <= 8 for layer in layers),
        fallbacks=tuple(fallbacks),
    )


def warnings(found: Execution) -> list[str]:
    """One line for everything that does not run as the manifest says; empty when all is well."""
    lines = []
    count = sum(found.integer_kernels.values())
    names = ", ".join(f"{count} {name}" for name, count in found.integer_kernels.items()) or "none"
    if count < found.expected:
        lines.append(f"WARNING: {found.expected} layers should run as integer, found {count} integer kernels ({names})")
    for fallback in found.fallbacks:
        where = f"{fallback.op_type} {fallback.node!r}"
        lines.append(f"WARNING: {where} runs in float on the dequantized {fallback.tensor!r}: slower than float32")
    return lines

"""The OpenVINO dialect: the canonical graph in the form that OpenVINO's CPU plugin turns into oneDNN's int8 primitives.

Signed QDQ with zero point 0 is what it takes as it is: an integer product with the scale, the bias, GELU, the shift and
the next quantizer in its epilogue (docs/decisions/0011-openvino-dialect.md). The epilogue is shorter where fc2's
quantizer has a step of 1, and what attention gives is quantized before it is transposed
(docs/decisions/0022-openvino-epilogue.md). A LayerNorm behind a quantizer (``+res8``) reads its integers. INT4 weights
beside a quantized activation the plugin would decompress for a float product, so a Cast to INT8, folded at load, comes
between. In weight-only schemes the product is float anyway, and INT4 stays packed in memory, but for an odd number of
input channels: OpenVINO 2026.4.1 reads such weights wrongly, so they are stored as INT8.
"""

from __future__ import annotations

import onnx_ir as ir

from runtime.errors import IntvitError
from toolchain.passes import ExpandInt4, NormLevels, QuantizeFirst, UnitStep, WidenInt4
from toolchain.passes.match import Linear, constant
from toolchain.targets import broken_rule


def lower(canonical: ir.Model) -> ir.Model:
    """A copy of ``canonical`` in the OpenVINO dialect.

    Raises:
        IntvitError: the result breaks one of the dialect's rules (a fault of the toolchain, not of the user).
    """
    dialect = canonical.clone()
    WidenInt4(_misread)(dialect)
    if any(node.op_type == "QuantizeLinear" for node in dialect.graph):
        ir.passes.Sequential(QuantizeFirst(_quantized_best), UnitStep(), NormLevels(), ExpandInt4())(dialect)
    check(dialect)
    return dialect


def check(model: ir.Model) -> None:
    """Hold a graph against what OpenVINO runs as integers, and against what ``runtime.parity`` reads from it.

    Raises:
        IntvitError: naming the first node that breaks a rule.
    """
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if zero is None or zero.dtype.name != "int8" or zero.any():
                raise _fault(node, "its zero point is not int8 0; a zero point is written as a shift before it")
        if node.op_type == "MatMul":
            left, right = (_dequantized(value) for value in node.inputs)
            if right is None or right.dtype != ir.DataType.INT4:
                continue
            if left is not None:
                raise _fault(node, "INT4 weights are decompressed for a float product; a Cast to INT8 is missing")
            if _odd(right):
                raise _fault(node, "INT4 weights of an odd number of input channels are read wrongly; INT8 is not")


def _misread(linear: Linear) -> bool:
    """Whether OpenVINO would read INT4 weights of that layer wrongly."""
    return linear.activation is None and _odd(linear.weight.inputs[0])


def _odd(weight: ir.Value | None) -> bool:
    """Whether weights [K, N] are of an odd number of input channels."""
    levels = constant(weight)
    return levels is not None and levels.shape[0] % 2 == 1


def _quantized_best(source: ir.Value) -> bool:
    """Whether a quantizer is best right behind ``source``: the images, or attention that the plugin runs as one kernel.

    Where a Reshape divides the scores (Swin's shifted windows) the second product is a kernel of its own, and a
    quantizer behind it makes a float32 kernel of a bfloat16 one.
    """
    product = source.producer()
    if product is None:
        return source.is_graph_input()
    softmax = product.inputs[0].producer() if product.op_type == "MatMul" and product.inputs[0] is not None else None
    if softmax is None or softmax.op_type != "Softmax" or softmax.inputs[0] is None:
        return False
    scores = softmax.inputs[0].producer()
    return scores is not None and scores.op_type in ("MatMul", "Add")


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """The integers behind ``value``, where a DequantizeLinear makes it."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _fault(node: ir.Node, why: str) -> IntvitError:
    return broken_rule("openvino", node.name or node.op_type, why)

"""Rules on zero points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from toolchain.rules.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Operand,
    foldable,
    given,
    integer_type,
    nodes,
    producer,
    products,
    stored,
    weights,
)
from toolchain.rules.rule import Hit, error, rule

# What OpenVINO multiplies as integers where both factors are computed: their types and zero points.
_LEFT = ((ir.DataType.INT8, 0), (ir.DataType.UINT8, 0))
_RIGHT = ((ir.DataType.INT8, 0), (ir.DataType.UINT8, 128))


@rule(
    "zero-point",
    "a zero point other than 0",
    next="quantize symmetrically; fold a shift into the layer's bias instead (docs/numerics.md)",
    tensorrt=error("the parser refuses the graph: 'Non-zero zero point is not supported' (TensorRT-RTX 1.7.1)"),
)
def zero_point(model: ir.Model) -> Iterator[Hit]:
    """A stored zero point with an element other than 0."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        zero = stored(given(node, 2))
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Hit(node, f"its zero point is {some(zero)}")


@rule(
    "weight-zero-point",
    "weights that are unsigned or have a zero point",
    next="store weights as INT8 or INT4 with zero point 0",
    openvino=error("a float32 kernel ran the layer (brgemm_avx512_f32 instead of _i8; OpenVINO 2026.4.1, CPU)"),
)
def weight_zero_point(model: ir.Model) -> Iterator[Hit]:
    """The weight of an integer product, UINT8 or with a zero point other than 0."""
    for product, _, dequantize in weights(model):
        zero = stored(given(dequantize, 2))
        if not product.integer:
            continue
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Hit(dequantize, f"its zero point is {some(zero)}")
        elif integer_type(dequantize) == ir.DataType.UINT8:
            yield Hit(dequantize, "the weights are UINT8")


@rule(
    "zero-point-missing",
    "a signed quantizer, or a Gemm's weight, without a zero point input",
    next="give the node a zero point of 0 as its third input",
    ort=error("the layer stays a float MatMul or Gemm behind DequantizeLinear (ONNX Runtime 1.31.1)"),
)
def zero_point_missing(model: ir.Model) -> Iterator[Hit]:
    """INT8 by ``output_dtype`` alone in front of a product; a Gemm's weight without its third input."""
    for product in products(model):
        if not product.integer:
            continue
        for side in (product.left, product.right):
            quantize = producer(side.dequantize.inputs[0], QUANTIZE) if side.dequantize is not None else None
            if quantize is not None and given(quantize, 2) is None and integer_type(quantize) == ir.DataType.INT8:
                yield Hit(quantize, "its type comes from output_dtype alone")
    for product, _, dequantize in weights(model):
        if product.node.op_type == "Gemm" and product.integer and given(dequantize, 2) is None:
            yield Hit(dequantize, "the weight of a Gemm has no zero point input")


@rule(
    "zero-point-input",
    "a signed quantizer whose zero point is an input of the model",
    next="take the initializers out of the inputs: only before IR version 4 they had to be among them",
    ort=error(
        "whoever runs the model could give another zero point, so the quantizer is not made unsigned and the layer "
        "stays a float MatMul (ONNX Runtime 1.32.0)"
    ),
)
def zero_point_input(model: ir.Model) -> Iterator[Hit]:
    """An INT8 QuantizeLinear whose zero point the graph's inputs list, from IR version 4 on."""
    for node in nodes(model, QUANTIZE):
        zero = given(node, 2)
        if zero is None or integer_type(node) != ir.DataType.INT8 or foldable(node.inputs[0]):
            continue
        if zero.is_graph_input() and model.ir_version >= 4:
            yield Hit(node, f"its zero point {zero.name} is an input")


@rule(
    "computed-zero-point",
    "two computed factors, quantized with zero points or the second one unsigned",
    next="quantize both as INT8 with zero point 0, or leave the product in float",
    openvino=error("a float32 kernel ran the product (brgemm_avx512_f32 instead of _i8; OpenVINO 2026.4.1, CPU)"),
)
def computed_zero_point(model: ir.Model) -> Iterator[Hit]:
    """A MatMul of two quantized activations other than INT8 or UINT8 with 0 by INT8 with 0 or UINT8 with 128."""
    for product in products(model):
        if product.node.op_type != "MatMul" or not product.integer or product.weight is not None:
            continue
        for side, taken in ((product.left, _LEFT), (product.right, _RIGHT)):
            yield from _not_among(side, taken)


def _not_among(side: Operand, taken: tuple[tuple[ir.DataType, int], ...]) -> Iterator[Hit]:
    assert side.dequantize is not None
    kind, given_zero = integer_type(side.dequantize), given(side.dequantize, 2)
    zero = np.zeros(1) if given_zero is None else stored(given_zero)
    if kind not in (ir.DataType.INT8, ir.DataType.UINT8) or zero is None:
        return
    if not any(kind == accepted and np.all(zero.astype(np.int32) == point) for accepted, point in taken):
        yield Hit(side.dequantize, f"it is {kind.name} with the zero point {some(zero)}")


def some(zero: np.ndarray) -> str:
    """The values of a zero point, or their range."""
    values = sorted({int(value) for value in zero.reshape(-1)})
    return str(values[0]) if len(values) == 1 else f"between {values[0]} and {values[-1]}"

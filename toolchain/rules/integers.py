"""Rules on integer types and zero points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant
from toolchain.rules.graph import (
    DEQUANTIZE,
    FOUR_BITS,
    QUANTIZE,
    block_size,
    foldable,
    given,
    integer_type,
    integers,
    nodes,
    producer,
    products,
    weights,
)
from toolchain.rules.rule import Hit, error, rule, warning

_SIXTEEN = (ir.DataType.INT16, ir.DataType.UINT16)
# What TensorRT-RTX 1.7.1 lets read an INT4 tensor, in the words of its own refusal; shuffles are Reshape and the like.
_READS_INT4 = (DEQUANTIZE, "Concat", "Shape", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


@rule(
    "zero-point",
    "a zero point other than 0",
    next="quantize symmetrically; fold a shift into the layer's bias instead (docs/numerics.md)",
    tensorrt=error("the parser refuses the graph: 'Non-zero zero point is not supported' (TensorRT-RTX 1.7.1)"),
)
def zero_point(model: ir.Model) -> Iterator[Hit]:
    """A stored zero point with an element other than 0."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        zero = constant(given(node, 2))
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Hit(node, f"its zero point is {_some(zero)}")


@rule(
    "uint8",
    "unsigned 8-bit integers",
    next="use INT8 with zero point 0 (quantize_static: QuantType.QInt8 and ActivationSymmetric, WeightSymmetric)",
    tensorrt=error(
        "as activations with zero point 0 they become INT8 with a warning only, and everything above 127 steps "
        "saturates: a softmax quantized at 1/255 clips at 0.5; as weights the parser refuses them (TensorRT-RTX 1.7.1)"
    ),
)
def uint8(model: ir.Model) -> Iterator[Hit]:
    """UINT8 with zero point 0, stored or implied; any other zero point is the finding of ``zero-point``."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        zero = constant(given(node, 2))
        stored = node.op_type == DEQUANTIZE and foldable(node.inputs[0])
        if node.op_type == DEQUANTIZE and not stored:
            continue  # its QuantizeLinear is the finding
        if integer_type(node) == ir.DataType.UINT8 and (zero is None or not np.any(zero)):
            implied = zero is None and node.op_type == QUANTIZE
            yield Hit(node, "it has no zero point, so ONNX makes it UINT8" if implied else "it is UINT8")


@rule(
    "weight-zero-point",
    "weights that are unsigned or have a zero point",
    next="store weights as INT8 or INT4 with zero point 0",
    openvino=error("a float32 kernel ran the layer (brgemm_avx512_f32 instead of _i8; OpenVINO 2026.4.1, CPU)"),
)
def weight_zero_point(model: ir.Model) -> Iterator[Hit]:
    """The weight of an integer product, UINT8 or with a zero point other than 0."""
    for product, _, dequantize in weights(model):
        zero = constant(given(dequantize, 2))
        if not product.integer:
            continue
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Hit(dequantize, f"its zero point is {_some(zero)}")
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
    "int16",
    "16-bit integers",
    next="quantize to 8 bits, or leave the tensor in float",
    ort=error("there is no integer kernel: the layer stays a float MatMul (ONNX Runtime 1.31.1)"),
    openvino=error("a float32 kernel runs the layer; with UINT16 its output was wrong by its own size (2026.4.1)"),
    tensorrt=error("the parser cannot import the type (TensorRT-RTX 1.7.1)"),
)
def int16(model: ir.Model) -> Iterator[Hit]:
    """A quantizer, or stored integers, of 16 bits."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        kind = integer_type(node)
        if kind in _SIXTEEN and (node.op_type == QUANTIZE or foldable(node.inputs[0])):
            yield Hit(node, f"it is {kind.name}")


@rule(
    "uint4",
    "unsigned 4-bit weights",
    next="store them as INT4 with zero point 0",
    tensorrt=error("the parser stops at the initializer: 'Failed to import initializer' (TensorRT-RTX 1.7.1)"),
)
def uint4(model: ir.Model) -> Iterator[Hit]:
    """A UINT4 tensor that is dequantized."""
    for node in nodes(model, DEQUANTIZE):
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT4:
            yield Hit(node, f"{node.inputs[0].name} is UINT4")


@rule(
    "int4-cast",
    "INT4 tensors read by something else than DequantizeLinear",
    next="let DequantizeLinear read the INT4 tensor directly; the canonical graph of a bundle has that form",
    tensorrt=error(
        "the build fails: 'datatype Int4 but is not consumed by ... IDequantizeLayer' (TensorRT-RTX 1.7.1). The Cast "
        "that ONNX Runtime needs is just that"
    ),
)
def int4_cast(model: ir.Model) -> Iterator[Hit]:
    """A node of ONNX's own that TensorRT does not let read INT4; plugins may."""
    for node in nodes(model):
        if node.domain == "" and node.op_type not in _READS_INT4:
            four = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.INT4]
            if four:
                yield Hit(node, f"{node.op_type} reads the INT4 tensor {four[0].name}")


@rule(
    "int4-activations",
    "4-bit weights multiplied with quantized activations",
    next="ort, openvino: put a Cast to INT8 before the DequantizeLinear, which folds at load and is exact; "
    "tensorrt: store the 4-bit values as INT8 where integer arithmetic matters",
    ort=error(
        "without the Cast they are dequantized at every call for a float MatMul, 1.7 times slower than float32 (DeiT-S "
        "125 ms against 73.9; ONNX Runtime 1.31.1)"
    ),
    openvino=error("a float32 kernel runs the layer, integers only with the Cast (OpenVINO 2026.4.1, CPU)"),
    tensorrt=warning(
        "it builds and the weights stay 4-bit, but INT4 is documented as weight-only: count on FP16 arithmetic "
        "(TensorRT-RTX 1.7.1 built it; which kernel runs shows on a GPU only)"
    ),
)
def int4_activations(model: ir.Model) -> Iterator[Hit]:
    """A dequantizer of stored 4-bit integers whose product has a quantized activation."""
    for product, _, dequantize in weights(model):
        kind = integer_type(dequantize)
        if product.integer and kind in FOUR_BITS and not block_size(dequantize):
            yield Hit(dequantize, f"its weights are {kind.name}, the activations it meets are quantized")


@rule(
    "weight-minus-128",
    "INT8 weights that use -128",
    next="clip weights to -127 .. 127; the scale stays",
    tensorrt=warning(
        "TensorRT documents -127 .. 127 for weights (its TensorFlow toolkit: 'TensorRT only supports "
        "G_NARROW_RANGE=True'); "
        "TensorRT-RTX 1.7.1 builds -128 without a word"
    ),
)
def weight_minus_128(model: ir.Model) -> Iterator[Hit]:
    """A dequantized INT8 weight of a product with an element of -128."""
    for _, _, dequantize in weights(model):
        values = integers(dequantize)
        if values is not None and values.dtype == np.int8 and values.size and values.min() == -128:
            yield Hit(dequantize, f"{int((values == -128).sum())} of {values.size} weights are -128")


def _some(zero: np.ndarray) -> str:
    values = sorted({int(value) for value in zero.reshape(-1)})
    return str(values[0]) if len(values) == 1 else f"between {values[0]} and {values[-1]}"

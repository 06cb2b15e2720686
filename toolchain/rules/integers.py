"""Rules on integer types."""

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
    stored,
    weights,
)
from toolchain.rules.rule import Hit, error, rule, warning

_SIXTEEN = (ir.DataType.INT16, ir.DataType.UINT16)
# What TensorRT-RTX 1.7.1 lets read an INT4 tensor, in the words of its own refusal; shuffles are Reshape and the like.
_READS_INT4 = (DEQUANTIZE, "Concat", "Shape", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


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
        if node.op_type == DEQUANTIZE and not foldable(node.inputs[0]):
            continue  # its QuantizeLinear is the finding
        zero = stored(given(node, 2))
        if integer_type(node) == ir.DataType.UINT8 and (zero is None or not np.any(zero)):
            implied = given(node, 2) is None and node.op_type == QUANTIZE
            yield Hit(node, "it has no zero point, so ONNX makes it UINT8" if implied else "it is UINT8")


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
    "integer-scalar",
    "stored signed integers without a dimension that are dequantized",
    next="store the integer with the shape (1,)",
    tensorrt=error(
        "the build fails: 'Quantized constant is only allowed before DQ', though nothing else reads it; of INT4: "
        "'Sub-byte quantization with odd tensor volume' (TensorRT-RTX 1.7.1)"
    ),
)
def integer_scalar(model: ir.Model) -> Iterator[Hit]:
    """A DequantizeLinear of an INT8 or INT4 initializer of no dimension."""
    for node in nodes(model, DEQUANTIZE):
        values, kind = constant(node.inputs[0]), integer_type(node)
        if values is not None and values.ndim == 0 and kind in (ir.DataType.INT8, ir.DataType.INT4):
            yield Hit(node, f"it reads one {kind.name} of no dimension")


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

"""Rules on scales: their type, their axis, and whether they are known before the model runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant
from toolchain.rules.graph import (
    DEQUANTIZE,
    FOUR_BITS,
    QUANTIZE,
    axis_of,
    block_size,
    foldable,
    given,
    integer_type,
    integers,
    nodes,
    products,
    stored,
    vector,
    weights,
)
from toolchain.rules.rule import Hit, error, rule, warning
from toolchain.targets.choices import TENSORRT_BLOCKS


@rule(
    "scale-dtype",
    "scales in another float type than the layer computes in",
    next="give every scale of the layer the compute type (FLOAT16 in an FP16 graph)",
    tensorrt=error(
        "networks are strongly typed: 'IMatrixMultiplyLayer must have same input types', and behind a Cast 'type "
        "mismatch between matmul operand scales' (TensorRT-RTX 1.7.1)"
    ),
)
def scale_dtype(model: ir.Model) -> Iterator[Hit]:
    """A quantizer whose scale is not of its input's type; a product whose two sides have different float types."""
    for node in nodes(model, QUANTIZE):
        theirs, mine = _dtype(given(node, 0)), _dtype(given(node, 1))
        if theirs is not None and mine is not None and theirs != mine:
            yield Hit(node, f"it quantizes {theirs.name} with a scale of {mine.name}")
    for product, weight, dequantize in weights(model):
        other = product.left if weight is product.right else product.right
        mine = _dtype(given(dequantize, 1))
        if other.dequantize is not None:
            theirs = _dtype(given(other.dequantize, 1))
        else:
            theirs = None if weight.cast else other.value.dtype
        if mine is not None and theirs is not None and mine != theirs:
            yield Hit(dequantize, f"its scale is {mine.name}, the other factor {theirs.name}")


@rule(
    "scale-half",
    "FLOAT16 scales of a quantized product",
    next="build the graph in float32 where ONNX Runtime shall run it on a CPU",
    ort=error("no integer kernel has them: the layer stays a float MatMul between Casts (ONNX Runtime 1.32.0)"),
)
def scale_half(model: ir.Model) -> Iterator[Hit]:
    """A product of two factors that are dequantized to FLOAT16."""
    for product in products(model):
        if product.integer and product.left.value.dtype == ir.DataType.FLOAT16:
            yield Hit(product.node, "its factors are dequantized to FLOAT16")


@rule(
    "scale-constant",
    "scales that are computed while the model runs",
    next="calibrate, and store the scale as an initializer",
    openvino=error("a float32 kernel ran the layer (OpenVINO 2026.4.1, CPU)"),
    tensorrt=error(
        "TensorRT documents scales as build-time constants; TensorRT-RTX 1.7.1 takes the graph, so this "
        "shows on the device only"
    ),
)
def scale_constant(model: ir.Model) -> Iterator[Hit]:
    """A scale that depends on an input of the model."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        scale = given(node, 1)
        if scale is not None and not foldable(scale):
            yield Hit(node, f"its scale {scale.name} is no constant")


@rule(
    "scale-positive",
    "activation scales that are zero or negative",
    next="raise a zero scale to a small positive one; move a negative sign into the weights",
    openvino=error("with a negative activation scale the output was wrong by twice its size (OpenVINO 2026.4.1)"),
    tensorrt=error(
        "the parser refuses the graph: 'Scale coefficients must all be positive'; behind an Identity it does not see "
        "them (TensorRT-RTX 1.7.1)"
    ),
)
def scale_positive(model: ir.Model) -> Iterator[Hit]:
    """A stored scale of a computed tensor with an element that is not above 0."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        if not foldable(node.inputs[0]):
            yield from _not_positive(node, stored(given(node, 1)))


@rule(
    "weight-scale-positive",
    "scales of stored integers that are zero or negative, other than 4-bit ones",
    next="raise a zero scale to a small positive one; move a negative sign into the integers",
    tensorrt=error(
        "the parser refuses the graph: 'Scale coefficients must all be positive'; of 4-bit integers it takes such "
        "scales, which ONNX Runtime's MatMulNBitsQuantizer writes (TensorRT-RTX 1.7.1)"
    ),
)
def weight_scale_positive(model: ir.Model) -> Iterator[Hit]:
    """A stored scale of 8-bit weights with an element that is not above 0."""
    for node in nodes(model, QUANTIZE, DEQUANTIZE):
        if foldable(node.inputs[0]) and integer_type(node) not in FOUR_BITS:
            yield from _not_positive(node, constant(given(node, 1)))


@rule(
    "weight-axis",
    "weight scales along an axis that the product sums over",
    next="one scale per output channel: axis 1 of [K, N], axis 0 of a Gemm with transB or of a Conv",
    ort=error(
        "the MatMul is fused all the same and the scales are applied to the output channels: the answer was wrong by "
        "88 % where K = N, and the first run fails where it is not (ONNX Runtime 1.31.1)"
    ),
    openvino=error("a float32 kernel runs the layer (OpenVINO 2026.4.1, CPU)"),
    tensorrt=error("parser and builder take it, and no integer kernel can: the scale differs inside every sum"),
)
def weight_axis(model: ir.Model) -> Iterator[Hit]:
    """A vector of weight scales whose axis is summed over."""
    for product, weight, dequantize in weights(model):
        axis = axis_of(dequantize, dequantize.inputs[0])
        if block_size(dequantize) or not vector(given(dequantize, 1)):
            continue
        if weight.summed is not None and axis in weight.summed:
            yield Hit(dequantize, f"its scales lie along axis {axis}, which {product.node.op_type} sums over")


@rule(
    "activation-per-channel",
    "activations with more than one scale",
    next="one scale per tensor; move per-channel factors into the layer before (docs/numerics.md)",
    ort=error("the layer stays a float MatMul behind DequantizeLinear (ONNX Runtime 1.31.1)"),
    openvino=warning("with one scale a channel a float32 kernel ran the layer (OpenVINO 2026.4.1, CPU)"),
    tensorrt=error("parser and builder take it, and no integer kernel can: the scale differs inside every sum"),
)
def activation_per_channel(model: ir.Model) -> Iterator[Hit]:
    """A quantizer of a computed tensor with a vector of scales."""
    for node in nodes(model, QUANTIZE):
        scale = given(node, 1)
        if vector(scale) and scale is not None and scale.shape is not None and not foldable(node.inputs[0]):
            yield Hit(node, f"it has scales of shape {list(scale.shape)}")


@rule(
    "block-activations",
    "blocks of weights with their own scales, multiplied with quantized activations",
    next="one scale per output channel, or leave the layer's activations in float",
    ort=error(
        "INT8 blocks are fused into MatMulIntegerToFloat, which then fails at the first run; INT4 blocks are "
        "dequantized at every call (ONNX Runtime 1.31.1)"
    ),
    openvino=error("a float32 kernel runs the layer (OpenVINO 2026.4.1, CPU)"),
    tensorrt=error("the build fails: 'MyelinCheckException ... CHECK(is_constant()) failed' (TensorRT-RTX 1.7.1)"),
)
def block_activations(model: ir.Model) -> Iterator[Hit]:
    """A weight with ``block_size`` in a product whose activation is quantized."""
    for product, _, dequantize in weights(model):
        if product.integer and block_size(dequantize):
            yield Hit(dequantize, f"it has a scale for every {block_size(dequantize)} weights")


@rule(
    "block-size",
    "4-bit weights in blocks of another size than 64 or 128",
    next="group 64 or 128 input channels, or store the weights as INT8",
    tensorrt=error(
        "TensorRT documents 64 and 128 alone for INT4 ('Quantization Schemes', TensorRT 11); TensorRT-RTX 1.7.1 builds "
        "others without a word, so this shows on the device only"
    ),
)
def block_size_documented(model: ir.Model) -> Iterator[Hit]:
    """INT4 in blocks of other sizes whose product has a float activation."""
    for product, _, dequantize in weights(model):
        size = block_size(dequantize)
        if size and size not in TENSORRT_BLOCKS and integer_type(dequantize) in FOUR_BITS and not product.integer:
            yield Hit(dequantize, f"it has a scale for every {size} weights")


@rule(
    "block-short",
    "a last block of weights that is shorter than the others",
    next="take a block size that divides the input channels",
    openvino=error("reading the model fails: 'FrontEnd API failed' (OpenVINO 2026.4.1)"),
)
def block_short(model: ir.Model) -> Iterator[Hit]:
    """A weight whose blocks do not divide the axis they lie along."""
    for _, _, dequantize in weights(model):
        size, values = block_size(dequantize), integers(dequantize)
        axis = axis_of(dequantize, dequantize.inputs[0])
        if not size or values is None or axis is None or not 0 <= axis < values.ndim:
            continue
        if values.shape[axis] % size:
            yield Hit(dequantize, f"blocks of {size} in {values.shape[axis]} weights")


def _not_positive(node: ir.Node, scale: np.ndarray | None) -> Iterator[Hit]:
    if scale is not None and scale.size and not np.all(scale.astype(np.float32) > 0):
        yield Hit(node, f"its smallest scale is {float(scale.astype(np.float32).min()):g}")


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype

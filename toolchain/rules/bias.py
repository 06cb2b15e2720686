"""Rules on the bias of a quantized layer."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from toolchain.rules.graph import (
    DEQUANTIZE,
    QUANTIZE,
    foldable,
    given,
    nodes,
    producer,
    products,
    readers,
    vector,
    weights,
)
from toolchain.rules.rule import Hit, error, rule


@rule(
    "bias-int32",
    "INT32 tensors that are dequantized, as quantize_static writes biases",
    next="keep the bias in the layer's float type (quantize_static: extra_options={'QuantizeBias': False})",
    tensorrt=error(
        "the parser refuses the graph: 'input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8'"
    ),
)
def bias_int32(model: ir.Model) -> Iterator[Hit]:
    """A DequantizeLinear of INT32."""
    for node in nodes(model, DEQUANTIZE):
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32:
            yield Hit(node, f"{node.inputs[0].name} is INT32")


@rule(
    "bias-shape",
    "a bias of one or two dimensions on a quantized MatMul",
    next="store the bias as (1, 1, N)",
    ort=error(
        "MatMulAddFusion makes a float Gemm of the layer before the quantizers are looked at: DeiT-S takes 118 to 122 "
        "ms against 27.0 with (1, 1, N), and from ONNX Runtime 1.27 on a signed opset-21 graph does not load "
        "(1.31.1); with a dynamic batch size an input of three dimensions stays integer"
    ),
)
def bias_shape(model: ir.Model) -> Iterator[Hit]:
    """An Add of (N,) or (1, N) that alone reads a product with a stored weight and a left factor it can make 2-D."""
    for product, _, _ in weights(model):
        if product.node.op_type != "MatMul" or not product.integer:
            continue
        rows, users = product.left.value.shape, readers(product.node)
        if rows is not None and len(rows) > 2 and not rows.is_static():
            continue  # a float Gemm needs a Reshape to two dimensions of known sizes
        if len(users) != 1 or users[0].op_type != "Add":
            continue
        other = next((value for value in users[0].inputs if value is not product.node.outputs[0]), None)
        if other is not None and other.shape is not None and len(other.shape) in (1, 2):
            yield Hit(product.node, f"its bias has shape {_text(other.shape)}, not (1, 1, N)")


@rule(
    "gemm-bias",
    "a quantized Gemm with a float bias and a float output",
    next="write the layer as MatMul and Add with a bias of (1, 1, N)",
    ort=error(
        "it stays a float Gemm behind DequantizeLinear: QGemm wants an INT32 bias, which TensorRT refuses, or a "
        "quantized output (ONNX Runtime 1.31.1)"
    ),
)
def gemm_bias(model: ir.Model) -> Iterator[Hit]:
    """A Gemm with two dequantized factors, a bias that is not INT32, and an output that is not quantized."""
    for product in products(model):
        bias = given(product.node, 2)
        if product.node.op_type != "Gemm" or not product.integer or bias is None:
            continue
        stored = producer(bias, DEQUANTIZE)
        source = stored.inputs[0] if stored is not None else None
        users = readers(product.node)
        if (source is None or source.dtype != ir.DataType.INT32) and [user.op_type for user in users] != [QUANTIZE]:
            yield Hit(product.node, f"its bias {bias.name} is float")


@rule(
    "quantized-constant",
    "a float constant that the graph quantizes and adds to, or multiplies with, quantized activations",
    next="leave the constant in float, or store its integers (quantize_static: AddQDQPairToWeight writes this form)",
    openvino=error("compiling fails: 'CALLBACK HAS THROWN: Check 'index < m_inputs.size()'' (OpenVINO 2026.4.1)"),
)
def quantized_constant(model: ir.Model) -> Iterator[Hit]:
    """An Add or Mul of a computed tensor and a float constant of several elements, both quantized."""
    for node in nodes(model, "Add", "Mul"):
        pairs = [producer(value, DEQUANTIZE) for value in node.inputs]
        makers = [producer(pair.inputs[0], QUANTIZE) for pair in pairs if pair is not None]
        quantized = [maker for maker in makers if maker is not None]
        constants = [maker for maker in quantized if foldable(maker.inputs[0]) and vector(maker.inputs[0])]
        if len(quantized) == 2 and len(constants) == 1:
            yield Hit(constants[0], f"it quantizes a constant, which {node.op_type} takes beside activations")


def _text(shape: ir.Shape) -> str:
    sizes = [str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"

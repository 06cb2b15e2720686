"""Rules on operators: those a target does not know, those that end on slow kernels, those an opset does not have."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from runtime.kernels.nodes import is_kernel
from toolchain.rules.graph import DEQUANTIZE, FOUR_BITS, QUANTIZE, block_size, given, integer_type, nodes, vector
from toolchain.rules.rule import Hit, error, rule, warning

MICROSOFT = "com.microsoft"
# ONNX operators for which TensorRT-RTX 1.7.1's OnnxParser.supports_operator says no; a test asks the parser again.
_TENSORRT = """
AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear ImageDecoder MatMulInteger
MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement
OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase
SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
StringSplit SwiGLU TfIdfVectorizer Unique
"""
# com.microsoft operators without a conversion rule in OpenVINO 2026.4.1, found by having it read a graph of each.
_OPENVINO = """
BiasSplitGelu DecoderMaskedMultiHeadAttention GemmFastGelu MatMulBnb4 MatMulFpQ4 MoE MulInteger MultiHeadAttention
NhwcConv PackedAttention QAttention QEmbedLayerNormalization QGemm QLinearGlobalAveragePool QMoE QOrderedMatMul
ReduceSumInteger
"""
TENSORRT_UNKNOWN = frozenset(_TENSORRT.split())
OPENVINO_UNKNOWN = frozenset(_OPENVINO.split())
# Integer products by operator: where the two factors stand, and where their zero points do.
_FACTORS = {
    "QLinearMatMul": ((0, 2), (3, 5)),
    "QGemm": ((0, 2), (3, 5)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
}
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@rule(
    "tensorrt-operator",
    "operators TensorRT does not have: QLinearMatMul, MatMulInteger, DynamicQuantizeLinear, com.microsoft's, ...",
    next="export QDQ (quantize_static: QuantFormat.QDQ) with ONNX's own operators",
    tensorrt=error("the parser refuses the graph, or looks for a plugin of that name (TensorRT-RTX 1.7.1)"),
)
def tensorrt_operator(model: ir.Model) -> Iterator[Hit]:
    """An operator without an importer. TensorRT's parser goes by the name alone and ignores the domain."""
    for node in nodes(model):
        known = is_kernel(node) or (node.op_type in _first_opsets() and node.op_type not in TENSORRT_UNKNOWN)
        if node.op_type == "MatMulNBits":
            value = given(node, 0)
            known = value is not None and value.dtype == ir.DataType.FLOAT16
        if node.domain == MICROSOFT and node.op_type == "Attention":
            known = False  # taken for ONNX's Attention, whose inputs are others
        if not known:
            yield Hit(node, f"{_full(node)} has no importer")


@rule(
    "openvino-operator",
    "operators OpenVINO does not read",
    next="export QDQ with ONNX's own operators",
    openvino=error("reading the model fails: 'No conversion rule found' (OpenVINO 2026.4.1)"),
)
def openvino_operator(model: ir.Model) -> Iterator[Hit]:
    """A com.microsoft operator without a conversion rule, a foreign domain, a QLinearMatMul with scales per channel."""
    for node in nodes(model):
        if node.op_type == "QLinearMatMul" and vector(given(node, 4)):
            yield Hit(node, "QLinearMatMul has a scale per channel")
        elif node.domain == MICROSOFT and node.op_type in OPENVINO_UNKNOWN:
            yield Hit(node, f"{_full(node)} has no conversion rule")
        elif node.domain not in ("", MICROSOFT):
            yield Hit(node, f"{_full(node)} is of another domain")


@rule(
    "openvino-float-operator",
    "integer operators that OpenVINO computes in float",
    next="export QDQ: QuantizeLinear and DequantizeLinear around a MatMul or Conv",
    openvino=warning("a float32 kernel ran them (OpenVINO 2026.4.1, CPU)"),
)
def openvino_float_operator(model: ir.Model) -> Iterator[Hit]:
    """MatMulInteger, ConvInteger, DynamicQuantizeMatMul."""
    for node in nodes(model, "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"):
        yield Hit(node, f"{_full(node)} runs in float")


@rule(
    "s8s8-operator",
    "hand-written integer products of signed with signed",
    next="write QDQ, which ONNX Runtime turns into its unsigned-signed kernels, or make the activations UINT8",
    ort=error(
        "on x86 they run on a kernel 5 times slower than float32: 30.9 ms against 6.2, QDQ 0.84 (197 x 768 x 3072, "
        "ONNX Runtime 1.31.1); ARM has the kernel"
    ),
)
def s8s8_operator(model: ir.Model) -> Iterator[Hit]:
    """QLinearMatMul, QGemm, MatMulInteger or MatMulIntegerToFloat of INT8 and INT8."""
    return _integer_products(model, ir.DataType.INT8)


@rule(
    "u8u8-operator",
    "hand-written integer products of unsigned with unsigned",
    next="store the weights as INT8",
    ort=warning("about as slow as float32: 5.5 ms against 6.2, unsigned-signed 0.70 (ONNX Runtime 1.31.1, x86)"),
)
def u8u8_operator(model: ir.Model) -> Iterator[Hit]:
    """QLinearMatMul, QGemm, MatMulInteger or MatMulIntegerToFloat of UINT8 and UINT8."""
    return _integer_products(model, ir.DataType.UINT8)


@rule(
    "opset",
    "operators, types or attributes younger than the opset the model declares",
    next="export with the opset named, or convert: onnx.version_converter.convert_version",
    ort=error("the model does not load: INVALID_GRAPH (ONNX Runtime 1.31.1)"),
    openvino=error("axis and block_size are refused where the opset lacks them; types may pass (OpenVINO 2026.4.1)"),
    tensorrt=warning(
        "TensorRT-RTX 1.7.1's parser takes them, but ONNX does not define the graph: other readers will not"
    ),
)
def opset(model: ir.Model) -> Iterator[Hit]:
    """A node of ONNX's own domain that its opset does not have in that form."""
    declared = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    for node in nodes(model):
        if declared is None or node.domain not in ("", "ai.onnx"):
            continue
        needed, what = max(_needs(node))
        if needed > declared:
            yield Hit(node, f"{what} needs opset {needed}, the model declares {declared}")


def _needs(node: ir.Node) -> Iterator[tuple[int, str]]:
    yield _first_opsets().get(node.op_type, 1), node.op_type
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    scale = given(node, 1)
    if "axis" in node.attributes:
        yield 13, "a scale per axis"
    if scale is not None and scale.dtype in _HALVES:
        yield 19, f"a scale of {scale.dtype.name}"
    kind = integer_type(node)
    if kind in FOUR_BITS or kind in (ir.DataType.INT16, ir.DataType.UINT16):
        yield 21, kind.name
    if block_size(node):
        yield 21, "block_size"
    if "output_dtype" in node.attributes:
        yield (21 if node.op_type == QUANTIZE else 23), "output_dtype"


@functools.lru_cache(maxsize=1)
def _first_opsets() -> dict[str, int]:
    """The opset in which each operator of ONNX's own domain appeared."""
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    return first


def _integer_products(model: ir.Model, both: ir.DataType) -> Iterator[Hit]:
    for node in nodes(model, *_FACTORS):
        types = [_type(node, value, zero) for value, zero in _FACTORS[node.op_type]]
        if types == [both, both]:
            yield Hit(node, f"{_full(node)} multiplies {both.name} with {both.name}")


def _type(node: ir.Node, index: int, zero_index: int) -> ir.DataType | None:
    value, zero = given(node, index), given(node, zero_index)
    known = value.dtype if value is not None else None
    return known if known is not None else (zero.dtype if zero is not None else None)


def _full(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type

"""Rules on operators: those a target does not know, those that end on slow kernels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from runtime.kernels.nodes import is_kernel
from toolchain.rules.graph import given, nodes, vector
from toolchain.rules.opsets import history
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
# ONNX operators without a conversion rule in OpenVINO 2026.4.1, found by having it read a file of each. Those on
# sequences are not among them: it refuses one alone, and converts what makes a sequence with what takes it apart.
_OPENVINO = """
Bernoulli BitCast CausalConvWithState CumProd DeformConv Det ImageDecoder LinearAttention MaxUnpool MelWeightMatrix
Optional OptionalGetElement OptionalHasElement RegexFullMatch StringConcat StringNormalizer StringSplit SwiGLU
TensorScatter TfIdfVectorizer
"""
# What it does read of other domains, found in the same way.
_OPENVINO_MICROSOFT = """
Attention BiasAdd BiasGelu BifurcationDetector DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul
EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul GatherBlockQuantized GatherND Gelu GroupNorm
GroupQueryAttention MatMulIntegerToFloat MatMulNBits MultiHeadAttention Pad QLinearAdd QLinearAveragePool QLinearConcat
QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Range
RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization Trilu
"""
_OPENVINO_OWN = """
DeformableConv2D DetectionOutput ExperimentalDetectronDetectionOutput
ExperimentalDetectronGenerateProposalsSingleImage ExperimentalDetectronGroupNorm
ExperimentalDetectronPriorGridGenerator ExperimentalDetectronROIFeatureExtractor ExperimentalDetectronTopKROIs
FakeQuantize GenerateProposals GroupNorm Normalize PriorBox PriorBoxClustered Swish
"""
TENSORRT_UNKNOWN = frozenset(_TENSORRT.split())
OPENVINO_UNKNOWN = frozenset(_OPENVINO.split())
OPENVINO_READS = {
    MICROSOFT: frozenset(_OPENVINO_MICROSOFT.split()),
    "org.openvinotoolkit": frozenset(_OPENVINO_OWN.split()),
    "ai.onnx.ml": frozenset(["Normalizer"]),
    "mmdeploy": frozenset(["NMSRotated"]),
}
# Integer products by operator: where the two factors stand, and where their zero points do.
_FACTORS = {
    "QLinearMatMul": ((0, 2), (3, 5)),
    "QGemm": ((0, 2), (3, 5)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
}


@rule(
    "tensorrt-operator",
    "operators TensorRT does not have: QLinearMatMul, MatMulInteger, DynamicQuantizeLinear, com.microsoft's, ...",
    next="export QDQ (quantize_static: QuantFormat.QDQ) with ONNX's own operators",
    tensorrt=error("the parser refuses the graph, or looks for a plugin of that name (TensorRT-RTX 1.7.1)"),
)
def tensorrt_operator(model: ir.Model) -> Iterator[Hit]:
    """An operator without an importer. TensorRT's parser goes by the name alone and ignores the domain."""
    for node in nodes(model):
        known = is_kernel(node) or (node.op_type in history() and node.op_type not in TENSORRT_UNKNOWN)
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
    """An operator without a conversion rule, whose domain ever it is of; a QLinearMatMul with scales per channel."""
    for node in nodes(model):
        if node.op_type == "QLinearMatMul" and vector(given(node, 4)):
            yield Hit(node, "QLinearMatMul has a scale per channel")
        elif node.op_type in OPENVINO_UNKNOWN if node.domain == "" else not _read(node):
            yield Hit(node, f"{_full(node)} has no conversion rule")


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


def _read(node: ir.Node) -> bool:
    return node.op_type in OPENVINO_READS.get(node.domain, ())


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

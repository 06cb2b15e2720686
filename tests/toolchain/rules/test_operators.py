"""Operators and opsets: each fault planted, found, and held against the engines."""

from __future__ import annotations

import onnx
import pytest

from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    BLOCKS,
    GOOD,
    HEAD,
    SIZE,
    WEIGHT_ONLY,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    half,
    numbers,
    other_type,
    same,
    swap,
)
from toolchain.rules import findings
from toolchain.rules.operators import TENSORRT_UNKNOWN

MICROSOFT = HEAD.replace('"" : 21', '"" : 21, "com.microsoft" : 1')
INPUT, TWO = f"float[1, 5, {SIZE}] x", f"float[5, {SIZE}] x"


def graph(nodes: str, initializers: str, source: str = INPUT) -> str:
    """Nodes from x to y, both of ``source``'s shape."""
    return f"{MICROSOFT}\ng ({source}) => ({source[:-1]}y)\n<{initializers}>\n{{\n  {nodes}\n}}"


def integers(activation: str, weight: str) -> str:
    """Scales, zero points and weights of a product in operator form."""
    low = 0 if weight == "uint8" else -7
    return (
        f"float s = {{0.02}}, float t = {{0.01}}, {activation} z = {{0}}, {weight} wz = {{0}}, "
        f"{weight}[{SIZE}, {SIZE}] w = {numbers(SIZE * SIZE, low)}"
    )


QUANTIZE = "xq = QuantizeLinear(x, s, z)"
MATMUL_INTEGER = f"{QUANTIZE}\n  [op] i = MatMulInteger(xq, w, z, wz)\n  f = Cast<to = 1>(i)\n  y = Mul(f, s)"
QLINEAR = f"{QUANTIZE}\n  [op] yq = QLinearMatMul(xq, s, z, w, t, wz, s, z)\n  y = DequantizeLinear(yq, s, z)"
TO_FLOAT = f"{QUANTIZE}\n  [op] y = com.microsoft.MatMulIntegerToFloat(xq, w, s, t, z, wz)"
QGEMM = f"{QUANTIZE}\n  [op] y = com.microsoft.QGemm(xq, s, z, w, t, wz)"
DYNAMIC = "[op] y = com.microsoft.DynamicQuantizeMatMul(x, w, t)"
VECTOR_SCALE = (
    ("float t = {0.01}", f"float[{SIZE}] t = {same(SIZE, '0.01')}"),
    ("int8 wz = {0}", f"int8[{SIZE}] wz = {same(SIZE, '0')}"),
)
NBITS = "[op] y = com.microsoft.MatMulNBits<K = 32, N = 32, bits = 4, block_size = 32>(x, w, t)"
NBITS_WEIGHT = f"uint8[{SIZE}, 1, 16] w = {numbers(16 * SIZE, 0, 200)}, float[{SIZE}] t = {same(SIZE, '0.01')}"
ATTENTION = "[op] y = com.microsoft.Attention<num_heads = 4>(x, w, b)"
ATTENTION_WEIGHT = (
    f"float[{SIZE}, {3 * SIZE}] w = {same(3 * SIZE * SIZE, '0.01')}, float[{3 * SIZE}] b = {same(3 * SIZE, '0.0')}"
)
NO_PLUGIN = "Plugin not found"
CASES = [
    Case(
        "QLinearMatMul",
        "tensorrt-operator",
        "op",
        graph(QLINEAR, integers("int8", "int8")),
        tensorrt="false",
        openvino="integer",
    ),
    Case(
        "com.microsoft",
        "tensorrt-operator",
        "op",
        graph(TO_FLOAT, integers("int8", "int8")),
        tensorrt=NO_PLUGIN,
        openvino="integer",
    ),
    Case(
        "of nobody",
        "tensorrt-operator",
        "op",
        graph("[op] y = Nothing(x)", "float d = {0.0}"),
        valid=False,
        tensorrt=NO_PLUGIN,
    ),
    Case("FP32 MatMulNBits", "tensorrt-operator", "op", graph(NBITS, NBITS_WEIGHT), tensorrt="must be FP16"),
    Case(
        "ONNX Runtime's Attention",
        "tensorrt-operator",
        "op",
        graph(ATTENTION, ATTENTION_WEIGHT),
        tensorrt="Q, K, and V inputs must have the same number of dimensions",
    ),
    Case(
        "QGemm",
        "openvino-operator",
        "op",
        graph(QGEMM, integers("uint8", "int8"), TWO),
        onnxruntime="integer",
        openvino="refused",
    ),
    Case(
        "QLinearMatMul per channel",
        "openvino-operator",
        "op",
        swap(graph(QLINEAR, integers("uint8", "int8")), *VECTOR_SCALE),
        onnxruntime="integer",
        openvino="refused",
    ),
    Case(
        "another domain",
        "openvino-operator",
        "op",
        swap(graph("[op] y = own.Gelu(x)", "float d = {0.0}"), ('"com.microsoft"', '"own"')),
        openvino="refused",
    ),
    Case(
        "MatMulInteger",
        "openvino-float-operator",
        "op",
        graph(MATMUL_INTEGER, integers("uint8", "int8")),
        onnxruntime="integer",
        openvino="float",
    ),
    Case(
        "DynamicQuantizeMatMul",
        "openvino-float-operator",
        "op",
        graph(DYNAMIC, integers("uint8", "int8")),
        onnxruntime="integer",
        openvino="float",
    ),
    Case("MatMulInteger", "s8s8-operator", "op", graph(MATMUL_INTEGER, integers("int8", "int8"))),
    Case("QLinearMatMul", "s8s8-operator", "op", graph(QLINEAR, integers("int8", "int8"))),
    Case("MatMulIntegerToFloat", "s8s8-operator", "op", graph(TO_FLOAT, integers("int8", "int8"))),
    Case("QGemm", "s8s8-operator", "op", graph(QGEMM, integers("int8", "int8"), TWO)),
    Case("MatMulInteger", "u8u8-operator", "op", graph(MATMUL_INTEGER, integers("uint8", "uint8"))),
    Case("QGemm", "u8u8-operator", "op", graph(QGEMM, integers("uint8", "uint8"), TWO)),
    Case(
        "INT4",
        "opset",
        "weight",
        swap(WEIGHT_ONLY, other_type("int4"), ('"" : 21', '"" : 20')),
        valid=False,
        tensorrt="",
        onnxruntime="refused",
    ),
    Case(
        "blocks",
        "opset",
        "weight",
        swap(WEIGHT_ONLY, *BLOCKS, ('"" : 21', '"" : 19')),
        valid=False,
        tensorrt="",
        onnxruntime="refused",
        openvino="refused",
    ),
    Case(
        "FP16 scales",
        "opset",
        "weight",
        swap(WEIGHT_ONLY, ('"" : 21', '"" : 18')),
        valid=False,
        change=half(),
        tensorrt="",
        onnxruntime="refused",
    ),
    Case(
        "a scale per axis",
        "opset",
        "weight",
        swap(GOOD, ('"" : 21', '"" : 12')),
        valid=False,
        tensorrt="",
        onnxruntime="refused",
        openvino="refused",
    ),
    Case(
        "Gelu",
        "opset",
        "op",
        swap(graph("[op] y = Gelu(x)", "float d = {0.0}"), ('"" : 21', '"" : 19')),
        valid=False,
        tensorrt="",
        onnxruntime="refused",
    ),
]


@cases(CASES)
def test_the_planted_fault_is_the_only_finding(case: Case) -> None:
    check_found(case)


@cases(CASES, "tensorrt")
def test_tensorrt_does_what_the_rule_says(case: Case) -> None:
    check_tensorrt(case)


@cases(CASES, "onnxruntime")
def test_onnxruntime_does_what_the_rule_says(case: Case) -> None:
    check_onnxruntime(case)


@cases(CASES, "openvino")
def test_openvino_does_what_the_rule_says(case: Case) -> None:
    check_openvino(case)


@pytest.mark.parametrize("nodes", [MATMUL_INTEGER, QLINEAR, TO_FLOAT])
def test_unsigned_activations_with_signed_weights_are_what_onnxruntime_wants(nodes: str) -> None:
    assert findings(Case("", "", "", graph(nodes, integers("uint8", "int8"))).model(), "ort") == []


def test_onnxs_own_nodes_under_the_domain_of_onnxruntime_are_taken() -> None:
    """quantize_static writes com.microsoft.QuantizeLinear below opset 21; TensorRT's parser goes by the name."""
    text = swap(GOOD, (HEAD, MICROSOFT), ("= QuantizeLinear", "= com.microsoft.QuantizeLinear"))
    model = Case("", "", "", text).model()
    assert findings(model, "tensorrt") == []
    assert engines.tensorrt(model) == ""


def test_matmulnbits_in_fp16_is_taken() -> None:
    assert findings(Case("", "", "", graph(NBITS, NBITS_WEIGHT), change=half()).model(), "tensorrt") == []


def test_the_list_of_unknown_operators_is_the_parsers() -> None:
    engines.need("tensorrt-rtx")
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in names if not parser.supports_operator(name)} == TENSORRT_UNKNOWN & names

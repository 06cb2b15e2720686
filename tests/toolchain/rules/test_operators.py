"""Operators: each fault planted, found, and held against the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.toolchain.nets import serialized
from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    GOOD,
    HEAD,
    SIZE,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    half,
    numbers,
    same,
    swap,
)
from toolchain.rules import findings
from toolchain.rules.operators import OPENVINO_READS, OPENVINO_UNKNOWN, TENSORRT_UNKNOWN

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
        "of ONNX's own",
        "openvino-operator",
        "op",
        graph("[op] y = Bernoulli(x)", "float d = {0.0}"),
        openvino="refused",
    ),
    Case(
        "ONNX Runtime's, of float",
        "openvino-operator",
        "op",
        graph("[op] y = com.microsoft.Inverse(x)", "float d = {0.0}", f"float[{SIZE}, {SIZE}] x"),
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


@pytest.mark.parametrize(
    ("node", "domain", "initializers"),
    [
        (ATTENTION, "com.microsoft", ATTENTION_WEIGHT),
        ("[op] y = com.microsoft.MultiHeadAttention<num_heads = 4>(x, x, x)", "com.microsoft", "float d = {0.0}"),
        (
            "[op] y = org.openvinotoolkit.FakeQuantize<levels = 256>(x, a, b, a, b)",
            "org.openvinotoolkit",
            "float[1] a = {0.0}, float[1] b = {1.0}",
        ),
    ],
)
def test_what_openvino_reads_of_other_domains_is_no_finding(node: str, domain: str, initializers: str) -> None:
    model = Case("", "", "", swap(graph(node, initializers), ('"com.microsoft"', f'"{domain}"'))).model()
    assert findings(model, "openvino") == []
    engines.need("openvino")
    import openvino as ov

    ov.Core().compile_model(ov.Core().read_model(serialized(model)), "CPU")


def unread(path: Path, op_type: str, domain: str, inputs: int, attributes: dict[str, Any], opset: int = 21) -> bool:
    """Whether OpenVINO has no conversion rule for an operator; what it takes for a part of a sequence aside.

    It reads from ``path``: from memory it takes some that ONNX defines by other operators.
    """
    import openvino as ov

    names = [f"x{index}" for index in range(inputs)]
    node = onnx.helper.make_node(op_type, names, ["y"], domain=domain, **attributes)
    edges = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3, 4, 4]) for name in names]
    end = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = {"": opset} | ({domain: 1} if domain else {})
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", edges, [end]),
        opset_imports=[onnx.helper.make_opsetid(name, version) for name, version in opsets.items()],
        ir_version=10,
    )
    onnx.save(model, path)
    try:
        ov.Core().read_model(path)
    except RuntimeError as error:
        said = str(error).partition("No conversion rule found for operations: ")[2]
        return bool(said) and not said.startswith("util::")
    return False


def test_the_list_of_onnxs_operators_without_a_rule_is_openvinos(tmp_path: Path) -> None:
    engines.need("openvino")
    path, kinds = tmp_path / "model.onnx", onnx.defs.OpSchema.AttrType
    some = {kinds.INT: 1, kinds.FLOAT: 1.0, kinds.STRING: "a", kinds.INTS: [1], kinds.FLOATS: [1.0]}
    found = set()
    for schema in onnx.defs.get_all_schemas():
        if schema.domain or schema.deprecated or schema.name in ("If", "Loop", "Scan", "SequenceMap", "Constant"):
            continue
        needed = {name: some[a.type] for name, a in schema.attributes.items() if a.required and a.type in some}
        if unread(path, schema.name, "", schema.min_input, needed, max(schema.since_version, 21)):
            found.add(schema.name)
    assert found == OPENVINO_UNKNOWN


@pytest.mark.parametrize("domain", OPENVINO_READS)
def test_the_lists_of_what_openvino_reads_are_openvinos(domain: str, tmp_path: Path) -> None:
    engines.need("openvino")
    engines.need("onnxruntime")
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = {schema.name for schema in state.get_all_operator_schema() if schema.domain in ("", domain)}
    path = tmp_path / "model.onnx"
    names |= {"Nothing", *OPENVINO_READS[domain]}
    assert {name for name in names if not unread(path, name, domain, 4, {})} == OPENVINO_READS[domain]


def test_the_list_of_unknown_operators_is_the_parsers() -> None:
    engines.need("tensorrt-rtx")
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in names if not parser.supports_operator(name)} == TENSORRT_UNKNOWN & names

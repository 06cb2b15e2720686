"""Integer types: each fault planted, found, and held against the engines."""

from __future__ import annotations

from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    DEQUANTIZE_WEIGHT,
    GOOD,
    HEAD,
    MINUS_128,
    SIZE,
    WEIGHT,
    WEIGHT_ONLY,
    ZERO,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    other_type,
    same,
    steps,
    swap,
)
from toolchain.rules import findings

AS_INT8 = "[cast] w8 = Cast<to = 3>(w)\n  [weight] wd = DequantizeLinear<axis = 1>(w8, ws)"
SCALAR = f"""{HEAD}
g (float[1, 5, {SIZE}] x) => (float[1, 5, {SIZE}] y)
<int8 h = {{64}}, float s = {{0.0078}}>
{{
  [scalar] d = DequantizeLinear(h, s)
  y = Mul(x, d)
}}"""
CASES = [
    Case(
        "an activation with zero point 0, silently INT8",
        "uint8",
        "quantize",
        swap(GOOD, (ZERO, "uint8 z = {0}")),
        tensorrt="",
        onnxruntime="integer",
        openvino="integer",
    ),
    Case(
        "a quantizer without a zero point",
        "uint8",
        "quantize",
        swap(GOOD, ("(x, s, z)", "(x, s)"), ("(xq, s, z)", "(xq, s)")),
        tensorrt="",
        onnxruntime="integer",
    ),
    Case(
        "weights",
        "uint8",
        "weight",
        swap(GOOD, other_type("uint8", 0, 200)),
        targets=["tensorrt"],
        tensorrt="unsupported input type of UINT8",
    ),
    Case(
        "signed",
        "int16",
        "quantize",
        swap(GOOD, (ZERO, "int16 z = {0}")),
        tensorrt="Failed to import initializer",
        onnxruntime="float",
        openvino="float",
    ),
    Case("unsigned", "int16", "quantize", swap(GOOD, (ZERO, "uint16 z = {0}")), onnxruntime="float", openvino="wrong"),
    Case(
        "weights",
        "uint4",
        "weight",
        swap(WEIGHT_ONLY, other_type("uint4", 0, 15)),
        tensorrt="Failed to import initializer",
    ),
    Case(
        "as ONNX Runtime wants it",
        "int4-cast",
        "cast",
        swap(GOOD, other_type("int4"), (DEQUANTIZE_WEIGHT, AS_INT8)),
        tensorrt="datatype Int4 but is not consumed by",
        onnxruntime="integer",
        openvino="integer",
    ),
    Case(
        "signed",
        "int4-activations",
        "weight",
        swap(GOOD, other_type("int4")),
        tensorrt="",
        onnxruntime="float",
        openvino="float",
    ),
    Case(
        "unsigned",
        "int4-activations",
        "weight",
        swap(GOOD, other_type("uint4", 0, 15)),
        targets=["ort", "openvino"],
        onnxruntime="float",
        openvino="float",
    ),
    Case(
        "one weight",
        "weight-minus-128",
        "weight",
        swap(GOOD, MINUS_128),
        tensorrt="",
    ),
    Case(
        "INT8",
        "integer-scalar",
        "scalar",
        SCALAR,
        tensorrt="Quantized constant (h) is only allowed before DQ",
    ),
    Case(
        "INT4",
        "integer-scalar",
        "scalar",
        swap(SCALAR, ("int8 h = {64}", "int4 h = {4}")),
        tensorrt="Sub-byte quantization with odd tensor volume",
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


def test_unsigned_4_bit_weights_meet_the_rule_on_quantized_activations_too() -> None:
    model = Case("", "", "", swap(GOOD, other_type("uint4", 0, 15))).model()
    assert {finding.rule for finding in findings(model, "tensorrt")} == {"uint4", "int4-activations"}


def test_float_weights_that_are_quantized_in_the_graph_are_weights_too() -> None:
    """NNCF writes some weights so: QuantizeLinear and DequantizeLinear on a float initializer."""
    text = swap(
        GOOD,
        (WEIGHT, f"float[{SIZE}, {SIZE}] w = {steps(SIZE * SIZE)}, int8[{SIZE}] wz = {same(SIZE, '0')}"),
        (
            DEQUANTIZE_WEIGHT,
            "wq = QuantizeLinear<axis = 1>(w, ws, wz)\n  [weight] wd = DequantizeLinear<axis = 0>(wq, ws, wz)",
        ),
    )
    (finding,) = findings(Case("", "", "", text).model(), "ort")
    assert (finding.rule, finding.node) == ("weight-axis", "weight")


def test_an_integer_of_one_dimension_is_no_scalar() -> None:
    model = Case("", "", "", swap(SCALAR, ("int8 h", "int8[1] h"))).model()
    assert findings(model, "tensorrt") == []
    assert engines.tensorrt(model) == ""

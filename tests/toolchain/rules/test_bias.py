"""Biases: each fault planted, found, and held against the engines."""

from __future__ import annotations

import pytest

from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    BIAS,
    GEMM,
    GOOD,
    SIZE,
    SUM,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    same,
    steps,
    swap,
)
from toolchain.rules import findings

INTEGER_BIAS = (
    (BIAS, f"int32[{SIZE}] b = {same(SIZE, '40')}, float[{SIZE}] bs = {steps(SIZE, 0.0001)}"),
    (SUM, "[bias] bd = DequantizeLinear<axis = 0>(b, bs)\n  [sum] y = Add(p, bd)"),
)
GEMM_BIAS = (f"int8[{SIZE}] wz", f"float[{SIZE}] c = {same(SIZE, '0.5')}, int8[{SIZE}] wz"), ("(xd, wd)", "(xd, wd, c)")
QUANTIZED_BIAS = swap(
    GOOD,
    (
        SUM,
        "pq = QuantizeLinear(p, s, z)\n  pd = DequantizeLinear(pq, s, z)\n  [constant] bq = QuantizeLinear(b, s, z)"
        "\n  bd = DequantizeLinear(bq, s, z)\n  [sum] y = Add(pd, bd)",
    ),
)
CASES = [
    Case(
        "of a MatMul",
        "bias-int32",
        "bias",
        swap(GOOD, *INTEGER_BIAS),
        tensorrt="has type Int32 but must have type",
        onnxruntime="refused",
        openvino="integer",
    ),
    Case(
        "one dimension",
        "bias-shape",
        "product",
        swap(GOOD, (BIAS, BIAS.replace("1, 1, ", ""))),
        tensorrt="",
        onnxruntime="refused",
        openvino="integer",
    ),
    Case(
        "one dimension, opset 17",
        "bias-shape",
        "product",
        swap(GOOD, (BIAS, BIAS.replace("1, 1, ", "")), ('"" : 21', '"" : 17')),
        onnxruntime="float",
    ),
    Case(
        "first summand",
        "bias-shape",
        "product",
        swap(GOOD, (BIAS, BIAS.replace("1, 1, ", "")), ("Add(p, b)", "Add(b, p)")),
    ),
    Case(
        "two dimensions of two",
        "bias-shape",
        "product",
        swap(GOOD, (BIAS, BIAS.replace("1, 1, ", "1, ")), ("float[1, 5,", "float[5,")),
        onnxruntime="float",
    ),
    Case("added", "quantized-constant", "constant", QUANTIZED_BIAS, openvino="refused"),
    Case(
        "multiplied", "quantized-constant", "constant", swap(QUANTIZED_BIAS, ("Add(pd", "Mul(pd")), openvino="refused"
    ),
    Case("float", "gemm-bias", "product", swap(GEMM, *GEMM_BIAS), tensorrt="", onnxruntime="float", openvino="integer"),
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


def test_a_gemm_whose_output_is_quantized_keeps_its_float_bias() -> None:
    text = swap(GEMM, *GEMM_BIAS, ("y = Gemm(xd, wd, c)", "p = Gemm(xd, wd, c)\n  pq = QuantizeLinear(p, s, z)"
                "\n  y = DequantizeLinear(pq, s, z)"))  # fmt: skip
    model = Case("", "", "", text).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "integer"


def test_a_residual_of_three_dimensions_is_no_bias() -> None:
    text = swap(GOOD, (f", {BIAS}", ""), (f"{SIZE}] x)", f"{SIZE}] x, float[1, 5, {SIZE}] b)"))
    model = Case("", "", "", text).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "integer"


@pytest.mark.parametrize("zero", ["int8 z = {0}", "uint8 z = {100}"])
def test_a_bias_of_one_dimension_is_no_fault_where_the_batch_is_dynamic(zero: str) -> None:
    """MatMulAddFusion reshapes the input to two dimensions, and leaves one alone whose sizes it does not know."""
    text = swap(GOOD, (BIAS, BIAS.replace("1, 1, ", "")), ("float[1, 5,", "float[n, 5,"), ("int8 z = {0}", zero))
    model = Case("", "", "", text).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "integer"


def test_two_dimensions_become_a_float_gemm_whatever_the_batch() -> None:
    text = swap(GOOD, (BIAS, BIAS.replace("1, 1, ", "1, ")), ("float[1, 5,", "float[n,"))
    model = Case("", "", "", text).model()
    assert [finding.rule for finding in findings(model, "ort")] == ["bias-shape"]
    assert engines.onnxruntime(model) == "float"


@pytest.mark.parametrize(
    "change",
    [
        (BIAS, "float b = {0.5}"),
        ("pd = DequantizeLinear(pq, s, z)", "pd = Identity(p)"),
        ("[constant] bq = QuantizeLinear(b, s, z)", f"bq = Constant<value = int8[1, 1, {SIZE}] {same(SIZE, '9')}>()"),
    ],
    ids=["one number", "beside float", "stored integers"],
)
def test_other_constants_beside_activations_compile_in_openvino(change: tuple[str, str]) -> None:
    model = Case("", "", "", swap(QUANTIZED_BIAS, change)).model()
    assert "quantized-constant" not in {finding.rule for finding in findings(model, "openvino")}
    assert engines.openvino(model) == "integer"

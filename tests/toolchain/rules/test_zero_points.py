"""Zero points: each fault planted, found, and held against the engines."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    GEMM,
    GOOD,
    HEAD,
    SCALE,
    SIZE,
    ZERO,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    other_type,
    same,
    swap,
)
from toolchain.rules import findings

COMPUTED = f"""{HEAD}
g (float[1, 64, 64] x, float[1, 64, 64] k) => (float[1, 64, 64] y)
<{SCALE}, {ZERO}, int8 v = {{0}}>
{{
  xq = QuantizeLinear(x, s, z)
  [first] xd = DequantizeLinear(xq, s, z)
  kq = QuantizeLinear(k, s, v)
  [second] kd = DequantizeLinear(kq, s, v)
  y = MatMul(xd, kd)
}}"""


def an_input(name: str) -> Callable[[ir.Model], None]:
    """A change that lists an initializer among the model's inputs, as IR version 3 wanted it."""

    def change(model: ir.Model) -> None:
        model.graph.inputs.append(model.graph.initializers[name])

    return change


CASES = [
    Case(
        "an activation's",
        "zero-point",
        "quantize",
        swap(GOOD, (ZERO, f"{ZERO}, int8 z3 = {{3}}"), ("(x, s, z)", "(x, s, z3)")),
        tensorrt="Non-zero zero point is not supported",
    ),
    Case(
        "a weight's",
        "zero-point",
        "weight",
        swap(GOOD, (ZERO, f"{ZERO}, int8[{SIZE}] wz = {same(SIZE, '3')}"), ("(w, ws)", "(w, ws, wz)")),
        tensorrt="Non-zero zero point is not supported",
        onnxruntime="integer",
    ),
    Case(
        "behind a Cast, as torch's exporter writes it",
        "zero-point",
        "quantize",
        swap(
            GOOD,
            (ZERO, f"{ZERO}, int64 z5 = {{5}}"),
            ("{\n", "{\n  z3 = Cast<to = 3>(z5)\n"),
            ("(x, s, z)", "(x, s, z3)"),
        ),
        tensorrt="Non-zero zero point is not supported",
        onnxruntime="float",
    ),
    Case(
        "behind an Identity",
        "zero-point",
        "quantize",
        swap(
            GOOD, (ZERO, f"{ZERO}, int8 z5 = {{5}}"), ("{\n", "{\n  z3 = Identity(z5)\n"), ("(x, s, z)", "(x, s, z3)")
        ),
        tensorrt="Non-zero zero point is not supported",
    ),
    Case(
        "unsigned",
        "weight-zero-point",
        "weight",
        swap(GOOD, other_type("uint8", 0, 200)),
        openvino="float",
    ),
    Case(
        "signed",
        "weight-zero-point",
        "weight",
        swap(GOOD, (ZERO, f"{ZERO}, int8[{SIZE}] wz = {same(SIZE, '3')}"), ("(w, ws)", "(w, ws, wz)")),
        openvino="float",
    ),
    Case(
        "output_dtype alone",
        "zero-point-missing",
        "quantize",
        swap(GOOD, ("QuantizeLinear(x, s, z)", "QuantizeLinear<output_dtype = 3>(x, s)"), ("(xq, s, z)", "(xq, s)")),
        onnxruntime="float",
        openvino="integer",
    ),
    Case(
        "a Gemm's weight",
        "zero-point-missing",
        "weight",
        swap(GEMM, ("(w, ws, wz)", "(w, ws)")),
        onnxruntime="float",
    ),
    Case("an initializer too", "zero-point-input", "quantize", GOOD, change=an_input("z"), onnxruntime="float"),
    Case(
        "the first is UINT8 with 128",
        "computed-zero-point",
        "first",
        swap(COMPUTED, ("int8 z = {0}", "uint8 z = {128}")),
        openvino="float",
    ),
    Case(
        "the first is INT8 with 5",
        "computed-zero-point",
        "first",
        swap(COMPUTED, ("int8 z = {0}", "int8 z = {5}")),
        openvino="float",
    ),
    Case(
        "the second is UINT8 with 0",
        "computed-zero-point",
        "second",
        swap(COMPUTED, ("int8 v = {0}", "uint8 v = {0}")),
        openvino="float",
    ),
    Case(
        "the second is INT8 with 5",
        "computed-zero-point",
        "second",
        swap(COMPUTED, ("int8 v = {0}", "int8 v = {5}")),
        openvino="float",
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


@pytest.mark.parametrize("node", ["Cast<to = 2>(z0)", "Identity(z0)"])
def test_an_unsigned_zero_point_behind_a_cast_is_no_missing_one(node: str) -> None:
    kind = "int64" if node.startswith("Cast") else "uint8"
    text = swap(GOOD, (ZERO, f"{kind} z0 = {{128}}"), ("{\n", f"{{\n  z = {node}\n"))
    found = findings(Case("", "", "", text).model(), "tensorrt")
    assert [(finding.rule, finding.what) for finding in found] == [("zero-point", "its zero point is 128")] * 2


def test_zero_points_of_several_values_are_told_by_their_range() -> None:
    zeros = ", ".join(str(i % 3) for i in range(SIZE))
    text = swap(GOOD, (ZERO, f"{ZERO}, int8[{SIZE}] wz = {{{zeros}}}"), ("(w, ws)", "(w, ws, wz)"))
    (finding,) = findings(Case("", "", "", text).model(), "tensorrt")
    assert finding.what == "its zero point is between 0 and 2"


@pytest.mark.parametrize(
    ("first", "second"), [("int8 z = {0}", "int8 v = {0}"), ("uint8 z = {0}", "int8 v = {0}"),
                          ("int8 z = {0}", "uint8 v = {128}")]
)  # fmt: skip
def test_two_computed_factors_that_openvino_multiplies_as_integers(first: str, second: str) -> None:
    model = Case("", "", "", swap(COMPUTED, ("int8 z = {0}", first), ("int8 v = {0}", second))).model()
    assert findings(model, "openvino") == []
    assert engines.openvino(model) == "integer"


def test_initializers_may_be_inputs_where_they_had_to_be_and_other_than_zero_points() -> None:
    model = Case("", "", "", GOOD, change=an_input("ws")).model()
    assert findings(model, "ort") == []
    old = Case("", "", "", swap(GOOD, ("ir_version: 10", "ir_version: 3")), valid=False, change=an_input("z")).model()
    assert findings(old, "ort") == []

"""Shared quantizers, attention and decomposed operators: each planted, found, and held against the engines."""

from __future__ import annotations

import pytest

from runtime.backends.ort import optimized_bytes
from runtime.onnx_wire import read_graph
from tests.toolchain.nets import serialized
from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    GOOD,
    HEAD,
    SCALE,
    SIZE,
    SUM,
    WEIGHT,
    ZERO,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_tensorrt,
    numbers,
    same,
    swap,
)
from toolchain.rules import findings
from toolchain.targets.choices import TARGETS

SECOND = f"int8[{SIZE}, {SIZE}] v = {numbers(SIZE * SIZE, seed=3)}"
TWO_LAYERS = (
    (WEIGHT, f"{WEIGHT}, {SECOND}"),
    (SUM, "vd = DequantizeLinear<axis = 1>(v, ws)\n  q = MatMul(xd, vd)\n  r = Add(p, q)\n  y = Add(r, b)"),
)
OWN_PAIR = "xr = QuantizeLinear(x, s2, z)\n  xe = DequantizeLinear(xr, s2, z)\n  "
ATTENTION = f"""{HEAD}
g (float[2, 5, {SIZE}] x) => (float[2, 5, {SIZE}] y)
<float s = {{0.02}}, float t = {{0.0078125}}, int8 z = {{0}}, float c = {{0.25}}>
{{
  k = Transpose<perm = [0, 2, 1]>(x)
  scores = MatMul(x, k)
  scaled = Mul(scores, c)
  [softmax] p = Softmax<axis = -1>(scaled)
  y = MatMul(p, x)
}}"""
QUANTIZED_SCORES = (
    "scores = MatMul(x, k)",
    "aq = QuantizeLinear(x, s, z)\n  a = DequantizeLinear(aq, s, z)\n  bq = QuantizeLinear(k, s, z)"
    "\n  b = DequantizeLinear(bq, s, z)\n  scores = MatMul(a, b)",
)
QUANTIZED_OUTPUT = (
    "y = MatMul(p, x)",
    "pq = QuantizeLinear(p, t, z)\n  pd = DequantizeLinear(pq, t, z)\n  y = MatMul(pd, x)",
)
LAYER_NORM = f"""<ir_version: 10, opset_import: ["" : 17]>
g (float[1, 5, {SIZE}] x) => (float[1, 5, {SIZE}] y)
<float two = {{2.0}}, float eps = {{0.00001}},
 float[{SIZE}] g = {same(SIZE, "1.5")}, float[{SIZE}] b = {same(SIZE, "0.5")}>
{{
  m = ReduceMean<axes = [-1]>(x)
  d = Sub(x, m)
  q = Pow(d, two)
  v = ReduceMean<axes = [-1]>(q)
  e = Add(v, eps)
  [root] r = Sqrt(e)
  n = Div(d, r)
  h = Mul(n, g)
  y = Add(h, b)
}}"""
GELU = f"""<ir_version: 10, opset_import: ["" : 17]>
g (float[1, 5, {SIZE}] x) => (float[1, 5, {SIZE}] y)
<float c = {{1.4142135}}, float one = {{1.0}}, float half = {{0.5}}>
{{
  d = Div(x, c)
  [erf] e = Erf(d)
  a = Add(e, one)
  m = Mul(x, a)
  y = Mul(m, half)
}}"""
CONVS = f"""{HEAD}
g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y)
<{SCALE}, {ZERO}, int8[4, 4, 1, 1] w = {numbers(16)}, int8[4, 4, 1, 1] v = {numbers(16, seed=3)}, int8 z2 = {{0}}>
{{
  [quantize] xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear(w, s, z)
  vd = DequantizeLinear(v, s, z)
  a = Conv(xd, wd)
  b = Conv(xd, vd)
  aq = QuantizeLinear(a, s, z)
  ad = DequantizeLinear(aq, s, z)
  bq = QuantizeLinear(b, s, z2)
  bd = DequantizeLinear(bq, s, z2)
  y = Mul(ad, bd)
}}"""
MOVES = [
    "Transpose<perm = [0, 1, 3, 2]>(xd)",
    "Reshape(xd, c)",
    "Squeeze(xd, one)",
    "Unsqueeze(xd, one)",
    "Slice(xd, one, c)",
    "MaxPool<kernel_shape = [1, 2]>(xd)",
]


def moved(node: str, zero: str = ZERO, opset: int = 21) -> str:
    """A quantizer in front of a node, then something that is not moved past."""
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[1, 1, 5, {SIZE}] x) => (float y) <{SCALE}, {zero}, int64[1] c = {{-1}}, int64[1] one = {{1}}> {{
      [quantize] xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      m = {node}
      r = Sigmoid(m)
      y = ReduceSum<keepdims = 0>(r)
    }}"""


TANH = "[erf] e = Tanh(d)"
CASES = [
    Case(
        "one pair, two layers",
        "shared-quantizer",
        "quantize",
        swap(GOOD, *TWO_LAYERS),
        tensorrt="",
        onnxruntime="float",
    ),
    Case(
        "two dequantizers",
        "shared-quantizer",
        "quantize",
        swap(
            GOOD,
            *TWO_LAYERS,
            ("vd = ", "xe = DequantizeLinear(xq, s, z)\n  vd = "),
            ("MatMul(xd, vd)", "MatMul(xe, vd)"),
        ),
        onnxruntime="float",
    ),
    Case(
        "the same quantizer twice",
        "shared-quantizer",
        "again",
        swap(
            GOOD,
            *TWO_LAYERS,
            ("vd = ", "[again] " + OWN_PAIR.replace("s2", "s") + "vd = "),
            ("MatMul(xd, vd)", "MatMul(xe, vd)"),
        ),
        onnxruntime="float",
    ),
    Case(
        "equal scales, one zero point",
        "shared-quantizer",
        "again",
        swap(
            GOOD,
            *TWO_LAYERS,
            (SCALE, f"{SCALE}, float s2 = {{0.02}}"),
            ("vd = ", "[again] " + OWN_PAIR + "vd = "),
            ("MatMul(xd, vd)", "MatMul(xe, vd)"),
        ),
        onnxruntime="float",
    ),
    Case(
        "the dequantized tensor is an output",
        "shared-quantizer",
        "quantize",
        swap(GOOD, (f"{SIZE}] y)", f"{SIZE}] y, float[1, 5, {SIZE}] xd)")),
        onnxruntime="float",
    ),
    Case(
        "the integers are an output",
        "shared-quantizer",
        "quantize",
        swap(GOOD, (f"{SIZE}] y)", f"{SIZE}] y, int8[1, 5, {SIZE}] xq)")),
        onnxruntime="float",
    ),
    Case("two Convs", "shared-quantizer", "quantize", CONVS),
    *(
        Case(node.partition("(")[0], "moved-quantizer", "quantize", moved(node), onnxruntime="refused")
        for node in MOVES
    ),
    Case(
        "beside an Identity, and a Reshape after it",
        "moved-quantizer",
        "quantize",
        swap(moved("Reshape(i, c)"), ("m = ", "i = Identity(xd)\n  m = ")),
        onnxruntime="refused",
    ),
    Case(
        "turned twice, not back",
        "moved-quantizer",
        "quantize",
        moved("Transpose<perm=[3, 0, 2, 1]>(t)").replace("m = ", "t = Transpose<perm=[3, 0, 2, 1]>(xd)\n  m = "),
        onnxruntime="refused",
    ),
    Case("the scores", "int8-attention", "softmax", swap(ATTENTION, QUANTIZED_SCORES), tensorrt=""),
    Case("the probabilities", "int8-attention", "softmax", swap(ATTENTION, QUANTIZED_OUTPUT), tensorrt=""),
    Case(
        "the probabilities over their row's largest",
        "int8-attention",
        "softmax",
        swap(
            ATTENTION,
            QUANTIZED_OUTPUT,
            ("pq = ", "top = ReduceMax(p)\n  over = Div(p, top)\n  pq = "),
            ("Linear(p, t", "Linear(over, t"),
        ),
    ),
    Case("squares by Pow", "decomposed-layernorm", "root", LAYER_NORM, tensorrt=""),
    Case("squares by Mul", "decomposed-layernorm", "root", swap(LAYER_NORM, ("Pow(d, two)", "Mul(d, d)")), tensorrt=""),
    Case("Erf", "decomposed-gelu", "erf", GELU, tensorrt=""),
    Case("Tanh", "decomposed-gelu", "erf", swap(GELU, ("[erf] e = Erf(d)", TANH)), tensorrt=""),
    Case(
        "with quantizers between, as quantize_static writes it",
        "decomposed-gelu",
        "erf",
        swap(
            GELU,
            ("float c", "float s = {0.01}, int8 z = {0}, float c"),
            ("a = Add(e, one)", "eq = QuantizeLinear(e, s, z)\n  ed = DequantizeLinear(eq, s, z)\n  a = Add(ed, one)"),
        ),
        tensorrt="",
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


def test_two_quantizers_with_zero_points_of_their_own_are_two() -> None:
    pair = ("vd = ", "xr = QuantizeLinear(x, s, z2)\n  xe = DequantizeLinear(xr, s, z2)\n  vd = ")
    text = swap(GOOD, *TWO_LAYERS, (ZERO, f"{ZERO}, int8 z2 = {{0}}"), pair, ("MatMul(xd, vd)", "MatMul(xe, vd)"))
    model = Case("", "", "", text).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "integer"


def test_an_unsigned_quantizer_may_be_shared() -> None:
    model = Case("", "", "", swap(GOOD, *TWO_LAYERS, (ZERO, "uint8 z = {128}"))).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "integer"


@pytest.mark.parametrize("target", TARGETS)
def test_float_attention_is_clean(target: str) -> None:
    assert findings(Case("", "", "", ATTENTION).model(), target) == []


def test_an_attention_node_with_dequantized_inputs_is_found() -> None:
    text = f"""<ir_version: 11, opset_import: ["" : 23]>
    g (float[2, 5, {SIZE}] x) => (float[2, 5, {SIZE}] y)
    <float s = {{0.02}}, int8 z = {{0}}>
    {{
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      [attention] y = Attention<q_num_heads = 4, kv_num_heads = 4>(xd, xd, xd)
    }}"""
    (finding,) = findings(Case("", "", "", text).model(), "tensorrt")
    assert (finding.rule, finding.node) == ("int8-attention", "attention")


@pytest.mark.parametrize(
    "text",
    [
        moved("Reshape(xd, c)", opset=20),
        moved("Reshape(xd, c)", zero="uint8 z = {128}"),
        moved("Flatten(xd)"),
        swap(
            moved("Reshape(xd, c)"),
            ("r = Sigmoid(m)", "mq = QuantizeLinear(m, s, z)\n  md = DequantizeLinear(mq, s, z)\n  r = Sigmoid(md)"),
        ),
        moved("Transpose<perm=[1, 3, 2, 0]>(t)").replace("m = ", "t = Transpose<perm=[3, 0, 2, 1]>(xd)\n  m = "),
    ],
    ids=["opset 20", "unsigned", "not moved past", "quantized behind", "turned back"],
)
def test_quantizers_that_stay_where_they_are_load(text: str) -> None:
    model = Case("", "", "", text).model()
    assert findings(model, "ort") == []
    assert engines.onnxruntime(model) == "float"  # it has no product


def test_onnxruntime_runs_convs_of_one_signed_quantizer_in_float() -> None:
    engines.need("onnxruntime")
    model = Case("", "", "", CONVS).model()
    found = read_graph(optimized_bytes(serialized(model))).op_histogram()
    assert found["Conv"] == 2
    pair = "xr = QuantizeLinear(x, s, z2)\n  xe = DequantizeLinear(xr, s, z2)\n  b = Conv(xe, vd)"
    model = Case("", "", "", swap(CONVS, ("b = Conv(xd, vd)", pair))).model()
    assert findings(model, "ort") == []
    assert read_graph(optimized_bytes(serialized(model))).op_histogram()["QLinearConv"] == 2


@pytest.mark.parametrize("second", ["0, 2, 1, 3, 4", "7, 0, 1, 2", "0, 0, 1, 1"])
def test_axes_that_no_transpose_has_are_no_crash(second: str) -> None:
    text = moved(f"Transpose<perm=[{second}]>(t)").replace("m = ", "t = Transpose<perm=[3, 0, 2, 1]>(xd)\n  m = ")
    model = Case("", "", "", text, valid=False).model()
    assert "moved-quantizer" in {found.rule for found in findings(model, "ort")}

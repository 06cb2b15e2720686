"""Opsets: each fault planted, found, and held against the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.toolchain.nets import from_text, serialized
from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    BLOCKS,
    GOOD,
    SIZE,
    WEIGHT_ONLY,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    half,
    other_type,
    same,
    swap,
)
from toolchain.rules import findings
from toolchain.targets.choices import TARGETS


def graph(nodes: str, opset: int, initializers: str = "float d = {0.0}", made: str = f"1, 5, {SIZE}") -> str:
    """Nodes from x to y."""
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[1, 5, {SIZE}] x) => (float[{made}] y) <{initializers}> {{
      {nodes}
    }}"""


def young(name: str, rule: str, nodes: str, opset: int, initializers: str = "float d = {0.0}", **more: Any) -> Case:
    """A node that ONNX Runtime refuses at ``opset``."""
    text = graph(nodes, opset, initializers, more.pop("made", f"1, 5, {SIZE}"))
    return Case(name, rule, "op", text, valid=False, onnxruntime="refused", **more)


CASES = [
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
        "opset-attribute",
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
        "opset-attribute",
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
        graph("[op] y = Gelu(x)", 19),
        valid=False,
        tensorrt="",
        onnxruntime="refused",
    ),
    young("withdrawn", "opset", "[op] y = Scatter(x, i, x)", 13, f"int64[1, 5, {SIZE}] i = {same(5 * SIZE, '0')}"),
    young(
        "INT4 in a Cast",
        "opset",
        "[op] h = Cast<to = 1>(d)\n  y = Add(x, h)",
        17,
        f"int4[{SIZE}] d = {same(SIZE, '1')}",
        targets=["ort", "openvino"],
    ),
    young(
        "an attribute",
        "opset-attribute",
        "[op] y, w = Split<axis = 2, num_outputs = 2>(x)",
        13,
        made=f"1, 5, {SIZE // 2}",
    ),
    young(
        "an attribute of its default",
        "opset-attribute",
        "[op] y = Reshape<allowzero = 0>(x, d)",
        13,
        "int64[3] d = {1, 5, 32}",
    ),
    young(
        "antialias",
        "opset-attribute",
        '[op] y = Resize<mode = "linear", antialias = 1>(x, , d)',
        13,
        "float[3] d = {1.0, 1.0, 0.5}",
        made="1, 5, 16",
    ),
    young(
        "saturate",
        "opset-attribute",
        "[op] q = QuantizeLinear<saturate = 1>(x, s, z)\n  y = DequantizeLinear(q, s, z)",
        13,
        "float s = {0.1}, int8 z = {0}",
    ),
    young("a withdrawn attribute", "opset-attribute", "[op] y = Clip<min = 0.0>(x)", 13),
    young("a withdrawn list", "opset-attribute", "[op] y = ReduceMean<axes = [1], keepdims = 0>(x)", 18, made="1, 32"),
    young(
        "an input", "opset-attribute", "[op] y = ReduceMax<keepdims = 0>(x, d)", 13, "int64[1] d = {1}", made="1, 32"
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


@pytest.mark.parametrize("target", TARGETS)
def test_layernormalization_below_opset_17_runs_in_every_engine(target: str) -> None:
    """ONNX Runtime's own optimizer writes it into models of opset 13."""
    text = graph("y = LayerNormalization(x, g)", 13, f"float[{SIZE}] g = {same(SIZE, '1.5')}")
    model = Case("", "", "", text, valid=False).model()
    assert findings(model, target) == []
    assert engines.onnxruntime(model) == "float"
    assert engines.openvino(model) == "float"
    assert engines.tensorrt(model) == ""


def test_openvino_ignores_an_attribute_that_is_gone() -> None:
    """At opset 11 Clip takes its bounds as inputs; what the attribute says is not done, and nobody says so."""
    engines.need("openvino")
    import openvino as ov

    text = graph("y = Clip<min = 0.0>(x)", 13)
    core = ov.Core()
    model = core.compile_model(core.read_model(serialized(from_text(text, check=False))), "CPU")
    assert model(np.full((1, 5, SIZE), -1, np.float32))[0].min() == -1


def test_a_hit_says_which_opset_has_it() -> None:
    for text, what in (
        (graph("y = Gelu(x)", 19), "Gelu needs opset 20, the model declares 19"),
        (graph("y = Clip<min = 0.0>(x)", 13), "the attribute min of Clip is not in opset 13 any more"),
        (
            swap(WEIGHT_ONLY, other_type("int4"), ('"" : 21', '"" : 20')),
            "DequantizeLinear of INT4 needs opset 21, the model declares 20",
        ),
    ):
        (finding,) = findings(Case("", "", "", text, valid=False).model(), "ort")
        assert finding.what == what

"""NormLevels: ``DQ(s) -> LayerNormalization(eps)`` becomes ``DQ(1) -> LayerNormalization(eps / s^2)``."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import NormLevels

STEP, EPSILON = 0.125, 0.01  # a power of two, so that both forms round alike
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 4] y)
<float step = {{{step}}}, int8 zero = {{{zero}}}, float[4] gain = {{0.7, 1.1, 1.3, 0.9}},
 float[4] shift = {{0.1, -0.2, 0.3, 0.0}}, float[4] unit = {{1, 2, 4, 1}}>
{{
  [q] x_q = QuantizeLinear(x, step, zero)
  [dq] x_dq = DequantizeLinear(x_q, step, zero)
{body}
}}"""
NORM = "  [norm] {out} = LayerNormalization<axis = -1, epsilon = 0.01>({x}, gain, shift)\n"
ALONE = NORM.format(out="y", x="x_dq")
BOTH = NORM.format(out="n", x="x_dq") + "  [add] y = Add(x_dq, n)"


def text(body: str, step: float = STEP, zero: int = 0) -> str:
    return TEXT.format(step=step, zero=zero, body=body)


def images() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((64, 2, 4)).astype(np.float32)}


def named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


@pytest.mark.parametrize("body", [ALONE, BOTH], ids=["alone", "with an addition"])
def test_the_norm_reads_levels_and_other_readers_values(body: str) -> None:
    model = from_text(text(body))
    wanted = run(model, images(), optimize=False)
    assert NormLevels()(model).modified
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    norm = named(model, "norm")
    levels = norm.inputs[0].producer()
    assert levels.op_type == "DequantizeLinear" and levels.inputs[0].producer().name == "q"
    assert levels.inputs[1].const_value.numpy() == 1
    assert norm.attributes["epsilon"].as_float() == pytest.approx(EPSILON / STEP**2)
    assert [node.name for node in model.graph].count("dq") == (body == BOTH)
    assert np.abs(run(model, images(), optimize=False) - wanted).max() < 1e-6
    assert np.unique(wanted).size > 100
    assert not NormLevels()(model).modified


def test_the_epsilon_matters_here() -> None:
    """So the test above can fail: with epsilon as it was, levels are another function of a token that varies little."""
    model = from_text(text(ALONE))
    wanted = run(model, images(), optimize=False)
    NormLevels()(model)
    named(model, "norm").attributes["epsilon"] = ir.AttrFloat32("epsilon", EPSILON)
    assert np.abs(run(model, images(), optimize=False) - wanted).max() > 1e-3


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("  [mul] u = Mul(x_dq, unit)\n" + NORM.format(out="y", x="u"), id="a multiplication between"),
        pytest.param(NORM.format(out="y", x="x"), id="float"),
    ],
)
def test_what_is_no_norm_of_integers_is_left_alone(body: str) -> None:
    model = from_text(text(body))
    before = serialized(model)
    assert not NormLevels()(model).modified
    assert serialized(model) == before


def test_a_zero_point_is_a_precondition_failure() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="norm"):
        NormLevels()(from_text(text(ALONE, zero=3)))

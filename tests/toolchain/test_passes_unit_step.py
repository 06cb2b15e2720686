"""UnitStep: ``Mul r -> Sub c -> [Clip] -> Q(s)`` becomes ``Mul r/s -> Sub c/s -> [Clip] -> Q(1)``; DQ keeps s."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import UnitStep

# a step of 1/64 is a power of two, so that both forms round alike; 1.578125 is 101 steps
HEAD = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 3] y)
<float step = {{{step}}}, int8 zero = {{0}}, float shift = {{{shift}}}, float[4] r = {{0.7, 1.1, 1.3, 0.9}},
 float low = {{-0.125}}, float high = {{0.109375}}, float one = {{1.0}},
 int8[4, 3] w = {{7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}}, float[3] ws = {{0.5, 0.25, 0.125}},
 float[1, 1, 3] bias = {{1, -2, 3}}>
{{
{front}
  [q] u_q = QuantizeLinear(u, step, zero)
  [dq] u_dq = DequantizeLinear(u_q, step, zero)
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  p = MatMul(u_dq, w_dq)
  y = Add(p, bias)
}}"""
MUL = "  [mul] m = Mul(x, r)\n"
PLAIN = MUL + "  [sub] u = Sub(m, shift)"
CLIPPED = MUL + "  [sub] t = Sub(m, shift)\n  [clip] u = Clip(t, low, high)"
STEP, SHIFT = 0.015625, 1.578125


def text(front: str = PLAIN, step: float = STEP, shift: float = SHIFT) -> str:
    return HEAD.format(front=front, step=step, shift=shift)


def images(count: int = 64) -> dict[str, np.ndarray]:
    return {"x": (1.6 + 1.1 * np.random.default_rng(0).standard_normal((count, 2, 4))).astype(np.float32)}


def number(model: ir.Model, node: str, index: int) -> np.ndarray:
    value = next(found for found in model.graph if found.name == node).inputs[index]
    assert value is not None and value.const_value is not None
    array: np.ndarray = value.const_value.numpy()
    return array


@pytest.mark.parametrize("front", [PLAIN, CLIPPED], ids=["plain", "clipped"])
def test_the_step_goes_into_the_numbers_before_it(front: str) -> None:
    model = from_text(text(front))
    before = [node.op_type for node in model.graph]
    wanted = run(model, images(), optimize=False)
    assert UnitStep()(model).modified
    assert [node.op_type for node in model.graph] == before
    assert (number(model, "mul", 1) == np.float32([0.7, 1.1, 1.3, 0.9]) * 64).all()
    levels = number(model, "sub", 1)
    assert (levels[1:] == 101).all()
    assert 101 < levels[0] <= 101 + 2.0**-16  # or OpenVINO would take them for one number
    assert number(model, "q", 1) == 1
    assert number(model, "dq", 1) == np.float32(STEP)
    if front == CLIPPED:
        assert [number(model, "clip", index) for index in (1, 2)] == [-8, 7]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert {"r", "shift"}.isdisjoint(model.graph.initializers)
    assert (run(model, images(), optimize=False) == wanted).all()
    assert len(np.unique(wanted)) > 20
    assert not UnitStep()(model).modified


def test_any_other_step_gives_the_same_levels_but_for_a_rounding() -> None:
    step = 0.0137
    model = from_text(text(step=step, shift=float(np.float32(101 * step))))
    wanted = run(model, images(2000), optimize=False)
    UnitStep()(model)
    assert np.mean(run(model, images(2000), optimize=False) != wanted) < 0.001


@pytest.mark.parametrize("shift", [SHIFT + 0.5 * STEP, SHIFT + 0.01 * STEP, 300 * STEP])
def test_a_shift_that_is_no_level_is_a_precondition_failure(shift: float) -> None:
    model = from_text(text(shift=shift))
    with pytest.raises(ir.passes.PreconditionError, match="sub"):
        UnitStep()(model)
    assert number(model, "q", 1) == np.float32(STEP)


@pytest.mark.parametrize(
    "front",
    [
        pytest.param("  [sub] u = Sub(x, shift)", id="nothing to multiply"),
        pytest.param("  [mul] u = Mul(x, r)", id="no shift"),
        pytest.param("  [mul] m = Mul(x, one)\n  [sub] u = Sub(m, shift)", id="one factor for all channels"),
        pytest.param(MUL + "  [sub] u = Sub(m, shift)\n  [other] o = Neg(m)", id="a second reader"),
        pytest.param("  m = Mul(x, x)\n  [sub] u = Sub(m, shift)", id="not constant"),
    ],
)
def test_what_is_no_scaled_shift_is_left_alone(front: str) -> None:
    model = from_text(text(front))
    before = serialized(model)
    assert not UnitStep()(model).modified
    assert serialized(model) == before

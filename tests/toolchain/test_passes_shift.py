"""ShiftToZeroPoint: ``Sub c -> [Clip] -> Q(s, 0)`` becomes ``[Clip] -> Q(s, -c/s)``, with the same integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.toolchain.nets import from_text, run
from toolchain.passes import ExpandInt4, ShiftToZeroPoint

# scale 1/64; a shift of 1.578125 is 101 steps: the zero point becomes -101
HEAD = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 3] y)
<float step = {{0.015625}}, int8 zero = {{0}}, float shift = {{{shift}}},
 float low = {{-0.125}}, float high = {{0.109375}}, {weight}, float[3] ws = {{0.5, 0.25, 0.125}},
 float[1, 1, 3] bias = {{1, -2, 3}}>
{{
{front}
  [q] u_q = QuantizeLinear(u, step, zero)
  [dq] u_dq = DequantizeLinear(u_q, step, zero)
  w_dq = DequantizeLinear<axis = 1>({read}, ws)
  p = MatMul(u_dq, w_dq)
  y = Add(p, bias)
}}"""
VALUES = "{7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}"
INT8, INT4 = f"int8[4, 3] w = {VALUES}", f"int4[4, 3] w = {VALUES}"
PLAIN = "  [sub] u = Sub(x, shift)"
CLIPPED = "  [sub] t = Sub(x, shift)\n  [clip] u = Clip(t, low, high)"
SHIFT = 1.578125


def text(front: str = PLAIN, shift: float = SHIFT, weight: str = INT8, read: str = "w") -> str:
    return HEAD.format(front=front, shift=shift, weight=weight, read=read)


def images(count: int = 3) -> np.ndarray:
    return (1.6 + 1.1 * np.random.default_rng(0).standard_normal((count, 2, 4))).astype(np.float32)


def by_reference(model: ir.Model, outputs: list[str]) -> list[np.ndarray]:
    proto = ir.serde.serialize_model(model)
    for name in outputs[1:]:
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return ReferenceEvaluator(proto).run(outputs, {"x": images()})


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def value(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


@pytest.mark.parametrize("front", [PLAIN, CLIPPED], ids=["plain", "clipped"])
def test_the_shift_becomes_the_zero_point_and_leaves_the_bias(front: str) -> None:
    model = from_text(text(front))
    result = ShiftToZeroPoint()(model)
    assert result.modified
    assert types(model) == (["Clip"] if front == CLIPPED else []) + [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add",
    ]  # fmt: skip
    assert value(model, "zero") == -101
    assert value(model, "zero").dtype == np.int8
    columns = np.array([7 - 4 + 1 + 6, -6 + 3 + 0 - 5, 5 - 2 - 7 + 4]) * [0.5, 0.25, 0.125]
    assert np.allclose(value(model, "bias"), np.reshape([1, -2, 3] - SHIFT * columns, (1, 1, 3)), atol=1e-6)
    assert value(model, "bias").shape == (1, 1, 3)
    assert "shift" not in model.graph.initializers
    if front == CLIPPED:
        assert value(model, "low") == np.float32(-0.125 + SHIFT)
        assert value(model, "high") == np.float32(0.109375 + SHIFT)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


@pytest.mark.parametrize("front", [PLAIN, CLIPPED], ids=["plain", "clipped"])
def test_same_integers_and_same_result_in_the_reference_evaluator(front: str) -> None:
    model = from_text(text(front))
    y_before, q_before = by_reference(model, ["y", "u_q"])
    ShiftToZeroPoint()(model)
    y_after, q_after = by_reference(model, ["y", "u_q"])
    assert (q_after == q_before).all()
    assert np.allclose(y_after, y_before, atol=1e-5)
    if front == CLIPPED:
        assert set(np.unique(q_before)) <= set(range(-8, 8))
    else:
        assert len(np.unique(q_before)) > 8
        assert q_before.min() == -128  # saturation too


def clipped_model_of_bits(bits: int) -> ir.Model:
    """As the toolchain emits it: bounds at the ends of ``bits`` levels, so that the shifted ones fit int8."""
    step, zero_point = 0.015625, -(2 ** (bits - 1)) + 3
    low, high = -(2 ** (bits - 1)) * step, (2 ** (bits - 1) - 1) * step
    source = text(CLIPPED, shift=-zero_point * step)
    return from_text(
        source.replace("low = {-0.125}", f"low = {{{low}}}").replace("high = {0.109375}", f"high = {{{high}}}")
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_equal_in_onnx_runtime_for_every_width(bits: int) -> None:
    model = clipped_model_of_bits(bits)
    x = (images(64) - 1.6) * 2.0 ** (bits - 7)
    before = run(model, {"x": x}, optimize=False)
    ShiftToZeroPoint()(model)
    assert "Sub" not in types(model)
    after = run(model, {"x": x}, optimize=False)
    assert len(np.unique(before)) > 2**bits
    assert np.allclose(after, before, atol=1e-5)


def test_the_weights_may_be_int4_and_may_already_be_cast() -> None:
    plain, packed = from_text(text()), from_text(text(weight=INT4))
    cast = from_text(text(PLAIN + "\n  [cast] wide = Cast<to = 3>(w)", weight=INT4, read="wide"))
    made = []
    for model in (plain, packed, cast):
        assert ShiftToZeroPoint()(model).modified
        made.append(value(model, "bias"))
    assert (made[0] == made[1]).all() and (made[0] == made[2]).all()
    expanded = from_text(text(weight=INT4))
    ir.passes.Sequential(ExpandInt4(), ShiftToZeroPoint())(expanded)
    other_order = from_text(text(weight=INT4))
    ir.passes.Sequential(ShiftToZeroPoint(), ExpandInt4())(other_order)
    assert types(expanded) == types(other_order)
    assert (run(expanded, {"x": images()}) == run(other_order, {"x": images()})).all()


@pytest.mark.parametrize("shift", [SHIFT + 0.5 * 0.015625, SHIFT + 0.01 * 0.015625, 129 * 0.015625, -129 * 0.015625])
def test_a_shift_that_is_no_int8_zero_point_is_a_precondition_failure(shift: float) -> None:
    model = from_text(text(shift=shift))
    with pytest.raises(ir.passes.PreconditionError, match="sub"):
        ShiftToZeroPoint()(model)
    assert types(model)[0] == "Sub"
    assert value(model, "zero") == 0


@pytest.mark.parametrize("steps", [127, -127, 128, 1])
def test_the_ends_of_int8_are_allowed(steps: int) -> None:
    model = from_text(text(shift=steps * 0.015625))
    ShiftToZeroPoint()(model)
    assert value(model, "zero") == -steps


@pytest.mark.parametrize(
    "front",
    [
        pytest.param("  [sub] u = Sub(x, x)", id="not constant"),
        pytest.param("  [sub] t = Sub(x, shift)\n  u = Relu(t)", id="something between"),
        pytest.param("  u = Identity(x)\n  [sub] r = Sub(x, shift)\n  [other] s = Sqrt(r)", id="feeds no quantizer"),
        pytest.param("  [sub] u = Sub(x, shift)\n  [other] s = Sqrt(u)", id="has a second reader"),
        pytest.param("  [sub] u = Sub(shift, x)", id="the wrong way round"),
    ],
)
def test_a_sub_that_is_no_shift_is_left_alone(front: str) -> None:
    model = from_text(text(front))
    before = ir.serde.serialize_model(model).SerializeToString()
    result = ShiftToZeroPoint()(model)
    assert not result.modified
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_a_shift_for_each_channel_is_left_alone() -> None:
    source = text().replace("float shift = {1.578125}", "float[4] shift = {1, 2, 3, 4}")
    model = from_text(source)
    assert not ShiftToZeroPoint()(model).modified
    assert types(model)[0] == "Sub"

"""ComputeDtype: one Cast at each end, every float between them in FP16 or BF16, the integers as they were."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toolchain.nets import from_text, run
from toolchain.passes import BalanceScales, ComputeDtype
from toolchain.passes.compute_dtype import SPREAD
from toolchain.passes.match import constant
from toolchain.passes.shift import shifts

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 3] y)
<float step = {{{step}}}, int8 zero = {{0}}, float c = {{{shift}}},
 int8[4, 3] w = {{70, -60, 50, -40, 30, -20, 10, 5, -70, 60, 50, 40}}, float[3] ws = {{{scales}}},
 float[1, 1, 3] bias = {{{bias}}}>
{{
  [sub] u = Sub(x, c)
  [q] u_q = QuantizeLinear(u, step, zero)
  [dq] u_dq = DequantizeLinear(u_q, step, zero)
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] p = MatMul(u_dq, w_dq)
  [sum] y = Add(p, bias)
}}"""


def text(step: float = 0.013, steps: int = 101, scales: str = "0.011, 0.007, 0.003", bias: str = "1, -2, 3") -> str:
    return TEXT.format(step=step, shift=step * steps, scales=scales, bias=bias)


def images() -> np.ndarray:
    return (1.6 + 0.5 * np.random.default_rng(0).standard_normal((3, 2, 4))).astype(np.float32)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_one_cast_at_each_end_and_one_type_between(dtype: ir.DataType) -> None:
    model = from_text(text())
    weights = model.graph.initializers["w"].const_value.numpy().copy()
    assert ComputeDtype(dtype)(model).modified
    first, *middle, last = model.graph
    assert (first.op_type, last.op_type) == ("Cast", "Cast")
    assert "Cast" not in {node.op_type for node in middle}
    assert first.inputs[0].name == "x" and last.outputs[0].name == "y"
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert {value.dtype for value in model.graph.initializers.values()} == {dtype, ir.DataType.INT8}
    assert (model.graph.initializers["w"].const_value.numpy() == weights).all()
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_half_precision_gives_the_numbers_of_float() -> None:
    model = from_text(text())
    wanted = run(model, {"x": images()}, optimize=False)
    ComputeDtype(HALF)(model)
    made = run(model, {"x": images()}, optimize=False)
    assert np.abs(made - wanted).max() < 0.013 * 0.011 * 70 + 2**-11 * np.abs(wanted).max() * 4


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@given(st.floats(0.002, 0.05), st.integers(-128, 127))
def test_the_bias_undoes_the_shift_that_is_really_taken(dtype: ir.DataType, step: float, steps: int) -> None:
    """x = c: its integer is 0, and what is left is the bias, which must be that of the layer without any shift."""
    model = from_text(text(step, steps))
    (before,) = shifts(model)
    bias = model.graph.initializers["bias"].const_value.numpy().astype(np.float64)
    free = bias - before.shift * before.column_sums()
    ComputeDtype(dtype)(model)
    (after,) = shifts(model)
    undone = model.graph.initializers["bias"].const_value.numpy().astype(np.float64)
    unit = float(ml_dtypes.finfo(dtype.numpy()).eps)
    assert np.allclose(undone - after.shift * after.column_sums(), free, rtol=0, atol=unit * np.abs(undone).max())


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@given(st.floats(0.002, 0.05), st.integers(-128, 127))
def test_a_shift_is_as_near_to_whole_steps_as_the_type_allows(dtype: ir.DataType, step: float, steps: int) -> None:
    """Never worse for values about SPREAD levels from zero than step and shift each rounded to the nearest."""
    model = from_text(text(step, steps))
    ComputeDtype(dtype)(model)
    (after,) = shifts(model)
    kind = dtype.numpy().type

    def off(made: float, shift: float) -> float:
        return abs(shift / made - steps) + SPREAD * abs(made / np.float32(step) - 1)

    nearest = float(kind(step))
    assert off(after.scale, after.shift) <= off(nearest, float(kind(steps * nearest)))
    assert float(kind(after.scale)) == after.scale and float(kind(after.shift)) == after.shift
    assert abs(after.scale - nearest) <= 2 * float(ml_dtypes.finfo(kind).eps) * nearest


def test_a_neighbouring_step_takes_the_shift_to_a_level() -> None:
    """0.0064132595 and 101 of it, from a layer of vit_digits: nearest roundings are 0.045 of a level apart."""
    model = from_text(text(0.0064132595, 101))
    ComputeDtype(HALF)(model)
    (after,) = shifts(model)
    nearest, c = float(np.float16(0.0064132595)), float(np.float16(101 * 0.0064132595))
    assert abs(c / nearest - 101) > 0.04 and abs(after.shift / after.scale - 101) < 0.02


def test_a_dequantizer_keeps_the_power_of_two_it_has_borrowed() -> None:
    model = from_text(text(0.0064132595, 101, scales="0.00001, 0.007, 0.003"))
    BalanceScales()(model)
    (before,) = shifts(model)
    power = float(constant(before.dequantize.inputs[1])) / before.scale
    assert power < 1
    ComputeDtype(HALF)(model)
    (after,) = shifts(model)
    assert float(constant(after.dequantize.inputs[1])) == power * after.scale
    assert after.scale != float(np.float16(0.0064132595))


def test_a_scale_never_becomes_zero() -> None:
    model = from_text(text(scales="0.011, 0.007, 0.000000000001"))
    ComputeDtype(HALF)(model)
    assert model.graph.initializers["ws"].const_value.numpy().min() == np.float16(2**-24)


def test_a_constant_beyond_the_range_is_a_precondition_failure() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="bias reaches 70000, FLOAT16 65504"):
        ComputeDtype(HALF)(from_text(text(bias="1, 70000, 3")))
    ComputeDtype(BRAIN)(from_text(text(bias="1, 70000, 3")))


def test_a_second_time_is_a_precondition_failure() -> None:
    model = from_text(text())
    ComputeDtype(HALF)(model)
    with pytest.raises(ir.passes.PreconditionError, match="already"):
        ComputeDtype(HALF)(model)


def test_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="still FLOAT"):
        ComputeDtype(HALF).ensures(from_text(text()))

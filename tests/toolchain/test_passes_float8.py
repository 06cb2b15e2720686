"""Float8: INT8 quantizers become E4M3 ones over the same ranges, shifts are undone, 4-bit weights stay exact."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toolchain.nets import from_text, run
from toolchain.passes import Float8
from toolchain.passes.float8 import EXACT, LARGEST

E4M3 = ir.DataType.FLOAT8E4M3FN
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 3] y)
<float step = {0.02}, int8 zero = {0}, float c = {1.6},
 int8[4, 3] w = {127, -60, 50, -40, 30, -20, 10, 5, -127, 60, 50, 40}, float[3] ws = {0.011, 0.007, 0.003},
 float low = {-0.16}, float high = {0.14}, float[1, 1, 3] bias = {1, -2, 3}>
{
  [sub] u = Sub(x, c)
  [q] u_q = QuantizeLinear(u, step, zero)
  u_dq = DequantizeLinear(u_q, step, zero)
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] p = MatMul(u_dq, w_dq)
  y = Add(p, bias)
}"""
PLAIN = TEXT.replace("  [sub] u = Sub(x, c)\n", "").replace("QuantizeLinear(u,", "QuantizeLinear(x,")


def images() -> dict[str, np.ndarray]:
    return {"x": (1.6 + 0.5 * np.random.default_rng(0).standard_normal((3, 2, 4))).astype(np.float32)}


def value(model: ir.Model, name: str) -> np.ndarray:
    array: np.ndarray = model.graph.initializers[name].const_value.numpy()
    return array


def test_types_and_scales_change_and_the_numbers_nearly_stay() -> None:
    model = from_text(PLAIN)
    wanted = run(model, images(), optimize=False)
    assert Float8()(model).modified
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert model.graph.initializers["zero"].dtype == E4M3 and model.graph.initializers["w"].dtype == E4M3
    assert value(model, "step") == pytest.approx(0.02 * 127 / LARGEST)
    made = run(model, images(), optimize=False)
    assert np.abs(made - wanted).max() < 2**-4 * 2 * np.abs(wanted).max()


def test_a_shift_is_undone() -> None:
    model = from_text(TEXT)
    levels, scales, bias = value(model, "w").astype(np.float64), value(model, "ws"), value(model, "bias").copy()
    Float8()(model)
    assert "Sub" not in {node.op_type for node in model.graph}
    assert np.allclose(value(model, "bias"), bias - 1.6 * levels.sum(0) * scales, atol=1e-5)
    assert value(model, "step") == pytest.approx((1.6 + 127 * 0.02) / LARGEST)


@given(st.lists(st.integers(-EXACT, EXACT), min_size=12, max_size=12))
def test_small_integers_are_exact(levels: list[int]) -> None:
    model = from_text(PLAIN.replace("127, -60, 50, -40, 30, -20, 10, 5, -127, 60, 50, 40", ", ".join(map(str, levels))))
    scales = value(model, "ws").copy()
    Float8()(model)
    assert (value(model, "w").astype(np.float32).reshape(-1) == levels).all()
    assert (value(model, "ws") == scales).all()


def test_larger_integers_keep_four_bits() -> None:
    model = from_text(PLAIN)
    levels = value(model, "w").astype(np.float64)
    before = levels * value(model, "ws")
    Float8()(model)
    after = value(model, "w").astype(np.float64) * value(model, "ws")
    assert np.abs(value(model, "w").astype(np.float32)).max() == LARGEST
    assert (np.abs(after - before) <= 2**-4 * np.abs(before) * 1.001).all()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PLAIN.replace("int8 zero = {0}", "int8 zero = {3}"), "q: its zero point"),
        (TEXT.replace("u = Sub(x, c)", "u = Clip(x, low, high)"), "fewer than 8 bits"),
        (PLAIN.replace("MatMul(u_dq", "MatMul(x"), "no quantizers"),
    ],
)
def test_what_has_no_fp8_form_is_a_precondition_failure(text: str, why: str) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=why):
        Float8()(from_text(text))


def test_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="INT8"):
        Float8().ensures(from_text(PLAIN))


def test_the_largest_number() -> None:
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == LARGEST == 448

"""BalanceScales: small weight scales borrow a power of two from the activation's; the products stay to the last bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import BalanceScales

SMALLEST = 2.0**-14
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 4] x) => (float[B, 3] y)
<int8[4, 3] w = {{70, -60, 50, -40, 30, -20, 10, 0, -70, 60, -50, 40}}, float[3] ws = {{{scales}}},
 float step = {{{step}}}, int8 zero = {{0}}>
{{
  [quantizer] q = QuantizeLinear(x, step, zero)
  [dequantizer] x_dq = DequantizeLinear(q, step, zero)
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] y = MatMul(x_dq, w_dq)
}}"""


def model_with(scales: tuple[float, float, float], step: float = 0.02) -> ir.Model:
    return from_text(TEXT.format(scales=", ".join(f"{scale:.12f}" for scale in scales), step=f"{step:.12f}"))


def value(model: ir.Model, node: str) -> np.ndarray:
    made = next(one for one in model.graph if one.name == node).inputs[1]
    assert made is not None and made.const_value is not None
    array: np.ndarray = made.const_value.numpy()
    return array


def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}


def test_a_small_scale_is_raised_and_the_product_stays() -> None:
    model = model_with((0.01, 0.001, 0.00002))
    before = run(model, x(), optimize=False)
    assert BalanceScales()(model).modified
    weights = model.graph.initializers["ws"].const_value.numpy()
    assert weights.min() >= SMALLEST
    assert value(model, "quantizer") == np.float32(0.02)
    assert value(model, "dequantizer") == np.float32(0.02) / 4
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert (run(model, x(), optimize=False) == before).all()


@given(st.floats(1e-9, 0.1), st.floats(SMALLEST, 0.5))
def test_no_more_is_borrowed_than_the_activation_has(smallest: float, step: float) -> None:
    model = model_with((0.1, 0.05, smallest), step)
    before = run(model, x(), optimize=False)
    BalanceScales()(model)
    assert value(model, "dequantizer") >= SMALLEST
    assert (run(model, x(), optimize=False) == before).all()


def test_scales_that_are_large_enough_stay() -> None:
    model = model_with((0.01, 0.001, SMALLEST))
    before = serialized(model)
    assert not BalanceScales()(model).modified
    assert serialized(model) == before


def test_a_step_that_is_too_small_is_a_precondition_failure() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="quantizer: a step of"):
        BalanceScales()(model_with((0.01, 0.01, 0.01), 0.00001))


def test_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="product"):
        BalanceScales().ensures(model_with((0.01, 0.01, 0.01), 0.00001))

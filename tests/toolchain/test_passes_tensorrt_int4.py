"""WidenInt4 and BlockInt4: 4-bit weights in the forms that TensorRT and OpenVINO take, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import BlockInt4, WidenInt4

INTEGER = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 4] x) => (float[B, 3] y)
<int4[4, 3] w = {7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}, float[3] ws = {0.5, 0.25, 0.125},
 float step = {0.015625}, int8 zero = {0}>
{
  q = QuantizeLinear(x, step, zero)
  x_dq = DequantizeLinear(q, step, zero)
  [weight] w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] y = MatMul(x_dq, w_dq)
}"""
FLOAT = INTEGER.replace("MatMul(x_dq", "MatMul(x")


def x(width: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)}


def weight_only(inputs: int, outputs: int = 6) -> ir.Model:
    """A float product of (B, inputs) with INT4 weights, one scale per output channel."""
    rng = np.random.default_rng(inputs)
    levels = ", ".join(map(str, rng.integers(-8, 8, inputs * outputs)))
    scales = ", ".join(f"{scale:.6f}" for scale in rng.uniform(0.01, 1, outputs))
    return from_text(f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[B, {inputs}] x) => (float[B, {outputs}] y)
<int4[{inputs}, {outputs}] w = {{{levels}}}, float[{outputs}] ws = {{{scales}}}>
{{
  [weight] w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] y = MatMul(x, w_dq)
}}""")


def test_weights_beside_a_quantized_activation_are_widened() -> None:
    model = from_text(INTEGER)
    before = run(model, x(), optimize=False)
    assert WidenInt4()(model).modified
    assert model.graph.initializers["w"].dtype == ir.DataType.INT8
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert (run(model, x(), optimize=False) == before).all()


def test_weights_beside_floats_stay_four_bits_wide() -> None:
    model = from_text(FLOAT)
    before = serialized(model)
    assert not WidenInt4()(model).modified
    assert serialized(model) == before


def test_those_of_chosen_layers_are_widened_and_of_no_other() -> None:
    for chosen in (True, False):
        model = from_text(FLOAT)
        before = run(model, x(), optimize=False)
        assert WidenInt4(lambda linear, chosen=chosen: chosen and linear.activation is None)(model).modified == chosen
        assert model.graph.initializers["w"].dtype == (ir.DataType.INT8 if chosen else ir.DataType.INT4)
        assert (run(model, x(), optimize=False) == before).all()


def test_an_int4_tensor_that_is_no_weight_is_a_precondition_failure() -> None:
    odd = INTEGER.replace(
        "[weight] w_dq = DequantizeLinear<axis = 1>(w, ws)", "z = Cast<to = 1>(w)\n  w_dq = Mul(z, ws)"
    )
    with pytest.raises(ir.passes.PreconditionError, match="INT4 tensor w"):
        WidenInt4()(from_text(odd))


def test_widen_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="product"):
        WidenInt4().ensures(from_text(INTEGER))


@given(st.sampled_from([16, 32, 48, 64, 96, 128, 192, 256]), st.sampled_from([(128, 64), (128, 64, 32, 16)]))
def test_blocks_give_the_same_numbers(inputs: int, sizes: tuple[int, ...]) -> None:
    if inputs % min(sizes):
        return
    model = weight_only(inputs)
    before = run(model, x(inputs), optimize=False)
    assert BlockInt4(sizes)(model).modified
    weight = next(node for node in model.graph if node.name == "weight")
    block = weight.attributes.get_int("block_size")
    assert inputs % block == 0 and block == max(size for size in sizes if inputs % size == 0)
    assert weight.attributes.get_int("axis") == 0
    assert list(model.graph.initializers["ws"].shape) == [inputs // block, 6]
    assert model.graph.initializers["w"].dtype == ir.DataType.INT4
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert (run(model, x(inputs), optimize=False) == before).all()


def test_weights_that_no_block_divides_become_int8() -> None:
    model = weight_only(20)
    before = run(model, x(20), optimize=False)
    BlockInt4()(model)
    weight = next(node for node in model.graph if node.name == "weight")
    assert model.graph.initializers["w"].dtype == ir.DataType.INT8
    assert "block_size" not in weight.attributes
    assert (run(model, x(20), optimize=False) == before).all()


def test_where_they_are_not_to_be_widened_they_stay() -> None:
    model = weight_only(20)
    before = serialized(model)
    assert not BlockInt4(widen=False)(model).modified
    assert serialized(model) == before


def test_blocks_are_for_products_with_floats() -> None:
    model = from_text(INTEGER.replace("[B, 4]", "[B, 16]").replace("int4[4, 3]", "int4[16, 3]").replace(
        "{7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}", "{" + ", ".join(["1"] * 48) + "}"))  # fmt: skip
    assert not BlockInt4((16,))(model).modified


def test_blocks_are_made_once() -> None:
    model = weight_only(64)
    BlockInt4()(model)
    before = serialized(model)
    assert not BlockInt4()(model).modified
    assert serialized(model) == before


def test_another_axis_is_a_precondition_failure() -> None:
    odd = FLOAT.replace("axis = 1", "axis = 0").replace("float[3] ws = {0.5,", "float[4] ws = {1, 0.5,")
    with pytest.raises(ir.passes.PreconditionError, match="one scale per output channel"):
        BlockInt4()(from_text(odd))


def test_block_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="without blocks"):
        BlockInt4().ensures(from_text(FLOAT))

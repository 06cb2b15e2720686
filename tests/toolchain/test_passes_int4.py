"""ExpandInt4: a Cast between INT4 weights and their DequantizeLinear, nothing else, the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.toolchain.nets import from_text, run
from toolchain.passes import ExpandInt4

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 4] x) => (float[B, 3] y)
<int4[4, 3] w = {7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}, float[3] ws = {0.5, 0.25, 0.125},
 int8[3, 3] v = {70, -60, 50, -40, 30, -20, 10, 0, -70}>
{
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  v_dq = DequantizeLinear<axis = 1>(v, ws)
  h = MatMul(x, w_dq)
  y = MatMul(h, v_dq)
}"""


def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def test_only_the_int4_weights_are_cast() -> None:
    model = from_text(TEXT)
    result = ExpandInt4()(model)
    assert result.modified
    assert [node.op_type for node in model.graph] == [
        "Cast",
        "DequantizeLinear",
        "DequantizeLinear",
        "MatMul",
        "MatMul",
    ]
    cast, dequantize = list(model.graph)[:2]
    assert cast.inputs[0].name == "w"
    assert cast.attributes["to"].value == ir.DataType.INT8
    assert dequantize.inputs[0] is cast.outputs[0]
    assert cast.outputs[0].dtype == ir.DataType.INT8
    assert model.graph.initializers["w"].dtype == ir.DataType.INT4
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_the_numbers_stay_bit_for_bit() -> None:
    model = from_text(TEXT)
    before = run(model, {"x": x()}, optimize=False)
    ExpandInt4()(model)
    assert (run(model, {"x": x()}, optimize=False) == before).all()


def test_two_readers_of_one_weight_get_valid_names() -> None:
    source = TEXT.replace("  h = ", "  w_again = DequantizeLinear<axis = 1>(w, ws)\n  h = ").replace(
        "y = MatMul(h, v_dq)", "g0 = MatMul(h, v_dq)\n  g1 = MatMul(x, w_again)\n  y = Add(g0, g1)"
    )
    model = from_text(source)
    before = run(model, {"x": x()}, optimize=False)
    ExpandInt4()(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert (run(model, {"x": x()}, optimize=False) == before).all()


def test_a_graph_without_int4_is_not_touched() -> None:
    model = from_text(TEXT.replace("int4[4, 3]", "int8[4, 3]"))
    before = ir.serde.serialize_model(model).SerializeToString()
    assert not ExpandInt4()(model).modified
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_an_int4_tensor_that_feeds_something_else_is_a_precondition_failure() -> None:
    source = TEXT.replace(
        "  w_dq = DequantizeLinear<axis = 1>(w, ws)", "  [odd] z = Cast<to = 1>(w)\n  w_dq = Mul(z, ws)"
    )
    with pytest.raises(ir.passes.PreconditionError, match="Cast odd"):
        ExpandInt4()(from_text(source))


def test_ensures_sees_a_direct_dequantize() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="w"):
        ExpandInt4().ensures(from_text(TEXT))
    model = from_text(TEXT)
    ExpandInt4()(model)
    ExpandInt4().ensures(model)


def test_weights_that_nobody_reads_are_not_in_the_way() -> None:
    model = from_text(TEXT.replace("int8[3, 3] v", "int4[2] unread = {1, 2}, int8[3, 3] v"))
    ExpandInt4()(model)
    assert [node.op_type for node in model.graph].count("Cast") == 1


def test_weights_in_blocks_stay_packed() -> None:
    model = from_text(TEXT)
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            node.attributes["block_size"] = ir.AttrInt64("block_size", 16)
    before = ir.serde.serialize_model(model).SerializeToString()
    assert not ExpandInt4()(model).modified
    assert ir.serde.serialize_model(model).SerializeToString() == before

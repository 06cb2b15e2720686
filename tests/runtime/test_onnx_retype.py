"""Float parts of a graph in another type: read back by the onnx package, run by ONNX Runtime, against numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.backends.ort import make_session
from runtime.errors import IntvitError
from runtime.onnx_retype import FLOATS, float_type, retype
from runtime.onnx_wire import read_graph
from tests.runtime.tiny import Spec, graph, reference


def linear(weight: np.ndarray, *, scale: float | None = None, raw: bool = True) -> bytes:
    """y = x @ weight, x quantized with ``scale`` where one is given."""
    tensors = [numpy_helper.from_array(weight, "w")]
    if not raw:
        tensors = [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.reshape(-1).tolist())]
    nodes, x = [], "x"
    if scale is not None:
        tensors += [numpy_helper.from_array(np.float32(scale), "s"), numpy_helper.from_array(np.int8(0), "z")]
        nodes += [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
        nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"])]
        x = "d"
    nodes.append(helper.make_node("MatMul", [x, "w"], ["y"]))
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["N", weight.shape[0]])], [value("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", *ends, tensors, value_info=[value("d", TensorProto.FLOAT, None)])
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )


def weights(model: bytes) -> np.ndarray:
    (tensor,) = [one for one in onnx.load_from_string(model).graph.initializer if one.name == "w"]
    return numpy_helper.to_array(tensor)


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize(("precision", "far"), [("fp16", 5e-3), ("bf16", 5e-2), ("fp32", 1e-5)])
def test_a_network_computes_the_same_in_another_type(quantize: bool, precision: str, far: float) -> None:
    images = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    made = retype(graph(Spec(), quantize=quantize).SerializeToString(), precision)
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    assert float_type(read_graph(made)) == {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[precision]
    if precision == "bf16":
        return  # ONNX Runtime's CPU has no bfloat16 kernels; the test below holds the numbers
    logits = make_session(made, threads=1).run(None, {"images": images})[0]
    assert logits.dtype == np.float32
    wanted, _ = reference(Spec(), images, quantize=quantize)
    steps = 4 if quantize and precision == "fp16" else 1  # flipped roundings
    assert np.abs(logits - wanted).max() < far * steps * np.abs(wanted).max()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.booleans())
def test_bfloat16_is_the_nearest_and_even(values: list[float], raw: bool) -> None:
    weight = np.array(values, np.float32)[:, None]
    found = weights(retype(linear(weight, raw=raw), "bf16")).astype(np.float32)
    exact = weight.astype(np.float64)
    bits = weight.view(np.uint32) & np.uint32(0xFFFF0000)
    below = bits.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        above = (bits + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    low, high = np.abs(exact - below), np.abs(above - exact)
    finite = np.isfinite(above)
    np.testing.assert_array_equal(found[finite & (low < high)], below[finite & (low < high)])
    np.testing.assert_array_equal(found[finite & (high < low)], above[finite & (high < low)])
    even = ((bits >> 16) & 1) == 0
    tie = finite & (low == high) & (low > 0)
    np.testing.assert_array_equal(found[tie], np.where(even, below, above)[tie])


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=40))
def test_float16_is_numpys(values: list[float]) -> None:
    weight = np.array(values, np.float32)[:, None]
    half = weights(retype(linear(weight), "fp16"))
    np.testing.assert_array_equal(half, weight.astype(np.float16))
    back = weights(retype(retype(linear(weight), "fp16"), "fp32"))
    np.testing.assert_array_equal(back, weight.astype(np.float16).astype(np.float32))


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(IntvitError, match="constant does not fit float16") as caught:
        retype(linear(np.array([[70000.0]], np.float32)), "fp16", where="model.onnx")
    assert "'w' holds 70000" in caught.value.why and "bf16" in caught.value.next
    assert weights(retype(linear(np.array([[70000.0]], np.float32)), "bf16"))[0, 0] > 65504
    assert np.isinf(weights(retype(linear(np.array([[np.inf]], np.float32)), "fp16")))
    with pytest.raises(IntvitError, match="scale does not fit float16") as caught:
        retype(linear(np.ones((1, 1), np.float32), scale=1e-9), "fp16")
    assert "'s' holds 1e-09" in caught.value.why


def test_casts_that_are_there_are_used() -> None:
    once = retype(linear(np.ones((2, 2), np.float32), scale=0.1), "fp16")
    again = retype(once, "bf16")
    for model, kind in ((once, FLOATS["fp16"]), (again, FLOATS["bf16"])):
        casts = [node for node in onnx.load_from_string(model).graph.node if node.op_type == "Cast"]
        assert [node.attribute[0].i for node in casts] == [kind, TensorProto.FLOAT]
        assert [list(node.input) for node in casts] == [["x"], ["y/in_fp16"]]
        assert [value.name for value in onnx.load_from_string(model).graph.output] == ["y"]
        assert not onnx.load_from_string(model).graph.value_info


def test_integers_and_other_casts_stay() -> None:
    model = graph(Spec(int4=True)).SerializeToString()
    before, after = onnx.load_from_string(model), onnx.load_from_string(retype(model, "fp16"))
    old, new = ({one.name: one for one in model.graph.initializer} for model in (before, after))
    for name, tensor in old.items():
        if tensor.data_type != TensorProto.FLOAT:
            assert new[name] == tensor
    to_int8 = [n for n in after.graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.INT8]
    assert len(to_int8) == len([n for n in before.graph.node if n.op_type == "Cast"]) > 0


def test_a_constant_in_an_attribute_is_refused() -> None:
    tensor = numpy_helper.from_array(np.ones(1, np.float32))
    node = helper.make_node("ConstantOfShape", ["x"], ["y"], name="fill", value=tensor)
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.INT64, [1])], [value("y", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph([node], "g", *ends)).SerializeToString()
    with pytest.raises(IntvitError, match="cannot be changed") as caught:
        retype(model, "fp16")
    assert "ConstantOfShape 'fill'" in caught.value.why

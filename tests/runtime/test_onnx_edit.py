"""Nodes replaced in an ONNX file's bytes, read back by the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from runtime.errors import IntvitError
from runtime.onnx_edit import NewNode, replace_nodes

TEXT = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[B, 3] x) => (float[B, 3] y)
<float[1, 1, 3] row = {1, 2, 3}, float[1, 1, 3] other = {4, 5, 6}>
{
  [first] h = Neg(x)
  [second] y = Abs(h)
}"""


def model() -> bytes:
    return bytes(parser.parse_model(TEXT).SerializeToString())


def test_nothing_asked_for_leaves_the_same_model() -> None:
    assert onnx.load_from_string(replace_nodes(model(), {})) == onnx.load_from_string(model())


def test_a_node_is_replaced_and_another_removed() -> None:
    new = NewNode("HardSigmoid", "new", ("x",), ("y",), attributes={"alpha": 0.5, "beta": 0.25})
    made = onnx.load_from_string(replace_nodes(model(), {0: [], 1: [new]}))
    onnx.checker.check_model(made, full_check=True)
    (node,) = made.graph.node
    assert (node.name, list(node.input), list(node.output)) == ("new", ["x"], ["y"])
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([[-3, 0, 1]], np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], np.clip(0.5 * x + 0.25, 0, 1))


def test_flattened_initializers_keep_their_values() -> None:
    made = onnx.load_from_string(replace_nodes(model(), {}, flatten=["row"]))
    row, other = made.graph.initializer
    assert list(row.dims) == [3]
    assert list(other.dims) == [1, 1, 3]
    assert np.array_equal(onnx.numpy_helper.to_array(row), [1, 2, 3])


@pytest.mark.parametrize(("least", "found"), [(0, 21), (21, 21), (23, 23)])
def test_only_the_standard_operators_version_is_raised(least: int, found: int) -> None:
    made = onnx.load_from_string(replace_nodes(model(), {}, least_opset=least))
    assert {(opset.domain, opset.version) for opset in made.opset_import} == {("", found), ("com.microsoft", 1)}


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.integers(-(2**63), 2**63 - 1) | st.floats(width=32, allow_nan=False),
        max_size=3,
    ),
    st.lists(st.text(max_size=4), max_size=3),
)
def test_every_node_reads_back_as_onnx_reads_it(attributes: dict[str, int | float], inputs: list[str]) -> None:
    made = onnx.NodeProto()
    made.ParseFromString(NewNode("Op", "n", tuple(inputs), ("o",), "d", attributes).encode())
    assert (made.op_type, made.name, made.domain, list(made.input), list(made.output)) == (
        "Op",
        "n",
        "d",
        inputs,
        ["o"],
    )
    assert {held.name: onnx.helper.get_attribute_value(held) for held in made.attribute} == attributes


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(IntvitError, match="well-formed"):
        replace_nodes(b"\x3a\x7f", {})

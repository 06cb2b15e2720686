"""Two graphs count as the same operations exactly where no operator, attribute or order differs."""

from __future__ import annotations

import onnx
import pytest

from runtime.onnx_wire import Graph, read_graph
from runtime.operations import operations

BASE = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N, 4] images) => (float[N, 4] logits)
<float step = {0.5}, int8 zero = {0}, float shift = {1.0}, int8[4, 4] weights = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
 13, 14, 15, 16}, float[4] scales = {1.0, 2.0, 3.0, 4.0}>
{
  turned = Sub(images, shift)
  q = QuantizeLinear(turned, step, zero)
  x = DequantizeLinear(q, step, zero)
  w = DequantizeLinear<axis = 1>(weights, scales)
  product = MatMul(x, w)
  logits = Gelu<approximate = "none">(product)
}"""


def read(text: str) -> Graph:
    return read_graph(onnx.parser.parse_model(text).SerializeToString())


def digests(text: str, leaf: str = "tap, zero point 0") -> list[str]:
    return operations(read(text), {"q": leaf}, ["q", "logits"])


@pytest.mark.parametrize(
    ("old", "new", "leaf", "same"),
    [
        ("{1, 2, 3,", "{7, 2, 3,", "tap, zero point 0", (True, True)),  # another weight
        ("w = Deq", "w8 = Cast<to = 3>(weights)\n  w = Deq", "tap, zero point 0", (True, True)),  # constants only
        ("w = DequantizeLinear<axis = 1>(weights", "w = DequantizeLinear<axis = 0>(weights", "tap, zero point 0",
         (True, True)),
        ('approximate = "none"', 'approximate = "tanh"', "tap, zero point 0", (True, False)),
        ("Sub(images, shift)", "Add(images, shift)", "tap, zero point 0", (False, True)),  # before the tap only
        ("Sub(images, shift)", "Sub(shift, images)", "tap, zero point 0", (False, True)),
        ("Gelu<", "Gelu <", "tap, zero point 7", (True, False)),  # the zero point its readers subtract
    ],
)  # fmt: skip
def test_what_counts(old: str, new: str, leaf: str, same: tuple[bool, bool]) -> None:
    assert BASE.count(old) == 1
    before, after = digests(BASE), digests(BASE.replace(old, new), leaf)
    assert tuple(a == b for a, b in zip(before, after, strict=True)) == same


def test_each_output_of_a_node_is_its_own() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N, 4] images) => (float[N, 2] a, float[N, 2] b) { a, b = Split<axis = 1, num_outputs = 2>(images) }"""
    first, second = operations(read(text), {}, ["a", "b"])
    assert first != second != "" != first


def test_a_tensor_that_is_not_there() -> None:
    assert operations(read(BASE), {}, ["nowhere"]) == [""]


def stored(text: str) -> bytes:
    """The file as a bundle has it: constants as raw bytes."""
    model = onnx.parser.parse_model(text)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    data: bytes = model.SerializeToString()
    return data


MOVED = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N, 4, 2] images) => (int8[N, 8] q)
<float step = {0.5}, float other = {0.25}, float one = {1.0}, float[2] steps = {1.0, 1.0}, int8[2] zeros = {0, 0},
 int8 zero = {0}, int64[2] flat = {-1, 8}>
{
%s
}"""
BEHIND = """  t = Transpose<perm = [0, 2, 1]>(images)
  f = Reshape(t, flat)
  q = QuantizeLinear(f, step, zero)"""
FIRST = """  e = QuantizeLinear(images, step, zero)
  t = Transpose<perm = [0, 2, 1]>(e)
  q = Reshape(t, flat)"""


@pytest.mark.parametrize(
    ("body", "same"),
    [
        (FIRST, True),
        (FIRST.replace("step", "other"), True),  # a constant of another value
        (FIRST.replace("step", "one"), False),  # rounds, and does not divide
        (FIRST.replace("[0, 2, 1]", "[0, 1, 2]"), False),
        (FIRST.replace("(images, step, zero)", "<axis = 2>(images, steps, zeros)"), False),
        (FIRST.replace("e = Q", "n = Neg(images)\n  e = Q").replace("(images, step", "(n, step"), False),
    ],
)
def test_a_quantizer_before_a_move_is_the_one_behind_it(body: str, same: bool) -> None:
    behind, first = (operations(read_graph(stored(MOVED % text)), {}, ["q"]) for text in (BEHIND, body))
    assert (behind == first) is same

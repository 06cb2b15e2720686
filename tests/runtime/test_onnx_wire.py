"""The wire reader against the onnx package, on random graphs; cuts against ONNX Runtime."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import IntvitError
from runtime.onnx_wire import FLOAT, INT8, UINT8, cut, external_tensor, op_histogram, read_graph, with_extra_outputs
from runtime.wire import bytes_field, number_field
from tests.runtime.tiny import Spec, graph

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8)
arrays = st.sampled_from(
    [
        np.zeros((0,), np.float32),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(-7, np.int8),
        np.array([200, 3], np.uint8),
        np.arange(300, dtype=np.int64).reshape(3, 1, 100),
    ]
)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            draw(st.sampled_from(["Add", "MatMul", "Gelu"])),
            draw(st.lists(names | st.just(""), max_size=3)),
            draw(st.lists(names, max_size=2)),
            name=draw(names | st.just("")),
            domain=draw(st.sampled_from(["", "com.microsoft"])),
            **draw(st.dictionaries(st.sampled_from(["axis", "alpha", "text"]), st.integers(0, 9), max_size=2)),
        )
        for _ in range(draw(st.integers(0, 5)))
    ]
    tensors = [numpy_helper.from_array(draw(arrays), name) for name in draw(st.lists(names, max_size=4, unique=True))]
    if draw(st.booleans()):
        tensors.append(helper.make_tensor("listed", TensorProto.INT8, [2], [-5, 7]))
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in draw(st.lists(names, max_size=3))
    ]
    made = helper.make_graph(nodes, "g", info[:1], info[1:], tensors, doc_string=draw(names))
    return helper.make_model(made, producer_name=draw(names))


@given(models())
@settings(max_examples=150, deadline=None)
def test_reads_what_onnx_reads(model: onnx.ModelProto) -> None:
    found = read_graph(model.SerializeToString())
    assert [(n.op_type, n.name, n.domain, n.inputs, n.outputs) for n in found.nodes] == [
        (n.op_type, n.name, n.domain, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]
    assert [list(n.attributes) for n in found.nodes] == [
        sorted(attribute.SerializeToString() for attribute in n.attribute) for n in model.graph.node
    ]
    assert [(t.name, t.dims, t.data_type, bytes(t.raw)) for t in found.initializers] == [
        (t.name, tuple(t.dims), t.data_type, t.raw_data) for t in model.graph.initializer
    ]
    assert found.inputs == tuple(v.name for v in model.graph.input)
    assert found.outputs == tuple(v.name for v in model.graph.output)
    for mine, theirs in zip(found.initializers, model.graph.initializer, strict=True):
        values = numpy_helper.to_array(theirs).reshape(-1)
        small = theirs.data_type in (TensorProto.INT8, TensorProto.UINT8) and values.size
        assert mine.scalar() == (int(values[0]) if small else None)


@given(models(), st.lists(names, max_size=3), st.lists(names, max_size=2, unique=True))
@settings(max_examples=100, deadline=None)
def test_edits_are_what_onnx_would_do(model: onnx.ModelProto, extra: list[str], cuts: list[str]) -> None:
    data = model.SerializeToString()
    wanted = onnx.ModelProto.FromString(data)
    for name in dict.fromkeys(extra):
        if name not in [v.name for v in model.graph.output]:
            wanted.graph.output.add().name = name
    assert onnx.ModelProto.FromString(with_extra_outputs(data, extra)) == wanted

    wanted = onnx.ModelProto.FromString(data)
    for node in wanted.graph.node:
        node.input[:] = [f"new_{name}" if name in cuts else name for name in node.input]
    for name in cuts:
        wanted.graph.input.append(helper.make_tensor_value_info(f"new_{name}", TensorProto.UINT8, ["N", 4]))
    made = cut(data, {name: (f"new_{name}", UINT8, ("N", 4)) for name in cuts})
    assert onnx.ModelProto.FromString(made) == wanted


def test_a_graph_in_two_pieces_is_one_graph() -> None:
    model = graph(Spec())
    tail = onnx.ModelProto()
    tail.graph.output.add().name = "embed.q"
    joined = model.SerializeToString() + tail.SerializeToString()
    assert read_graph(joined).outputs == ("logits", "embed.q")
    assert read_graph(with_extra_outputs(joined, ["head.q"])).outputs == ("logits", "embed.q", "head.q")
    assert op_histogram(joined)["MatMul"] == 4


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_spoiled_bytes_never_crash(data: st.DataObject) -> None:
    good = SMALL
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        spoiled = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "flip":
        at = data.draw(st.integers(0, len(good) - 1))
        spoiled = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    else:
        spoiled = data.draw(st.binary(max_size=200))
    for read in (read_graph, external_tensor, lambda model: with_extra_outputs(model, ["a"])):
        try:
            read(spoiled)
        except IntvitError as error:
            assert "ONNX" in error.what


SMALL = graph(Spec(width=4, hidden=4, classes=2)).SerializeToString()


def test_truncated_model_is_refused() -> None:
    with pytest.raises(IntvitError, match="well-formed"):
        read_graph(SMALL[:-3])


def _outside(location: bool = True, entries: bool = True) -> TensorProto:
    """A tensor that says so in one of the two ways, or in both."""
    tensor = TensorProto(name="leak", data_type=TensorProto.FLOAT, dims=[10])
    if location:
        tensor.data_location = TensorProto.EXTERNAL
    if entries:
        tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _with_tensor(model: onnx.ModelProto, place: str, tensor: TensorProto) -> onnx.ModelProto:
    top, node = model.graph, model.graph.node.add(op_type="Constant", output=["leak"])
    inner = helper.make_graph([helper.make_node("Constant", [], ["leak"], value=tensor)], "inner", [], [])
    sparse = onnx.SparseTensorProto(values=tensor, dims=[10])
    if place == "initializer":
        top.initializer.append(tensor)
    elif place == "attribute":
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    elif place == "list of an attribute":
        node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS, tensors=[tensor])
    elif place == "sparse initializer":
        top.sparse_initializer.append(sparse)
    elif place == "indices of a sparse initializer":
        top.sparse_initializer.add(values=TensorProto(name="fine"), indices=tensor, dims=[10])
    elif place == "sparse attribute":
        node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    elif place == "list of sparse ones":
        node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])
    elif place == "branch":
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=inner)
    elif place == "branch of a branch":
        middle = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=inner)], "middle", [], [])
        node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS, graphs=[middle])
    elif place == "function":
        model.functions.add(name="F", domain="own").node.extend(inner.node)
    elif place == "default of a function":
        model.functions.add(name="F", domain="own").attribute_proto.append(inner.node[0].attribute[0])
    else:
        model.training_info.add().algorithm.CopyFrom(inner)
    return model


@pytest.mark.parametrize(
    "place",
    [
        "initializer",
        "attribute",
        "list of an attribute",
        "sparse initializer",
        "indices of a sparse initializer",
        "sparse attribute",
        "list of sparse ones",
        "branch",
        "branch of a branch",
        "function",
        "default of a function",
        "training graph",
    ],
)
def test_a_tensor_in_another_file_is_found_wherever_it_is(place: str) -> None:
    model = graph(Spec(width=4, hidden=4, classes=2))
    assert external_tensor(model.SerializeToString()) is None
    for outside in (_outside(), _outside(entries=False), _outside(location=False)):
        made = _with_tensor(onnx.ModelProto.FromString(model.SerializeToString()), place, outside)
        assert external_tensor(made.SerializeToString()) == "leak"
    inside = _with_tensor(model, place, numpy_helper.from_array(np.zeros(10, np.float32), "leak"))
    assert external_tensor(inside.SerializeToString()) is None


def test_a_location_in_more_bits_than_protobuf_keeps_is_found() -> None:
    """Its reader makes 1, which is EXTERNAL, of 2**32 + 1, and field 14 of 2**29 + 14."""
    tensors = [number_field(14, (1 << 32) + 1), number_field((1 << 29) + 14, 1)]
    models = [bytes_field(7, bytes_field(5, tensor)) for tensor in tensors]
    assert external_tensor(models[0]) == ""
    with pytest.raises(IntvitError, match="well-formed"):
        external_tensor(models[1])


def test_a_graph_nested_without_end_is_refused() -> None:
    inner = b""
    for _ in range(3000):
        inner = bytes_field(1, bytes_field(5, bytes_field(6, inner)))
    with pytest.raises(IntvitError, match="well-formed") as caught:
        external_tensor(bytes_field(7, inner))
    assert "nested" in caught.value.why


def test_a_large_tensor_is_passed_over() -> None:
    tensor = TensorProto(name="large", data_type=TensorProto.FLOAT, dims=[25_000_000], raw_data=bytes(100_000_000))
    model = bytes_field(7, bytes_field(5, tensor.SerializeToString()))
    started = time.perf_counter()
    assert external_tensor(model) is None
    assert time.perf_counter() - started < 0.05


def _run(model: bytes, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(outputs, feeds))


def test_cut_feeds_the_readers_and_keeps_the_producer() -> None:
    spec = Spec()
    model = graph(spec).SerializeToString()
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    exposed = with_extra_outputs(model, ["head.q", "b0.out"])
    plain, before, _ = _run(exposed, ["logits", "head.q", "b0.out"], {"images": images})
    fed = np.zeros_like(before)
    made = cut(exposed, {"head.q": ("fed", INT8, fed.shape)})
    logits, after = _run(made, ["logits", "head.q"], {"images": images, "fed": fed})
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(logits, np.broadcast_to(spec.linears["head"]["bias"][0], logits.shape))
    assert not np.array_equal(plain, logits)


def test_cut_of_a_float_tensor_with_a_symbolic_batch() -> None:
    model = graph(Spec()).SerializeToString()
    made = cut(model, {"pooled": ("given", FLOAT, ("N", 1, 32))})
    given_value = np.zeros((3, 1, 32), np.float32)
    images = np.zeros((3, 3, 8, 8), np.float32)
    assert _run(made, ["logits"], {"images": images, "given": given_value})[0].shape == (3, 10)

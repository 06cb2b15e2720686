"""The parts of the tensorrt backend that need no TensorRT: options, and what an error says of node and layer."""

from __future__ import annotations

import pytest

from runtime.backends.trt.log import Heard, build_error, failure, layer_of, node_in
from runtime.backends.trt.options import Batch, TensorRtOptions
from runtime.errors import IntvitError
from runtime.manifest import Layer
from runtime.onnx_wire import Graph, Node


def layer(name: str) -> Layer:
    return Layer(
        name=name, kind="linear", macs=1, weight_bits=8, activation_bits=8, stored_as="INT8", tensor=f"{name}/MatMul"
    )


LAYERS = [layer("blocks.1.mlp.fc1"), layer("blocks.11.mlp.fc1"), layer("blocks.1.attn"), layer("blocks.1.attn.qkv")]


def test_options_are_typed() -> None:
    assert TensorRtOptions.parse({}) == TensorRtOptions()
    made = TensorRtOptions.parse(
        {"batch": "1:8:32", "level": "5", "workspace": "512", "device": "1", "cuda_graph": "on", "cuda": "pycuda"}
    )
    assert made == TensorRtOptions(
        batch=Batch(1, 8, 32), level=5, workspace=512, device=1, cuda_graph=True, cuda="pycuda"
    )
    assert made.workspace_bytes(8 << 30) == 512 << 20
    assert TensorRtOptions().workspace_bytes(8 << 30) == 2 << 30 and TensorRtOptions().workspace_bytes(0) == 0
    assert str(made.batch) == "1:8:32" and str(Batch(4, 4, 4)) == "4"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precison": "fp16"}, "unknown option 'precison'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"library": "tensorrt_lean"}, "unknown library"),
        ({"cuda_graph": "yes"}, "unknown cuda_graph 'yes'"),
        ({"batch": "0"}, "not a batch size"),
        ({"batch": "8:1:32"}, "not a batch size"),
        ({"batch": "1:8"}, "not a batch size"),
        ({"level": "6"}, "not a value of level"),
        ({"workspace": "-1"}, "not a value of workspace"),
        ({"device": "x"}, "not a value of device"),
    ],
)
def test_options_that_are_wrong(options: dict[str, str], said: str) -> None:
    with pytest.raises(IntvitError, match=said) as caught:
        TensorRtOptions.parse(options)
    assert caught.value.where.startswith("--option") and caught.value.next


@pytest.mark.parametrize(
    ("node", "owner"),
    [
        ("blocks.1.mlp.fc1/MatMul", "blocks.1.mlp.fc1"),
        ("blocks.11.mlp.fc1/MatMul", "blocks.11.mlp.fc1"),
        ("blocks.1.attn.qkv/Add", "blocks.1.attn.qkv"),
        ("blocks.1.attn/Softmax", "blocks.1.attn"),
        ("blocks.1.mlp.fc1", "blocks.1.mlp.fc1"),
        ("blocks.1.mlp.fc10/MatMul", ""),
        ("norm/LayerNormalization", ""),
        ("", ""),
    ],
)
def test_the_layer_of_a_node(node: str, owner: str) -> None:
    assert layer_of(node, LAYERS) == owner


def test_the_node_in_what_tensorrt_says() -> None:
    names = ("blocks.1/Add", "blocks.1/Add_2", "blocks.11/Add", "a")
    graph = Graph(tuple(Node("Add", name, "", (), ()) for name in names), (), (), ())
    assert (
        node_in("no implementation for node {ForeignNode[blocks.1/Add_2...blocks.11/Add]}", graph) == "blocks.1/Add_2"
    )
    assert node_in("nothing", Graph(graph.nodes[:3], (), (), ())) == ""


def test_memory_is_told_from_other_failures() -> None:
    graph = Graph((), (), (), ())
    for text in ("Error Code 2: OutOfMemory (no further information)", "Cuda Runtime (out of memory)", "cudaError 2 x"):
        assert build_error(Heard([text], []), graph, [], "w").what == "the GPU's memory is used up"
        assert failure("x", Heard(["old", text], []), 1, "w", "n").what == "the GPU's memory is used up"
    other = failure("it failed", Heard(["OutOfMemory", "cudaError 209"], []), 1, "w", "n")
    assert (other.what, other.why, other.next) == ("it failed", "cudaError 209", "n")
    assert build_error(Heard([], []), graph, [], "w").why == "it gives no reason"


def test_what_was_heard_before_is_heard_again() -> None:
    """The second call may fail of what the first did, also when hundreds of errors lie between."""
    heard = Heard([], [])
    for text in ("out of memory", "out of memory", *(f"error {i}" for i in range(500)), "out of memory"):
        mark = heard.mark()
        heard.error(text)
        assert heard.since(mark) == text
    mark = heard.mark()
    assert heard.since(mark) == "" and len(heard.errors) == 200
    for text in ("a", "b", "a"):
        heard.error(text)
        heard.warning(text)
    assert heard.since(mark) == "a; b" and heard.warnings == ["a", "b"]

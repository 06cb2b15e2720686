"""Our builder with the real TensorRT-RTX, which parses and builds without a GPU or a driver, for a GPU it is told.

What comes out is a plan; whether it runs, and how fast, only a GPU can say.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtime.backends.tensorrt import exposed_types
from runtime.backends.trt.build import Recipe, batch_shapes, build_plan
from runtime.backends.trt.library import library, module_name
from runtime.backends.trt.options import Batch
from runtime.errors import IntvitError
from runtime.manifest import Layer
from runtime.onnx_retype import retype
from runtime.onnx_wire import INT8, cut, with_extra_outputs
from tests.runtime.tiny import Spec, graph

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
IMAGE = (3, 8, 8)


def recipe(batch: str = "1", sm: str = "8.6", **changes: object) -> Recipe:
    return Recipe({"images": batch_shapes(IMAGE, Batch.parse(batch))}, target_sm=sm, **changes)  # type: ignore[arg-type]


def integer(**changes: object) -> bytes:
    return bytes(graph(Spec(int4=False, **changes)).SerializeToString())  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", ["1", "2:4:8"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_plan_is_built(precision: str, batch: str) -> None:
    made = build_plan(trt, retype(integer(), precision), recipe(batch, workspace_bytes=1 << 28, level=1), where="tiny")
    assert len(made.plan) > 100_000 and made.seconds > 0 and made.warnings == ()


@pytest.mark.parametrize("sm", ["8.6", "8.9", "12.0"])
def test_for_each_target_and_the_twin(sm: str) -> None:
    twin = retype(graph(Spec(), quantize=False).SerializeToString(), "fp16")
    assert len(build_plan(trt, twin, recipe("8", sm)).plan) > 100_000


def test_a_gpu_it_does_not_know() -> None:
    with pytest.raises(IntvitError, match=r"compute capability 8\.7") as caught:
        build_plan(trt, integer(), recipe(sm="8.7"))
    assert "on the device itself" in caught.value.next


def test_the_graphs_of_parity_are_built() -> None:
    """Taps exposed, and cut and fed golden integers: what ``run_graph`` gets."""
    names = ["logits", "embed.q", "head.q"]
    exposed = with_extra_outputs(integer(), names)
    shapes = {"images": ((2, *IMAGE),) * 3}
    assert build_plan(trt, exposed_types(exposed, names), Recipe(shapes, target_sm="8.6")).plan
    fed = cut(exposed, {"embed.q": ("fed", INT8, (2, 4, 48))})
    shapes["fed"] = ((2, 4, 48),) * 3  # type: ignore[assignment]
    assert build_plan(trt, exposed_types(fed, names), Recipe(shapes, target_sm="8.6")).plan


def test_a_refusal_names_node_and_layer() -> None:
    """The ORT dialect's zero points: TensorRT's own text, the ONNX node, the layer, the next step."""
    model = onnx.load_from_string(integer())
    for tensor in model.graph.initializer:
        if tensor.name == "b0.fc1.zero":
            tensor.raw_data = np.int8(3).tobytes()
    for node in model.graph.node:
        if node.name == "b0.fc1.q/QuantizeLinear":
            node.name = "b0.fc1/QuantizeLinear"
    one = Layer(
        name="b0.fc1", kind="linear", macs=1, weight_bits=8, activation_bits=8, stored_as="INT8", tensor="b0.fc1.w8"
    )
    with pytest.raises(IntvitError, match="cannot read the graph") as caught:
        build_plan(trt, model.SerializeToString(), recipe(), layers=[one], where="tiny.onnx")
    error = caught.value
    assert "tiny.onnx, QuantizeLinear node 'b0.fc1/QuantizeLinear', layer 'b0.fc1'" in error.where
    assert "zero point" in error.why.lower() and "toolchain.lint" in error.next


def test_types_that_do_not_match_are_refused() -> None:
    """Strong typing: a float32 scale in a float16 graph."""
    model = onnx.load_from_string(retype(integer(), "fp16"))
    for tensor in model.graph.initializer:
        if tensor.name == "b0.fc1.wscale":
            half = np.frombuffer(tensor.raw_data, np.float16)
            tensor.data_type, tensor.raw_data = 1, half.astype(np.float32).tobytes()
    with pytest.raises(IntvitError, match="cannot") as caught:
        build_plan(trt, model.SerializeToString(), recipe())
    assert "same" in caught.value.why or "type" in caught.value.why


def test_the_library_is_found() -> None:
    assert module_name(library("tensorrt_rtx")) == "tensorrt_rtx"

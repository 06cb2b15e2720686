"""The runtime's builder makes plans of a trained network's graphs with the real TensorRT-RTX: no GPU, no driver."""

from __future__ import annotations

import pytest

from runtime.backends.trt.build import Recipe, batch_shapes, build_plan
from runtime.backends.trt.options import Batch
from runtime.onnx_retype import float_type, retype
from runtime.onnx_wire import read_graph
from tests.toolchain.nets import calibrated, digits, serialized
from toolchain.graph import canonical_graph, float_graph

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")


def test_plans_of_vit_digits() -> None:
    """The integer network as the runtime would build it without a graph for TensorRT, and its float16 twin."""
    module, spec = digits()
    integer = serialized(canonical_graph(calibrated(module, spec, "w8a8")))
    twin = retype(serialized(float_graph(module, spec)), "fp16")
    assert float_type(read_graph(twin)) == "float16"
    sizes = {}
    half = retype(integer, "fp16")
    for name, model, batch in (("integer", integer, "1"), ("half", half, "1:2:4"), ("twin", twin, "1")):
        shapes = {"images": batch_shapes(spec.input_size, Batch.parse(batch))}
        built = build_plan(trt, model, Recipe(shapes, workspace_bytes=1 << 28, target_sm="8.6"), where=name)
        assert built.warnings == ()
        sizes[name] = len(built.plan)
    assert min(sizes.values()) > 1 << 20

"""What the engines really do with a small graph, to hold the rules' claims against. Versions the facts come from."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from runtime.backends.ort import make_session, optimized_bytes
from runtime.backends.trt.build import Recipe, Shapes, build_plan
from runtime.errors import IntvitError
from runtime.execution import INTEGER_KERNELS
from runtime.onnx_wire import read_graph
from tests.toolchain.nets import serialized

MEASURED = {"tensorrt-rtx": ("1.7.",), "onnxruntime": ("1.31.", "1.32."), "openvino": ("2026.4.",)}


def need(package: str) -> None:
    """Skip where the version that a rule's fact was measured with is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if not version.startswith(MEASURED[package]):
        known = " and ".join(f"{start}x" for start in MEASURED[package])
        pytest.skip(f"the rules speak of {package} {known}; here is {version or 'none'}")


def tensorrt(model: ir.Model) -> str:
    """:func:`refusal`, of the version the rules speak of."""
    need("tensorrt-rtx")
    return refusal(model)


def refusal(model: ir.Model) -> str:
    """Why TensorRT-RTX refuses to parse or build ``model``, strongly typed; empty where it takes it. Needs no GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    shapes: dict[str, Shapes] = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.shape is not None
        if any(not isinstance(size, int) for size in value.shape):
            shapes[value.name] = (tuple(size if isinstance(size, int) else 4 for size in value.shape),) * 3
    try:
        build_plan(trt, serialized(model), Recipe(shapes))
    except IntvitError as error:
        return error.why
    return ""


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    """Random inputs: normal floats, positive ones for what is not ``x`` (scales); 4 where a size is open."""
    generator = np.random.default_rng(5)
    found = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None
        shape = [size if isinstance(size, int) else 4 for size in value.shape]
        drawn = np.asarray(generator.standard_normal(shape))
        found[value.name] = np.asarray(drawn if value.name == "x" else np.abs(drawn)).astype(value.dtype.numpy())
    return found


def distance(made: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(made.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def wanted(model: ir.Model) -> np.ndarray:
    """The first output with every node run as it is written."""
    first: np.ndarray = make_session(serialized(model), threads=1, optimize=False).run(None, feeds(model))[0]
    return first.astype(np.float64)


def onnxruntime(model: ir.Model) -> str:
    """``refused``, ``fails`` at the first run, ``wrong`` (by over 5 %), ``integer`` (all products), or ``float``."""
    need("onnxruntime")
    try:
        graph = read_graph(optimized_bytes(serialized(model)))
    except IntvitError:
        return "refused"
    try:
        made = make_session(serialized(model), threads=1).run(None, feeds(model))[0]
    except Exception as error:
        assert "onnxruntime" in type(error).__module__
        return "fails"
    if distance(made, wanted(model)) > 0.05:
        return "wrong"
    found = graph.op_histogram()
    return "integer" if _all_integer(found) else "float"


def _all_integer(found: Mapping[str, int]) -> bool:
    floats = sum(found.get(name, 0) for name in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
    return floats == 0 and any(name in found for name in INTEGER_KERNELS)


def openvino(model: ir.Model) -> str:
    """As :func:`onnxruntime`, from OpenVINO's CPU plugin in float32 and the kernels its runtime model names."""
    need("openvino")
    import openvino as ov

    core = ov.Core()
    try:
        compiled = core.compile_model(
            core.read_model(serialized(model)), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        )
    except RuntimeError:
        return "refused"
    given = feeds(model)
    made = compiled([given[port.get_any_name()] for port in compiled.inputs])[0]
    if distance(made, wanted(model)) > 0.05:
        return "wrong"
    kernels = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {name: str(node.get_rt_info()[name].astype(str)) for name in ("layerType", "primitiveType")}
        if info["layerType"] in ("FullyConnected", "MatMul", "Convolution"):
            kernels.append(info["primitiveType"].lower())
    return "integer" if kernels and all(name.endswith("i8") for name in kernels) else "float"

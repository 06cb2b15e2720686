"""The TensorRT engines of a bundle: what decides their bytes, when one is built anew, and which plan may be loaded.

Loading a plan runs native code that lies in it, so only a plan that this device built and wrote into the bundle's
registry is loaded, and only while its bytes are the registered ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.backends.base import refuse_external
from runtime.backends.gpu.device import Device
from runtime.backends.trt.build import Recipe, batch_shapes, build_plan, timing_path
from runtime.backends.trt.library import is_rtx, module_name
from runtime.backends.trt.options import Precision, TensorRtOptions
from runtime.backends.trt.types import TensorRT
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.files import sha256_bytes
from runtime.kernels.build import source_hash
from runtime.kernels.nodes import uses_kernels
from runtime.manifest import FileEntry
from runtime.nvidia import GpuDevice
from runtime.onnx_retype import VERSION as RETYPE
from runtime.onnx_retype import retype
from runtime.onnx_wire import read_graph
from runtime.registry import ENGINES, EngineRecord, add_engine, compile_key, difference, find_engine, load_registry

BACKEND = "tensorrt"
TWIN_PRECISION: Precision = "fp16"
Role = Literal["integer", "twin"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where engines are built and run: the library, the GPU as its driver describes it, its memory and streams."""

    trt: TensorRT
    gpu: GpuDevice
    device: Device


@dataclass(frozen=True)
class Graph:
    """A graph of the bundle and what its float parts shall compute in ("graph": what they say themselves).

    ``kernels``: whether it holds nodes of our kernels.
    """

    entry: FileEntry
    precision: Precision
    kernels: bool = False

    @property
    def source(self) -> str:
        """Which graph it is: the target, or the role for those without one."""
        return self.entry.target or self.entry.role


def graph_of(bundle: Bundle, role: Role, precision: Precision = "graph") -> Graph:
    """The graph an engine is built from.

    The integer one is the bundle's graph for tensorrt, or the canonical graph where the bundle was built without that
    target: TensorRT takes it as well, with its float parts in float32. The twin is the bundle's float network for
    tensorrt as it stands, which has the integer graph's compute type, or else the float32 network put into float16.

    Raises:
        IntvitError: the bundle has none of them.
    """
    if role == "twin":
        if any(entry.role == "float_twin" and entry.target == BACKEND for entry in bundle.manifest.files):
            return Graph(bundle.entry("float_twin", BACKEND), "graph")
        return Graph(bundle.entry("float_twin"), TWIN_PRECISION)
    if any(entry.role == "graph" and entry.target == BACKEND for entry in bundle.manifest.files):
        entry = bundle.entry("graph", BACKEND)
        return Graph(entry, precision, _with_kernels(bundle.root / entry.path, entry.sha256))
    if any(entry.role == "canonical" for entry in bundle.manifest.files):
        return Graph(bundle.entry("canonical"), precision)
    return Graph(bundle.entry("graph", BACKEND), precision)  # says which targets the bundle has


@functools.lru_cache(maxsize=16)
def _with_kernels(path: Path, sha256: str) -> bool:
    """Whether the graph of that hash holds nodes of our kernels; read once."""
    return uses_kernels(read_graph(path.read_bytes()))


def graph_bytes(bundle: Bundle, graph: Graph) -> bytes:
    """The ONNX file that is built, its float parts in the precision asked for.

    Raises:
        IntvitError: its weights lie in another file, or a constant does not fit the precision.
    """
    path = bundle.root / graph.entry.path
    model = path.read_bytes()
    refuse_external(model, str(path))
    return model if graph.precision == "graph" else retype(model, graph.precision, where=str(path))


def inputs_of(place: Place, graph: Graph, role: Role, options: TensorRtOptions) -> dict[str, Any]:
    """All that decides a plan: the graph, the library and its version, the GPU, and the options that matter to it."""
    return {
        "role": role,
        "graph_sha256": graph.entry.sha256,
        "precision": graph.precision,
        "retype": RETYPE,
        "library": module_name(place.trt),
        "tensorrt": str(place.trt.__version__),
        "device": place.gpu.name,
        "sm": place.gpu.sm,
        "batch": str(options.batch),
        "level": options.level,
        "workspace_mib": options.workspace_bytes(place.gpu.memory_bytes) >> 20,
        **({"kernels": source_hash()} if graph.kernels else {}),
    }


_SLOT = ("role", "batch", "precision")  # engines that differ here live side by side
_PLACE = ("library", "tensorrt", "device", "sm")  # an engine of another place can never be used again here


def _same(old: EngineRecord, inputs: dict[str, Any], names: tuple[str, ...]) -> bool:
    return all(old.inputs.get(name) == inputs[name] for name in names)


def _nearest(engines: list[EngineRecord], inputs: dict[str, Any]) -> EngineRecord | None:
    """The engine that the one to be built comes in the place of, or else another of its role."""
    mine = [old for old in engines if old.backend == BACKEND and old.inputs.get("role") == inputs["role"]]
    return max(mine, key=lambda old: (_same(old, inputs, _SLOT), _same(old, inputs, _PLACE)), default=None)


def find(bundle: Bundle, place: Place, role: Role, options: TensorRtOptions) -> EngineRecord | None:
    """The registered engine for exactly this graph, library, GPU and options, if there is one.

    Raises:
        IntvitError: the registry, or an engine it lists, was altered.
    """
    inputs = inputs_of(place, graph_of(bundle, role, options.precision), role, options)
    return find_engine(load_registry(bundle.root).engines, BACKEND, inputs)


def ensure(
    bundle: Bundle, place: Place, role: Role, options: TensorRtOptions, *, force: bool = False, say: Say
) -> tuple[EngineRecord, str]:
    """The registered engine, built first where there is none or something differs; and why it was, or "up to date".

    Args:
        say: takes the one line that says that an engine is being built, and why.

    Raises:
        IntvitError: the graph does not build, or the bundle cannot be written to.
    """
    graph = graph_of(bundle, role, options.precision)
    inputs = inputs_of(place, graph, role, options)
    engines = load_registry(bundle.root).engines
    found = find_engine(engines, BACKEND, inputs)
    if found is not None and not force:
        return found, "up to date"
    reason = difference("TensorRT", _nearest(engines, inputs), inputs)
    say(f"tensorrt: building the {role} engine ({reason}); on a small board this takes minutes")
    where = str(bundle.root / graph.entry.path)
    rule = bundle.manifest.preprocess
    recipe = Recipe(
        shapes={
            bundle.manifest.input_name: batch_shapes((rule.channels, rule.height, rule.width), options.batch),
        },
        level=options.level,
        workspace_bytes=options.workspace_bytes(place.gpu.memory_bytes),
        timing=None if is_rtx(place.trt) else timing_path(place.trt, place.gpu),  # RTX has no such cache
        sm=place.gpu.sm,
        kernels=options.kernels,
    )
    with place.device.current():
        built = build_plan(place.trt, graph_bytes(bundle, graph), recipe, layers=bundle.manifest.layers, where=where)
    key = compile_key(inputs)
    record = EngineRecord(
        backend=BACKEND,
        key=key,
        path=f"{ENGINES}/{BACKEND}-{key}/model.plan",
        sha256=sha256_bytes(built.plan),
        bytes=len(built.plan),
        inputs=inputs,
    )
    add_engine(bundle.root, engines, record, built.plan, lambda old: _replaced(old, inputs))
    say(f"tensorrt: built in {built.seconds:.0f} s, {record.bytes / 1e6:.1f} MB, {len(built.warnings)} warning(s)")
    return record, reason


def _replaced(old: EngineRecord, inputs: dict[str, Any]) -> bool:
    return old.backend == BACKEND and (_same(old, inputs, _SLOT) or not _same(old, inputs, _PLACE))


def plan_bytes(bundle: Bundle, record: EngineRecord) -> bytes:
    """A registered plan, once its bytes are found to be those that were registered.

    Raises:
        IntvitError: they are others, or the file is gone.
    """
    path = bundle.root / record.path
    hint = "`python -m runtime.compile BUNDLE --backend tensorrt --force` builds it anew"
    try:
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError("a registered engine is missing", where=str(path), why=why, next=hint) from error
    if sha256_bytes(data) != record.sha256:
        raise IntvitError(
            "the engine is not the one that was registered",
            where=str(path),
            why="its sha256 differs from the registry's; a plan holds native code, so it is not loaded",
            next=hint,
        )
    return data

"""An ONNX file's bytes into a TensorRT plan: one strongly typed code path for 10.3 to 11.4 and TensorRT-RTX."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from runtime.backends.trt.library import module_name
from runtime.backends.trt.log import Heard, build_error, make_logger, parse_error
from runtime.backends.trt.options import Batch
from runtime.backends.trt.plugins import make_known
from runtime.backends.trt.types import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    OnnxParser,
    TensorRT,
)
from runtime.errors import IntvitError
from runtime.files import atomic_write_bytes, user_cache
from runtime.kernels.build import FOLDER
from runtime.manifest import Layer
from runtime.nvidia import GpuDevice
from runtime.onnx_boundary import with_fixed_inputs
from runtime.onnx_wire import read_graph

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def batch_shapes(image: Sequence[int], batch: Batch) -> Shapes:
    """The shapes of an input (N, C, H, W) for the batch sizes of an engine; ``image`` is (C, H, W)."""
    least, best, most = ((size, *image) for size in (batch.least, batch.best, batch.most))
    return least, best, most


@dataclass(frozen=True)
class Recipe:
    """How to build.

    Attributes:
        shapes: of each input: least, best and most. An input with one shape has it written into the graph; the rest
            become an optimization profile.
        level: builder_optimization_level, 0 to 5.
        workspace_bytes: memory pool limit; 0: TensorRT's own.
        timing: file of the timing cache; None: no cache is kept.
        target_sm: compute capability to build for, as "8.6", where no GPU is looked at (TensorRT-RTX only).
        sm: compute capability of this machine's GPU, where it is known. kernels: what ``make kernels`` wrote; both
            matter to a graph with nodes of our kernels.
    """

    shapes: Mapping[str, Shapes]
    level: int = 3
    workspace_bytes: int = 0
    timing: Path | None = None
    target_sm: str = ""
    sm: str = ""
    kernels: Path = FOLDER


@dataclass(frozen=True)
class Built:
    """A plan, how long it took, and what TensorRT warned of."""

    plan: bytes
    seconds: float
    warnings: tuple[str, ...]


def timing_path(trt: TensorRT, device: GpuDevice) -> Path:
    """Where the timing cache of this device and version of TensorRT is kept, for all bundles of this user."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{module_name(trt)}-{trt.__version__}-{device.name}-sm{device.sm}")
    return user_cache() / "tensorrt" / f"{name.lower()}.timing"


class _Work:
    """The objects of one build, dropped in the order in which they depend on each other."""

    def __init__(self, trt: TensorRT) -> None:
        logger, heard = make_logger(trt)
        self.logger: ILogger = logger
        self.heard: Heard = heard
        self.builder: Builder = trt.Builder(logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network: INetworkDefinition = self.builder.create_network(typed)
        self.parser: OnnxParser = trt.OnnxParser(self.network, logger)
        self.config: IBuilderConfig = self.builder.create_builder_config()
        self.timing_cache: ITimingCache = None

    def close(self) -> None:
        for name in ("parser", "network", "config", "timing_cache", "builder", "logger"):
            setattr(self, name, None)


def build_plan(trt: TensorRT, model: bytes, recipe: Recipe, *, layers: Sequence[Layer] = (), where: str = "") -> Built:
    """Build a plan of ``model``, an ONNX file's bytes, for this machine's GPU or for ``recipe.target_sm``.

    The caller has found a working driver before (:func:`runtime.nvidia.require_device`), unless the library is
    TensorRT-RTX and ``target_sm`` is given.

    Args:
        layers: the manifest's, to name the timm module of a node that fails.
        where: the graph's file, for messages.

    Raises:
        IntvitError: the graph is not read, or no engine comes of it; it holds nodes of our kernels, and there are no
            plugins for them (:func:`runtime.backends.trt.plugins.make_known`).
    """
    start = time.monotonic()
    make_known(trt, read_graph(model), recipe.kernels, sm=recipe.sm, where=where)
    model = with_fixed_inputs(model, {name: most for name, (least, _, most) in recipe.shapes.items() if least == most})
    try:
        work = _Work(trt)
    except Exception as error:
        hint = "run `python -m runtime.doctor`"
        raise IntvitError("TensorRT does not start", where=where, why=str(error), next=hint) from error
    try:
        if not work.parser.parse(model):
            raise parse_error(work.parser, work.heard, layers, where)
        _configure(trt, work, recipe)
        said = ""
        plan: IHostMemory = None
        try:
            plan = work.builder.build_serialized_network(work.network, work.config)
        except Exception as error:
            said = str(error) or type(error).__name__
        if plan is None:
            raise build_error(work.heard, read_graph(model), layers, where, said)
        data = bytes(plan)
        plan = None
        _keep_timing(work, recipe.timing)
        return Built(data, time.monotonic() - start, tuple(work.heard.warnings))
    finally:
        work.close()


def _configure(trt: TensorRT, work: _Work, recipe: Recipe) -> None:
    config: IBuilderConfig = work.config
    config.builder_optimization_level = recipe.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    if recipe.target_sm:
        _target(trt, config, recipe.target_sm)
    if any(least != most for least, _, most in recipe.shapes.values()):
        config.add_optimization_profile(_profile(work, recipe))
    if recipe.timing is not None:
        _load_timing(work, recipe.timing)


def _target(trt: TensorRT, config: IBuilderConfig, sm: str) -> None:
    known = getattr(trt, "ComputeCapability", None)
    chosen = getattr(known, f"SM{sm.replace('.', '')}", None)
    if chosen is None or not hasattr(config, "set_compute_capability"):
        raise IntvitError(
            f"cannot build for compute capability {sm} from here",
            where=f"{module_name(trt)} {trt.__version__}",
            why="only TensorRT-RTX builds for another GPU, and only for those it knows",
            next="build on the device itself: `python -m runtime.compile BUNDLE --backend tensorrt`",
        )
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
    if hasattr(config, "set_compute_capability"):
        config.set_compute_capability(chosen, 0)


def _profile(work: _Work, recipe: Recipe) -> IOptimizationProfile:
    profile: IOptimizationProfile = work.builder.create_optimization_profile()
    for name, (least, best, most) in recipe.shapes.items():
        profile.set_shape(name, least, best, most)
    return profile


def _load_timing(work: _Work, path: Path) -> None:
    """Attach the kept cache, or an empty one where there is none or it is not of this device and version."""
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    for data in dict.fromkeys((kept, b"")):
        try:
            work.timing_cache = work.config.create_timing_cache(data)
        except Exception:
            work.timing_cache = None
        if work.timing_cache is not None and work.config.set_timing_cache(work.timing_cache, False):
            return
    work.timing_cache = None


def _keep_timing(work: _Work, path: Path | None) -> None:
    if path is None or work.timing_cache is None:
        return
    saved: IHostMemory = work.timing_cache.serialize()
    if saved is not None:
        atomic_write_bytes(path, bytes(saved))

"""TensorRT on NVIDIA GPUs: Jetson (10.3, 10.16) and desktop (to 11.4), and TensorRT-RTX. Imported when used.

The engine is built on the device at the first use and kept in the bundle (:mod:`runtime.backends.trt.engines`). Its
twin is the float network in float16, because that is what an integer engine has to beat on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from runtime.backends.base import Images, Logits, check_images, check_logits, check_ports
from runtime.backends.gpu.device import Device, open_device
from runtime.backends.trt.build import Recipe, build_plan
from runtime.backends.trt.engines import Place, Role, ensure, graph_bytes, graph_of, plan_bytes
from runtime.backends.trt.library import library, module_name
from runtime.backends.trt.options import TensorRtOptions
from runtime.backends.trt.plugins import ahead_of_time, make_known
from runtime.backends.trt.run import Plan
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.kernels.nodes import LINEAR_I8
from runtime.nvidia import require_device
from runtime.onnx_boundary import with_typed_outputs
from runtime.onnx_retype import float_type
from runtime.onnx_wire import INT8, read_graph
from runtime.quantizers import Quantizer, symmetric
from runtime.registry import EngineRecord


def say(line: str) -> None:
    """Show a line on standard error."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def open_place(options: TensorRtOptions) -> Place:
    """The GPU, TensorRT and the library for memory, asked in that order: TensorRT crashes without a driver.

    Raises:
        IntvitError: one of them is not there.
    """
    gpu = require_device(options.device)
    trt = library(options.library)
    return Place(trt, gpu, open_device(options.device, options.cuda, capture=options.cuda_graph))


def _release(plan: Plan, device: Device) -> None:
    plan.close()
    device.close()


class TensorRtEngine:
    """An engine of a bundle, or its float16 twin, loaded on a GPU. Safe to use from several threads.

    A call of more images than the engine's batch is run in parts; a smaller part is filled up with zeros.

    Attributes:
        twin_precision: what the twin computes in, unless the bundle has one of its own for tensorrt; then
            :meth:`describe` says it.
        twin_options: the options that hold for the twin too.
    """

    name = "tensorrt"
    twin_precision = "float16"
    twin_options = frozenset({"library", "batch", "level", "workspace", "device", "cuda", "cuda_graph"})

    def __init__(self, bundle: Bundle, place: Place, record: EngineRecord, options: TensorRtOptions) -> None:
        rule = bundle.manifest.preprocess
        self.input_shape: tuple[int, int, int] = (rule.channels, rule.height, rule.width)
        self.num_classes = bundle.manifest.num_classes
        self.record = record
        self._names = (bundle.manifest.input_name, bundle.manifest.output_name)
        self._options, self._place = options, place
        self._where = str(bundle.root / record.path)
        role: Role = "twin" if record.inputs["role"] == "twin" else "integer"
        graph = graph_of(bundle, role, options.precision)
        nodes = read_graph(graph_bytes(bundle, graph))
        self._source, self._float = graph.source, float_type(nodes)
        if not ahead_of_time(place.trt):
            make_known(place.trt, nodes, options.kernels, sm=place.gpu.sm, where=self._where)
        data = plan_bytes(bundle, record)
        self._plan = Plan(place.trt, data, place.device, cuda_graph=options.cuda_graph, where=self._where)
        inputs, outputs = ([tensor.name for tensor in part] for part in (self._plan.inputs, self._plan.outputs))
        try:
            check_ports(inputs, outputs, self._names, what="plan", where=self._where)
        except IntvitError:
            self._plan.close()
            raise
        self._release = weakref.finalize(self, _release, self._plan, place.device)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        twin: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> TensorRtEngine:
        """The integer engine, or the float16 ``twin``; built first, with a line on standard error, where there is none
        for this graph, TensorRT, GPU and these options. ``threads`` means nothing to a GPU.

        Raises:
            IntvitError: no driver, TensorRT or library for GPU memory; the graph does not build; an option is unknown
                (see :class:`runtime.backends.trt.options.TensorRtOptions`).
        """
        return cls.built(bundle, "twin" if twin else "integer", TensorRtOptions.parse(options or {}))[0]

    @classmethod
    def built(
        cls, bundle: Bundle, role: Role, options: TensorRtOptions, *, force: bool = False
    ) -> tuple[TensorRtEngine, str]:
        """The engine of that role, and why it was built, or "up to date".

        Raises:
            IntvitError: as :meth:`open`.
        """
        place = open_place(options)
        try:
            record, reason = ensure(bundle, place, role, options, force=force, say=say)
            return cls(bundle, place, record, options), reason
        except BaseException:
            place.device.close()
            raise

    def run(self, images: Images) -> Logits:
        """See :meth:`runtime.backends.base.Engine.run`."""
        check_images(images, self.input_shape)
        batch, parts = self._options.batch, []
        for start in range(0, len(images), batch.most):
            part = images[start : start + batch.most]
            padded = self._filled(part, max(len(part), batch.least))
            logits = self._plan.run({self._names[0]: padded})[self._names[1]]
            parts.append(check_logits(logits, (len(padded), self.num_classes), where=self._where)[: len(part)])
        return np.concatenate(parts)

    @staticmethod
    def _filled(part: Images, size: int) -> Images:
        if len(part) == size:
            return part
        filled = np.zeros((size, *part.shape[1:]), np.float32)
        filled[: len(part)] = part
        return filled

    def run_device(self, images: Any, logits: Any) -> None:
        """One call from device memory to device memory: see :meth:`runtime.backends.trt.run.Plan.run_device`.

        ``images`` (N, C, H, W) and ``logits`` (N, classes), N within the engine's batch.
        """
        self._plan.run_device(images, logits)

    def gpu_ms(self, images: Images, calls: int) -> list[float]:
        """Milliseconds on the GPU of ``calls`` runs of one batch that the engine takes, copies left out.

        Raises:
            IntvitError: the array has another type or shape, or the engine failed.
        """
        check_images(images, self.input_shape)
        return self._plan.gpu_ms({self._names[0]: images}, calls)

    def layers_json(self) -> str:
        """The engine inspector's JSON: every layer, its types and its kernel."""
        return self._plan.layers_json()

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Engine.close`; waits for runs under way. An engine that is forgotten is
        closed with its last reference, or at the process's end before CUDA is gone.
        """
        self._release()

    def describe(self) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.Engine.describe`."""
        device = self._place.device
        return {
            "backend": self.name,
            "library": module_name(self._place.trt),
            "version": str(self._place.trt.__version__),
            "device": self._place.gpu.describe(),
            "cuda": f"{device.name} {device.version}",
            "cuda_graph": self._options.cuda_graph,
            "graph": self._source,
            "float": self._float,
            "compiled": self.record.key,
            "engine_bytes": self.record.bytes,
            "options": {name: self.record.inputs[name] for name in ("precision", "batch", "level", "workspace_mib")},
        }

    @staticmethod
    def tapped(bundle: Bundle) -> tuple[bytes, list[Quantizer]]:
        """See :meth:`runtime.backends.base.EngineClass.tapped`: the stored graph. An output more may keep TensorRT from
        fusing across it, so what is compared is the graph's arithmetic; the logits are the engine's own.
        """
        graph = graph_of(bundle, "integer")
        model, where = graph_bytes(bundle, graph), str(bundle.root / graph.entry.path)
        return model, symmetric(bundle.manifest.taps, read_graph(model), where=where)

    @staticmethod
    def run_graph(
        model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.EngineClass.run_graph`: a plan for the shapes of ``feeds``, not kept."""
        options = TensorRtOptions()
        place = open_place(options)
        try:
            recipe = Recipe(
                shapes={name: (array.shape,) * 3 for name, array in feeds.items()},
                workspace_bytes=options.workspace_bytes(place.gpu.memory_bytes),
                sm=place.gpu.sm,
            )
            typed = exposed_types(model, names)
            with place.device.current():
                built = build_plan(place.trt, typed, recipe, where=where)
            plan = Plan(place.trt, built.plan, place.device, where=where)
            try:
                found = plan.run({name: np.asarray(array) for name, array in feeds.items()})
            finally:
                plan.close()
            return {name: found[name] for name in names}
        finally:
            place.device.close()


def exposed_types(model: bytes, names: Sequence[str]) -> bytes:
    """``model`` with the types of those outputs that a quantizer makes, a kernel among them: TensorRT does not infer
    them.

    Raises:
        IntvitError: the bytes are malformed.
    """
    producer = read_graph(model).producer
    quantizers = ("QuantizeLinear", LINEAR_I8)
    quantized = [name for name in names if name in producer and producer[name].op_type in quantizers]
    return with_typed_outputs(model, dict.fromkeys(quantized, INT8))


@dataclass(frozen=True)
class CompiledRole:
    """What :func:`compile_engines` did for one of the two engines.

    Attributes:
        role: "integer" or "twin".
        record: the registered engine.
        reason: why it was built, or "up to date".
        precision: what its float parts compute in, by numpy's name.
        logits: of the golden images, float32 (N, classes).
        layers_json: the engine inspector's account of its layers.
    """

    role: Role
    record: EngineRecord
    reason: str
    precision: str
    logits: Logits
    layers_json: str


def compile_engines(
    bundle: Bundle, options: Mapping[str, str] | None = None, *, force: bool = False
) -> list[CompiledRole]:
    """Make sure the bundle holds both engines for this device, the integer one and its float twin.

    Both are run on the golden images; one that does not give finite logits is an error.

    Raises:
        IntvitError: as :meth:`TensorRtEngine.open`, or an engine gives no finite logits.
    """
    chosen, done = TensorRtOptions.parse(options or {}), list[CompiledRole]()
    roles: tuple[Role, ...] = ("integer", "twin")
    for role in roles:
        engine, reason = TensorRtEngine.built(bundle, role, chosen, force=force)
        try:
            logits, layers = engine.run(bundle.golden().images), engine.layers_json()
        finally:
            engine.close()
        if not np.isfinite(logits).all():
            why = "a value beyond 65504 becomes infinite in float16"
            hint = "--option precision=bf16, or fp32"
            raise IntvitError("the engine gives no finite logits", where=engine.record.path, why=why, next=hint)
        done.append(CompiledRole(role, engine.record, reason, engine.describe()["float"], logits, layers))
    return done

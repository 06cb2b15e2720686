"""OpenVINO on the CPU: oneDNN's int8 primitives with fused epilogues. The ``openvino`` extra, imported when used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from runtime import machine
from runtime.backends.base import Images, Logits, as_typed, check_images, check_logits, check_ports, refuse_external
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.files import require_writable
from runtime.lanes import divide, equal_piece
from runtime.onnx_wire import read_graph
from runtime.quantizers import Quantizer, symmetric
from runtime.registry import EngineRecord, find_engine

KEPT_BATCHES = 2
A_CALL = 4  # images of a lane at a time: of 1, 2 and 4 the fastest (docs/decisions/0039-lanes.md)
Precision = Literal["f32", "bf16", "f16"]


@dataclass(frozen=True)
class OpenVinoOptions:
    """What a user may choose (``--option precision=bf16``).

    Attributes:
        precision: what the float parts compute in. With f32 the integers are the calibrated ones; bf16 and f16 are
            faster where the processor has them, and round differently: parity does not hold then.
        cache_dir: where OpenVINO keeps what it compiled, for a quicker start; its files are OpenVINO's own and not
            verified. Empty: nowhere.
    """

    precision: Precision = "f32"
    cache_dir: str = ""

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> OpenVinoOptions:
        """Options from texts.

        Raises:
            IntvitError: an unknown name, a value its type does not have, or a ``cache_dir`` that may not be written.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                hint = f"known: {', '.join(known)}"
                raise IntvitError(f"unknown option {name!r} of the openvino backend", where=as_typed(name), next=hint)
        made = cls(**values)  # type: ignore[arg-type]
        if made.precision not in get_args(Precision):
            hint = f"precision={' or '.join(get_args(Precision))}"
            raise IntvitError(f"unknown precision {made.precision!r}", where="--option", next=hint)
        if made.cache_dir:
            try:
                require_writable(Path(made.cache_dir) / "model.blob")
            except IntvitError as error:
                where, hint = f"--option cache_dir={made.cache_dir}", "name a folder that may be written"
                raise IntvitError(
                    "OpenVINO cannot keep its cache there", where=where, why=error.why, next=hint
                ) from error
        return made


def library() -> Any:
    """The ``openvino`` module.

    Raises:
        IntvitError: it is not installed.
    """
    try:
        import openvino

        if not hasattr(openvino, "__version__"):
            raise ImportError(f"only a folder called openvino, {next(iter(openvino.__path__), '')}")
    except ImportError as error:
        hint = "pip install 'intvit[openvino]'"
        raise IntvitError("OpenVINO is not installed", where="backend 'openvino'", why=str(error), next=hint) from error
    return openvino


def graph_options(options: OpenVinoOptions) -> dict[str, str]:
    """The properties that change which kernels a graph becomes on this machine, in OpenVINO's own names.

    ``DYNAMIC_QUANTIZATION_GROUP_SIZE``: at its default of 32 a weight-only layer has its float activations quantized
    to 8 bits behind our back; 0 keeps them float.

    ``LP_TRANSFORMS_MODE``: on x86 without VNNI or AMX oneDNN's int8 products are not exact
    (docs/decisions/0011-openvino-dialect.md). There the products run in float, on the same integers.
    """
    made = {"INFERENCE_PRECISION_HINT": options.precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return made | ({"LP_TRANSFORMS_MODE": "NO"} if machine.saturating_u8s8() else {})


def properties(threads: int, options: OpenVinoOptions, lanes: int = 1) -> dict[str, str]:
    """:func:`graph_options`, and how many calls go on side by side, with how many threads together."""
    made = {**graph_options(options), "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": str(lanes)}
    return made | ({"CACHE_DIR": options.cache_dir} if options.cache_dir else {})


def load(model: bytes, *, where: str) -> Any:
    """An ``openvino.Model`` of an ONNX file's bytes, whose weights all lie in those bytes.

    Raises:
        IntvitError: OpenVINO is not installed or cannot read the graph.
    """
    ov = library()
    refuse_external(model, where)
    try:
        return ov.Core().read_model(model)
    except Exception as error:
        raise _cannot_load(ov, where, error) from error


def compiled_model(model: Any, config: Mapping[str, str], *, where: str) -> Any:
    """An ``openvino.CompiledModel`` for the CPU of an ``openvino.Model``, or of the bytes one was exported to.

    Raises:
        IntvitError: OpenVINO cannot compile it.
    """
    ov = library()
    core = ov.Core()
    try:
        if isinstance(model, bytes):
            return core.import_model(model, "CPU", dict(config))
        return core.compile_model(model, "CPU", dict(config))
    except Exception as error:
        raise _cannot_load(ov, where, error) from error


def fixed(model: Any, batch: int) -> Any:
    """A copy of an ``openvino.Model`` (batch, C, H, W) whose batch is that number: its kernels are 5-8 % faster so."""
    copy = model.clone()
    copy.reshape([batch, *list(model.input(0).partial_shape)[1:]])
    return copy


def _cannot_load(ov: Any, where: str, error: Exception) -> IntvitError:
    why = f"openvino {ov.__version__}: {error}"
    hint = "run `python -m runtime.doctor`; `pip install --upgrade openvino` if it is old"
    return IntvitError("OpenVINO cannot load the graph", where=where, why=why, next=hint)


def compile_inputs(graph_sha256: str) -> dict[str, Any]:
    """All that decides a compiled engine's bytes: the graph, OpenVINO, the CPU's features, the options, the batch."""
    return {
        "graph_sha256": graph_sha256,
        "openvino": library().__version__,
        "cpu_flags": machine.integer_flags(),
        "options": graph_options(OpenVinoOptions()),
        "batch": 1,
    }


def exported_bytes(graph: bytes, *, where: str) -> bytes:
    """OpenVINO's own file of an ONNX file's bytes compiled for a batch of 1 on this machine.

    Raises:
        IntvitError: OpenVINO is not installed or cannot load the graph.
    """
    made = compiled_model(fixed(load(graph, where=where), 1), properties(1, OpenVinoOptions()), where=where)
    data: bytes = made.export_model().getvalue()
    return data


def compiled_engine(bundle: Bundle) -> EngineRecord | None:
    """The engine compiled from this bundle's graph for this very machine, if there is one."""
    return find_engine(bundle.engines, "openvino", compile_inputs(bundle.entry("graph", "openvino").sha256))


class OpenVinoEngine:
    """A graph in OpenVINO, compiled for each batch size it meets; two of them are kept.

    As many images as threads, or a multiple, run in lanes: as many requests at a time, each a stream of one thread.
    Safe to use from several threads: they wait for each other, and for :meth:`close`.
    """

    name = "openvino"
    twin_options: frozenset[str] = frozenset()

    def __init__(
        self,
        bundle: Bundle,
        path: Path,
        *,
        threads: int | None,
        options: OpenVinoOptions,
        compiled: EngineRecord | None,
    ) -> None:
        size = bundle.manifest.preprocess
        self.input_shape: tuple[int, int, int] = (size.channels, size.height, size.width)
        self.num_classes = bundle.manifest.num_classes
        self._threads, self._options = threads or machine.available_cores(), options
        self._config = properties(self._threads, options)
        self._path = path
        self._lock = threading.Lock()
        self._requests: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._compiled = compiled.key if compiled else ""
        model = load(path.read_bytes(), where=str(path))
        inputs, outputs = ([value.any_name for value in part] for part in (model.inputs, model.outputs))
        check_ports(inputs, outputs, (bundle.manifest.input_name, bundle.manifest.output_name), where=str(path))
        self._model: Any = model
        self._keep((1, 1), (bundle.root / compiled.path).read_bytes() if compiled else fixed(model, 1))

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        twin: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> OpenVinoEngine:
        """The integer graph, its batch of 1 from an engine compiled for this machine if there is one, or the ``twin``.

        Raises:
            IntvitError: OpenVINO is not installed, the bundle has no such graph, OpenVINO cannot load it, or
                an option is unknown (see :class:`OpenVinoOptions`).
        """
        library()
        chosen = OpenVinoOptions.parse(options or {})
        if twin:
            return cls(bundle, bundle.file("float_twin"), threads=threads, options=chosen, compiled=None)
        path = bundle.file("graph", "openvino")
        compiled = compiled_engine(bundle) if chosen == OpenVinoOptions() else None
        return cls(bundle, path, threads=threads, options=chosen, compiled=compiled)

    def _keep(self, key: tuple[int, int], model: Any) -> list[Any]:
        config = properties(self._threads, self._options, key[1])
        made = compiled_model(model, config, where=str(self._path))
        self._requests[key] = [made.create_infer_request() for _ in range(key[1])]
        while len(self._requests) > KEPT_BATCHES:
            self._requests.popitem(last=False)
        return self._requests[key]

    def _call(self, images: Images, batch: int, lanes: int) -> list[Logits]:
        """``images`` by ``batch``, ``lanes`` at a time."""
        key = (batch, lanes)
        requests = self._requests.get(key) or self._keep(key, fixed(self._model, batch))
        self._requests.move_to_end(key)
        parts = [images[at : at + batch] for at in range(0, len(images), batch)]
        said: list[Logits] = []
        try:
            for at in range(0, len(parts), lanes):
                for request, part in zip(requests, parts[at : at + lanes], strict=True):
                    request.start_async({0: part}, share_inputs=True)
                for request in requests:
                    request.wait()
                    said.append(request.get_output_tensor(0).data.copy())
        except BaseException:
            self._requests.pop(key)  # some may be busy still: a later call must not meet them
            raise
        return said

    def run(self, images: Images) -> Logits:
        """See :meth:`runtime.backends.base.Engine.run`."""
        check_images(images, self.input_shape)
        images = np.ascontiguousarray(images)
        alone, left = divide(len(images), self._threads) if self._threads > 1 else (0, len(images))
        said: list[Logits] = []
        with self._lock:
            if self._model is None:
                raise IntvitError("the engine has been closed", where=str(self._path))
            try:
                if alone:
                    said += self._call(images[:alone], equal_piece(alone // self._threads, A_CALL), self._threads)
                if left:
                    said += self._call(images[alone:], left, 1)
            except IntvitError:
                raise
            except Exception as error:
                raise IntvitError("OpenVINO failed while running", where=str(self._path), why=str(error)) from error
        logits = said[0] if len(said) == 1 else np.concatenate(said)
        return check_logits(logits, (len(images), self.num_classes), where=str(self._path))

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Engine.close`."""
        with self._lock:
            self._requests.clear()
            self._model = None

    def describe(self) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.Engine.describe`."""
        return {
            "backend": self.name,
            "device": "CPU",
            "version": library().__version__,
            "threads": self._threads,
            "lanes": self._threads,
            "compiled": self._compiled,
            "options": self._config,
        }

    @staticmethod
    def tapped(bundle: Bundle) -> tuple[bytes, list[Quantizer]]:
        """See :meth:`runtime.backends.base.EngineClass.tapped`: the stored graph; an output more leaves the kernels."""
        path = bundle.file("graph", "openvino")
        model = path.read_bytes()
        return model, symmetric(bundle.manifest.taps, read_graph(model), where=str(path))

    @staticmethod
    def run_graph(
        model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.EngineClass.run_graph`."""
        loaded = load(model, where=where)
        try:
            loaded.reshape({name: list(array.shape) for name, array in feeds.items()})
        except Exception as error:
            why = f"fed {', '.join(f'{name} {array.shape}' for name, array in feeds.items())}: {error}"
            raise IntvitError("the graph has other inputs than the manifest says", where=where, why=why) from error
        compiled = compiled_model(loaded, properties(threads, OpenVinoOptions()), where=where)
        try:
            found = compiled.create_infer_request().infer(dict(feeds))
            return {name: np.array(found[name]) for name in names}
        except Exception as error:
            raise IntvitError("OpenVINO failed while running", where=where, why=str(error)) from error

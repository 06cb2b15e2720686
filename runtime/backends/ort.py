"""ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from runtime import machine
from runtime.backends.base import Images, Logits, as_typed, check_images, check_logits, check_ports, refuse_external
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.files import write_error
from runtime.fusions import VERSION as FUSIONS
from runtime.fusions import fold_biases, fuse_attention
from runtime.lanes import divide, lane_pool, pieces
from runtime.onnx_wire import read_graph
from runtime.qkv import join_qkv, part_qkv
from runtime.quantizers import Quantizer, locate
from runtime.registry import EngineRecord, compile_key, find_engine
from runtime.saturation import VERSION as EXACT
from runtime.saturation import exact_products

OLDEST = "1.23"  # 1.22.1 knows INT4 tensors, but has no Cast of them: it does not load a w4a8 graph
_PROVIDER = "CPUExecutionProvider"
A_CALL = 2  # images of a lane at a time: of 1, 2 and 4 the fastest (docs/decisions/0039-lanes.md)
FUSED_ATTENTION = (1, 24)  # the first version with a kernel for Attention and for everything else in opset 23


def library() -> Any:
    """The ``onnxruntime`` module, imported when it is first used: no ``--help`` waits for it.

    Raises:
        IntvitError: it cannot be imported.
        KeyboardInterrupt: Ctrl-C came during the import.
    """
    try:
        import onnxruntime
    except Exception as error:  # built for another numpy or C library, it raises what it likes
        cause: BaseException | None = error
        while cause is not None:  # a Ctrl-C is wrapped too
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        why = f"{type(error).__name__}: {error}"
        hint = "pip install --force-reinstall onnxruntime"
        raise IntvitError("ONNX Runtime cannot be imported", where="backend 'ort'", why=why, next=hint) from error
    return onnxruntime


def graph_options() -> dict[str, str]:
    """The session settings that change what the optimizer makes of a graph on this machine.

    ``session.qdq_matmulnbits_accuracy_level``: weight-only layers become MatMulNBits, whose default level 4 quantizes
    the float activations to 8 bits behind our back; level 1 keeps them float.
    """
    return {"session.qdq_matmulnbits_accuracy_level": "1"}


def run_options(spin_wait: bool = True) -> dict[str, str]:
    """The session settings that change only how its threads wait: they spin during a run and stop at its end.

    Without ``spin_wait`` they sleep whenever there is nothing to do.

    Measured on 2 idle cores (Xeon with AMX, ONNX Runtime 1.31.1, 2 threads, 12 blocks of width 384, batch 1), two
    sessions taking turns; median / p90 in ms, integer and float32:
        spinning               6.5 / 13.6    18.8 / 23.1    the idle session's threads hold a core at every turn
        spinning, stop at end  6.2 /  6.6    18.7 / 20.0    as each alone in its process: 6.3 / 6.7 and 17.4 / 19.1
        no spinning            8.1 /  8.5    20.3 / 21.4
    So stopping is both fair and fast. On cores shared with another busy process spinning of any kind doubles the time.
    """
    return {"session.intra_op.allow_spinning": "1" if spin_wait else "0", "session.force_spinning_stop": "1"}


def parse_spin_wait(options: Mapping[str, str] | None) -> bool:
    """The backend's one option, ``spin_wait=on`` (the default) or ``off``.

    Raises:
        IntvitError: another option, or another value.
    """
    given = dict(options or {})
    value = given.pop("spin_wait", "on")
    if given or value not in ("on", "off"):
        where = ", ".join(map(as_typed, given or ["spin_wait"]))
        why = "" if given else f"spin_wait={value}"
        hint = "the one option is spin_wait=on or off"
        raise IntvitError("unknown option of the ort backend", where=where, why=why, next=hint)
    return value == "on"


def make_session(
    model: Path | bytes,
    *,
    threads: int,
    optimize: bool = True,
    save_to: Path | None = None,
    profile_to: Path | None = None,
    spin_wait: bool = True,
    where: str = "",
) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU with intvit's settings.

    Args:
        model: an ONNX file or its bytes.
        threads: of the session's own pool, at least 1; operators run one after another.
        optimize: False for a graph that was optimized before: its kernels are taken as they stand.
        save_to: where to write the optimized graph.
        profile_to: how the file that the session's ``end_profiling()`` writes and names shall begin.
        spin_wait: see :func:`run_options`.
        where: what to name in an error when ``model`` is bytes.

    Raises:
        IntvitError: ONNX Runtime cannot load the model.
    """
    ort = library()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    for key, value in {**graph_options(), **run_options(spin_wait)}.items():
        options.add_session_config_entry(key, value)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=[_PROVIDER])
    except Exception as error:
        raise IntvitError(
            "ONNX Runtime cannot load the graph",
            where=where or (str(model) if isinstance(model, Path) else ""),
            why=f"onnxruntime {ort.__version__}: {error}",
            next=f"run `python -m runtime.doctor`; intvit needs onnxruntime {OLDEST} or later",
        ) from error


def fused(model: bytes) -> bytes:
    """``model``, an ONNX file's bytes, with what this version of ONNX Runtime has fused operators for written so.

    Raises:
        IntvitError: the bytes are malformed.
    """
    version = tuple(int(part) for part in library().__version__.split(".")[:2])
    return fuse_attention(model) if version >= FUSED_ATTENTION else model


def optimized_bytes(model: bytes, *, where: str = "") -> bytes:
    """The graph an integer engine executes on this machine, to be loaded with the optimizer off.

    ``model`` and the result are ONNX files' bytes; the result is :func:`fused`, passed through ONNX Runtime's optimizer
    and the rewrites that come after it: those of :mod:`runtime.fusions`, :mod:`runtime.qkv` and, where products
    u8 x s8 saturate, :mod:`runtime.saturation`.

    Raises:
        IntvitError: the model does not load, or the temporary directory has no room for it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="intvit-") as folder:
            room, need = shutil.disk_usage(folder).free, 3 * len(model)
            if room < need:
                why = f"{room >> 20} MiB free, {(need >> 20) + 1} MiB needed"
                hint = "free some space, or set TMPDIR to a directory that has it"
                raise IntvitError("the disk is full", where=folder, why=why, next=hint)
            path = Path(folder) / "optimized.onnx"
            make_session(fused(model), threads=1, save_to=path, where=where)
            executed = path.read_bytes()
            executed = exact_products(executed) if machine.saturating_u8s8() else executed
            return join_qkv(fold_biases(executed))
    except OSError as error:
        raise write_error(Path(tempfile.gettempdir()), error) from error


def called_bytes(executed: bytes, images: int, threads: int) -> bytes:
    """The form of :func:`optimized_bytes`' result that an engine runs in calls of so many images.

    One image or two at a time on one thread are sooner done with three products for q, k and v
    (docs/decisions/0039-lanes.md); a call on several threads, with one.

    Raises:
        IntvitError: the bytes are malformed.
    """
    return part_qkv(executed) if divide(images, threads)[0] else executed


def executed_bytes(bundle: Bundle) -> bytes:
    """:func:`optimized_bytes` of the bundle's graph; a second call for the same graph does not optimize again.

    Raises:
        IntvitError: the bundle has no such graph or it reads other files, or as :func:`optimized_bytes`.
    """
    entry = bundle.entry("graph", "ort")
    return _executed(bundle.root / entry.path, compile_key(compile_inputs(entry.sha256)))


@functools.lru_cache(maxsize=1)  # one: a graph is as large as its network
def _executed(path: Path, key: str) -> bytes:
    """``key`` stands for all that decides the result."""
    model = path.read_bytes()
    refuse_external(model, str(path))
    return optimized_bytes(model, where=str(path))


def compile_inputs(graph_sha256: str) -> dict[str, Any]:
    """All that decides the optimized graph's bytes: the graph, ONNX Runtime, the CPU's features, the options."""
    return {
        "graph_sha256": graph_sha256,
        "onnxruntime": library().__version__,
        "cpu_flags": machine.integer_flags(),
        "options": graph_options(),
        "fusions": FUSIONS,
        "exact_products": EXACT if machine.saturating_u8s8() else 0,
    }


def compiled_engine(bundle: Bundle) -> EngineRecord | None:
    """The engine compiled from this bundle's graph for this very machine, if there is one."""
    return find_engine(bundle.engines, "ort", compile_inputs(bundle.entry("graph", "ort").sha256))


class OrtEngine:
    """A graph in an ONNX Runtime session of its own, with its own threads."""

    name = "ort"
    twin_options: frozenset[str] = frozenset()

    def __init__(
        self,
        bundle: Bundle,
        path: Path,
        *,
        threads: int | None,
        compiled: EngineRecord | None,
        twin: bool = False,
        spin_wait: bool = True,
    ) -> None:
        size = bundle.manifest.preprocess
        self.input_shape: tuple[int, int, int] = (size.channels, size.height, size.width)
        self.num_classes = bundle.manifest.num_classes
        self._threads = threads or machine.available_cores()
        self._spin_wait = spin_wait
        self._names = (bundle.manifest.input_name, bundle.manifest.output_name)
        self._compiled = compiled.key if compiled else ""
        self._path, self._bundle, self._twin = path, bundle, twin
        self._lock = threading.Lock()
        self._closed = False
        self._sessions: dict[bool, Any] = {}
        self._ready: dict[bool, Any] = {}  # those of them that calls have asked for
        self._pool: ThreadPoolExecutor | None = None
        session = self._made(self._threads == 1)
        inputs, outputs = ([value.name for value in part] for part in (session.get_inputs(), session.get_outputs()))
        check_ports(inputs, outputs, self._names, where=str(path))

    def _made(self, lane: bool) -> Any:
        """The session of a lane, or the one with all threads, kept; one that has never run is let go."""
        model = self._graph()
        model = called_bytes(model, 1, 1) if lane and not self._twin else model
        self._sessions = dict(self._ready)
        threads, wait = 1 if lane else self._threads, self._spin_wait
        where, optimize = str(self._path), self._twin
        self._sessions[lane] = make_session(model, threads=threads, optimize=optimize, spin_wait=wait, where=where)
        return self._sessions[lane]

    def _graph(self) -> bytes:
        if not self._twin and not self._compiled:
            return executed_bytes(self._bundle)
        try:
            model = self._path.read_bytes()
        except OSError as error:
            hint = "compile it again" if self._compiled else "build the bundle again"
            raise IntvitError("cannot read the graph", where=str(self._path), why=str(error), next=hint) from error
        refuse_external(model, str(self._path))
        return fused(model) if self._twin else model

    def session(self, *, lane: bool = False) -> Any:
        """The ``InferenceSession`` with all threads, or the one of a lane, with one; made when it is first asked for.

        Raises:
            IntvitError: the engine has been closed; the graph is gone, or ONNX Runtime cannot load it.
        """
        return self._ready.get(lane) or self._first(lane)

    def _first(self, lane: bool) -> Any:
        with self._lock:
            if self._closed:
                raise IntvitError("the engine has been closed", where=str(self._path))
            self._ready[lane] = self._sessions.get(lane) or self._made(lane)
            return self._ready[lane]

    def _in_lanes(self, session: Any, parts: Sequence[Images]) -> list[Logits]:
        if self._threads == 1:
            return [self._call(session, part) for part in parts]
        with self._lock:
            if self._closed:
                raise IntvitError("the engine has been closed", where=str(self._path))
            self._pool = self._pool or lane_pool(self._threads, name="ort-lane")
            futures = [self._pool.submit(self._call, session, part) for part in parts]
        return [future.result() for future in futures]

    def _call(self, session: Any, images: Images) -> Logits:
        try:
            (logits,) = session.run([self._names[1]], {self._names[0]: images})
        except Exception as error:
            raise IntvitError("ONNX Runtime failed while running", where=str(self._path), why=str(error)) from error
        return check_logits(logits, (len(images), self.num_classes), where=str(self._path))

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        twin: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> OrtEngine:
        """The integer graph, from an engine compiled for this machine if there is one, or the float32 ``twin``.

        Raises:
            IntvitError: the bundle has no such graph, or ONNX Runtime cannot load it, or an option is unknown
                (see :func:`parse_spin_wait`).
        """
        spin_wait = parse_spin_wait(options)
        if twin:
            path = bundle.file("float_twin")
            return cls(bundle, path, threads=threads, compiled=None, twin=True, spin_wait=spin_wait)
        compiled = compiled_engine(bundle)
        path = bundle.root / compiled.path if compiled else bundle.file("graph", "ort")
        return cls(bundle, path, threads=threads, compiled=compiled, spin_wait=spin_wait)

    def run(self, images: Images) -> Logits:
        """See :meth:`runtime.backends.base.Engine.run`. As many images as threads, or a multiple, run in lanes."""
        check_images(images, self.input_shape)
        images = np.ascontiguousarray(images)
        if len(images) < self._threads:
            return self._call(self.session(), images)
        alone, left = divide(len(images), self._threads)
        said: list[Logits] = []
        if alone:
            parts = [images[part] for part in pieces(alone, self._threads, A_CALL)]
            said += self._in_lanes(self.session(lane=True), parts)
        if left:
            said.append(self._call(self.session(), images[alone:]))
        return said[0] if len(said) == 1 else np.concatenate(said)

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Engine.close`."""
        with self._lock:
            self._closed, self._sessions, self._ready = True, {}, {}
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def describe(self) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.Engine.describe`."""
        return {
            "backend": self.name,
            "provider": _PROVIDER,
            "version": library().__version__,
            "threads": self._threads,
            "compiled": self._compiled,
            "lanes": self._threads,
            "options": {**graph_options(), **run_options(self._spin_wait)},
            "timing": {"spin_wait": "on, stopped at the end of a call" if self._spin_wait else "off"},
        }

    @staticmethod
    def tapped(bundle: Bundle) -> tuple[bytes, list[Quantizer]]:
        """See :meth:`runtime.backends.base.EngineClass.tapped`: the graph as ONNX Runtime's optimizer leaves it."""
        path, executed = bundle.file("graph", "ort"), executed_bytes(bundle)
        stored = read_graph(path.read_bytes())
        return executed, locate(bundle.manifest.taps, stored, read_graph(executed), where=str(path))

    @staticmethod
    def run_graph(
        model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.EngineClass.run_graph`; products are exact on every processor."""
        model = exact_products(model) if machine.saturating_u8s8() else model
        session = make_session(model, threads=threads, optimize=False, where=where)
        try:
            return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))
        except Exception as error:
            raise IntvitError("ONNX Runtime failed while running", where=where, why=str(error)) from error

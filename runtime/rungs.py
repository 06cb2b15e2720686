"""The rungs of the parity ladder that are graphs: where each one's bytes come from and what runs them.

A backend joins the ladder with one more :class:`Rung` in :data:`RUNGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends.base import backend_class, refuse_external
from runtime.backends.openvino import OpenVinoEngine
from runtime.backends.ort import OrtEngine, compiled_engine, executed_bytes
from runtime.backends.tensorrt import TensorRtEngine
from runtime.backends.trt.engines import graph_bytes, graph_of
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.golden import Golden
from runtime.kernels.in_onnx import written_out
from runtime.onnx_wire import CutTo, Graph, cut, read_graph, with_extra_outputs
from runtime.quantizers import Quantizer, locate

Tensors: TypeAlias = dict[str, npt.NDArray[Any]]


class Runner(Protocol):
    """How a graph is run: the tensors ``names``, in one pass over ``feeds``."""

    def __call__(
        self, model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> Tensors:
        """The named outputs of ``model``, an ONNX file's bytes.

        Raises:
            IntvitError: the graph does not load or run.
        """
        ...


def run_ort(model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str) -> Tensors:
    """A :class:`Runner`: ONNX Runtime with its optimizer off, so that the nodes run as they are written."""
    return OrtEngine.run_graph(model, names, feeds, threads=threads, where=where)


@dataclass(frozen=True)
class Rung:
    """One form of the integer network.

    Attributes:
        name: short, for tables and ``--between``.
        what: what it is, in a few words.
        backend: whose ladder it belongs to; empty for every one's.
        stored: the graph of the bundle it is, or is made from.
        executed: the bytes that run, made from the stored ones.
        run: what runs them.
        shifted: a tap's zero point is not in its quantizer but in a shift before it, so the quantizer has zero
            point 0 and makes the same integers (docs/numerics.md).
        exact: where it performs the operations of the rung before, it must give the same bits.
    """

    name: str
    what: str
    backend: str
    stored: Callable[[Bundle], bytes]
    executed: Callable[[Bundle, bytes], bytes] = lambda bundle, stored: stored
    run: Runner = run_ort
    shifted: bool = False
    exact: bool = False


def _canonical(bundle: Bundle) -> bytes:
    if not any(entry.role == "canonical" for entry in bundle.manifest.files):
        raise IntvitError(
            "the bundle holds no canonical graph, so there is no ladder to climb",
            where=str(bundle.root),
            why="no file of role 'canonical' in its manifest",
            next="build the bundle again, or compare the engine alone: `python -m runtime.parity BUNDLE`",
        )
    return bundle.file("canonical").read_bytes()


def _dialect(bundle: Bundle) -> bytes:
    return bundle.file("graph", "ort").read_bytes()


def _openvino(bundle: Bundle) -> bytes:
    return bundle.file("graph", "openvino").read_bytes()


def _engine(bundle: Bundle, stored: bytes) -> bytes:
    """The engine compiled on this machine where there is one, else what the optimizer makes of the graph now."""
    compiled = compiled_engine(bundle)
    if compiled is not None:
        path = bundle.root / compiled.path
        engine = path.read_bytes()
        refuse_external(engine, str(path))
        return engine
    return executed_bytes(bundle)


def _tensorrt(bundle: Bundle) -> bytes:
    """The bundle's graph for TensorRT, or the canonical one where it was built without."""
    return graph_bytes(bundle, graph_of(bundle, "integer"))


def _written_out(bundle: Bundle, stored: bytes) -> bytes:
    """Nodes of our kernels in ONNX's own operators: ONNX Runtime has no such nodes."""
    return written_out(stored)


RUNGS: tuple[Rung, ...] = (
    Rung("canonical", "the canonical graph, ONNX Runtime's optimizer off", "", _canonical, shifted=True),
    Rung("dialect", "ONNX Runtime's dialect, optimizer off", "ort", _dialect, exact=True),
    Rung("engine", "what ONNX Runtime executes", "ort", _dialect, _engine),
    Rung("dialect", "OpenVINO's dialect under ONNX Runtime", "openvino", _openvino, shifted=True, exact=True),
    Rung("engine", "what OpenVINO executes", "openvino", _openvino, run=OpenVinoEngine.run_graph, shifted=True),
    Rung(
        "dialect",
        "TensorRT's dialect under ONNX Runtime",
        "tensorrt",
        _tensorrt,
        _written_out,
        shifted=True,
        exact=True,
    ),
    Rung("engine", "what TensorRT executes", "tensorrt", _tensorrt, run=TensorRtEngine.run_graph, shifted=True),
)


def rungs_of(backend: str) -> tuple[Rung, ...]:
    """The rungs from the canonical graph to a backend's engine.

    Raises:
        IntvitError: the backend is unknown or has no rungs.
    """
    backend_class(backend)
    if not any(one.backend == backend for one in RUNGS):
        why = f"backends with rungs: {', '.join(sorted({one.backend for one in RUNGS} - {''}))}"
        raise IntvitError(f"the ladder does not reach backend {backend!r}", where="--backend", why=why)
    return tuple(one for one in RUNGS if one.backend in ("", backend))


def rung(name: str, backend: str = "ort") -> Rung:
    """The rung of that name on a backend's ladder.

    Raises:
        IntvitError: there is none.
    """
    found = {one.name: one for one in rungs_of(backend)}
    if name not in found:
        why, hint = f"rungs: {', '.join(found)}", "name two of them, such as --between " + " ".join(list(found)[:2])
        raise IntvitError(f"unknown rung {name!r}", where="--between", why=why, next=hint)
    return found[name]


@dataclass(frozen=True)
class Model:
    """A rung of one bundle, ready to run. ``graph`` is what runs; ``quantizers`` are its taps in execution order."""

    rung: Rung
    bundle: Bundle
    where: str
    data: bytes
    graph: Graph
    quantizers: list[Quantizer]

    def run(self, data: bytes, names: Sequence[str], feeds: Mapping[str, Any], threads: int) -> Tensors:
        """The tensors ``names`` of ``data``, which is this model or a cut of it, made outputs first.

        Raises:
            IntvitError: the graph does not load or run.
        """
        wanted = list(dict.fromkeys(names))
        return self.rung.run(with_extra_outputs(data, wanted), wanted, feeds, threads=threads, where=self.where)

    def free(self, golden: Golden, threads: int) -> Tensors:
        """The logits and every tap's tensor in a plain run of the golden images."""
        return self.run(self.data, self._names(), {self.bundle.manifest.input_name: golden.images}, threads)

    def aligned(self, golden: Golden, threads: int) -> Tensors:
        """:meth:`free` with every tap's readers fed the golden integers."""
        data, feeds = self.fed(golden)
        return self.run(data, self._names(), feeds, threads)

    def fed(self, golden: Golden) -> tuple[bytes, dict[str, Any]]:
        """The model cut at its taps, and what to feed it: the golden images and integers."""
        cuts, feeds = golden_feeds(self.bundle, golden, self.quantizers)
        return cut(self.data, cuts), feeds

    def _names(self) -> list[str]:
        return [self.bundle.manifest.output_name, *(quantizer.tensor for quantizer in self.quantizers)]


def open_rung(one: Rung, bundle: Bundle) -> Model:
    """Read a rung's graph and find the taps in it.

    Raises:
        IntvitError: the bundle lacks the graph, the graph is malformed, or a tap is not in it.
    """
    where = f"{bundle.root} ({one.name})"
    stored = one.stored(bundle)
    refuse_external(stored, where)
    data = one.executed(bundle, stored)
    graph = read_graph(data)
    taps = bundle.manifest.taps
    if one.shifted:
        taps = [tap.model_copy(update={"zero_point": 0}) for tap in taps]
    return Model(one, bundle, where, data, graph, locate(taps, read_graph(stored), graph, where=where))


def golden_input(index: int) -> str:
    """The graph input that feeds the golden integers of the tap at ``index`` to its readers."""
    return f"intvit_golden_{index}"


def golden_feeds(
    bundle: Bundle, golden: Golden, quantizers: Sequence[Quantizer]
) -> tuple[dict[str, CutTo], dict[str, Any]]:
    """Where to cut a graph so that every tap's readers get the golden integers, and what to feed it then.

    Returns:
        (for :func:`runtime.onnx_wire.cut`: tap tensor -> new input; arrays by input name, the images among them).
    """
    feeds: dict[str, Any] = {bundle.manifest.input_name: golden.images}
    cuts: dict[str, CutTo] = {}
    for index, quantizer in enumerate(quantizers):
        if quantizer.tensor in cuts:
            continue
        reference = golden.taps[quantizer.tap.golden]
        name = golden_input(index)
        cuts[quantizer.tensor] = (name, quantizer.elem_type, reference.shape)
        feeds[name] = quantizer.from_reference(reference)
    return cuts, feeds


def levels_apart(name: str, value: npt.NDArray[np.int16], reference: npt.NDArray[np.int16]) -> tuple[int, float]:
    """(largest difference in levels, percent of elements that differ) of one tap's integers.

    Raises:
        IntvitError: the shapes differ.
    """
    if value.shape != reference.shape:
        why = f"engine {value.shape}, reference {reference.shape}"
        raise IntvitError("a tap has another shape in the engine", where=name, why=why)
    difference = np.abs(value - reference)
    return int(difference.max()), 100.0 * float((difference != 0).mean())

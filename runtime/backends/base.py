"""What an engine is, and which class serves each backend name (imported only when asked for)."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.onnx_wire import external_tensor
from runtime.quantizers import Quantizer

_FLAGS = frozenset({"spin_wait", "cuda_graph", "transfers"})  # options of a backend that bench has flags for

# Backend name -> "module:class". A backend's own libraries are imported by its module, not before.
BACKENDS: dict[str, str] = {
    "ort": "runtime.backends.ort:OrtEngine",
    "openvino": "runtime.backends.openvino:OpenVinoEngine",
    "tensorrt": "runtime.backends.tensorrt:TensorRtEngine",
}

Images = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """A model ready to run.

    Attributes:
        name: the backend's name.
        input_shape: (channels, height, width) of one image.
        num_classes: length of one row of logits.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int

    def run(self, images: Images) -> Logits:
        """Logits, float32 (N, classes), of float32 images (N, C, H, W) already normalised.

        Raises:
            IntvitError: the array has another type or shape, or the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory and threads; it cannot run any more."""
        ...

    def describe(self) -> dict[str, Any]:
        """Backend, versions, threads and options as JSON values, for the record.

        ``float``: what its float parts compute in, where that is not float32.
        """
        ...


class EngineClass(Protocol):
    """How a backend opens the models of a bundle, and how its integers are read.

    Attributes:
        twin_options: the options that hold for the twin too; the others are of the integer engine alone.
    """

    twin_options: frozenset[str]

    def open(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        twin: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> Engine:
        """The bundle's integer engine, or its float twin. ``threads`` None: the physical cores available.

        Args:
            options: the backend's own, by name, as texts.

        Raises:
            IntvitError: the bundle has no graph for this backend or it does not load, or an option is unknown.
        """
        ...

    def tapped(self, bundle: Bundle) -> tuple[bytes, list[Quantizer]]:
        """An ONNX graph that runs with the kernels the engine runs with, and where each tap of the manifest is in it.

        Raises:
            IntvitError: the bundle has no graph for this backend, or a tap is not in it.
        """
        ...

    def run_graph(
        self, model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> dict[str, Any]:
        """The tensors ``names`` that :meth:`tapped`'s graph makes of ``feeds``, its taps exposed or cut by now.

        Raises:
            IntvitError: it does not load or run.
        """
        ...


def backend_class(name: str) -> EngineClass:
    """The class that serves a backend.

    Raises:
        IntvitError: the name is unknown (near matches are listed) or its library is not installed.
    """
    path = BACKENDS.get(name)
    if path is None:
        near = difflib.get_close_matches(name, BACKENDS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "use one of those"
        why = f"backends: {', '.join(sorted(BACKENDS))}"
        raise IntvitError(f"unknown backend {name!r}", where="--backend", why=why, next=hint)
    module, _, attribute = path.partition(":")
    try:
        found: EngineClass = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        hint = f"pip install 'intvit[{name}]', then `python -m runtime.doctor`"
        raise IntvitError(f"backend {name!r} is not installed", where=module, why=str(error), next=hint) from error
    return found


def open_engine(
    bundle: Bundle,
    backend: str = "ort",
    *,
    threads: int | None = None,
    twin: bool = False,
    options: Mapping[str, str] | None = None,
) -> Engine:
    """Open the bundle's integer engine (or its float ``twin``) on a backend.

    Raises:
        IntvitError: unknown backend or option, no graph for it, or the graph does not load.
    """
    return backend_class(backend).open(bundle, threads=threads, twin=twin, options=options)


def open_pair(
    bundle: Bundle,
    backend: str = "ort",
    *,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> tuple[Engine, Engine]:
    """The integer engine and its float twin, to be compared: the twin gets those ``options`` that are not precision's.

    Raises:
        IntvitError: as :func:`open_engine`; nothing stays open then.
    """
    shared = backend_class(backend).twin_options
    engine = open_engine(bundle, backend, threads=threads, options=options)
    try:
        kept = {name: value for name, value in (options or {}).items() if name in shared}
        return engine, open_engine(bundle, backend, threads=threads, twin=True, options=kept)
    except BaseException:
        engine.close()
        raise


def as_typed(option: str) -> str:
    """What may have been typed for a backend's option of that name."""
    flag = f"--{option.replace('_', '-')} or " if option in _FLAGS else ""
    return f"{flag}--option {option}"


def check_ports(
    inputs: Sequence[str], outputs: Sequence[str], names: tuple[str, str], *, what: str = "graph", where: str
) -> None:
    """Refuse a model that has anything but one input and one output, called ``names``.

    Raises:
        IntvitError: saying what there is.
    """
    found = (list(inputs), list(outputs))
    if found != ([names[0]], [names[1]]):
        why = f"inputs {found[0]}, outputs {found[1]}; expected {names[0]!r} and {names[1]!r}"
        raise IntvitError(f"the {what} has other inputs or outputs", where=where, why=why)


def refuse_external(model: bytes, where: str) -> None:
    """Refuse a graph with a tensor, wherever in it, whose values lie in another file, which no digest would cover.

    Raises:
        IntvitError: naming the tensor, or the bytes are malformed.
    """
    name = external_tensor(model)
    if name is not None:
        why = f"tensor {name!r} is stored in another file"
        raise IntvitError("the graph reads files that are not verified", where=where, why=why)


def check_images(images: npt.NDArray[Any], shape: tuple[int, int, int]) -> None:
    """Refuse anything that is not float32 (N, C, H, W) with N >= 1 and the engine's C, H, W.

    Raises:
        IntvitError: with the type and shape received.
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[0] < 1 or images.shape[1:] != shape:
        expected = f"float32 (N, {', '.join(map(str, shape))}) with N >= 1"
        raise IntvitError("wrong input for the engine", why=f"got {images.dtype} {images.shape}, expected {expected}")


def check_logits(logits: npt.NDArray[Any], shape: tuple[int, int], *, where: str) -> Logits:
    """``logits``, once they are found to be float32 (N, classes).

    Raises:
        IntvitError: with the type and shape received.
    """
    if logits.dtype != np.float32 or logits.shape != shape:
        why = f"{logits.dtype} {logits.shape}, expected float32 {shape}"
        raise IntvitError("the graph gives other outputs than the manifest says", where=where, why=why)
    found: Logits = logits
    return found

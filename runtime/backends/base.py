"""What an engine is, and which class serves each backend name (imported only when asked for)."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.errors import IntvitError

# Backend name -> "module:class". A backend's own libraries are imported by its module, not before.
BACKENDS: dict[str, str] = {"ort": "runtime.backends.ort:OrtEngine"}

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
        """Backend, versions, threads and options as JSON values, for the record."""
        ...


class EngineClass(Protocol):
    """How a backend opens the models of a bundle."""

    def open(self, bundle: Bundle, *, threads: int | None = None, twin: bool = False) -> Engine:
        """The bundle's integer engine, or its float32 twin. ``threads`` None: the physical cores available.

        Raises:
            IntvitError: the bundle has no graph for this backend or it does not load.
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


def open_engine(bundle: Bundle, backend: str = "ort", *, threads: int | None = None, twin: bool = False) -> Engine:
    """Open the bundle's integer engine (or its float32 ``twin``) on a backend.

    Raises:
        IntvitError: unknown backend, no graph for it, or the graph does not load.
    """
    return backend_class(backend).open(bundle, threads=threads, twin=twin)


def check_images(images: npt.NDArray[Any], shape: tuple[int, int, int]) -> None:
    """Refuse anything that is not float32 (N, C, H, W) with N >= 1 and the engine's C, H, W.

    Raises:
        IntvitError: with the type and shape received.
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[0] < 1 or images.shape[1:] != shape:
        expected = f"float32 (N, {', '.join(map(str, shape))}) with N >= 1"
        raise IntvitError("wrong input for the engine", why=f"got {images.dtype} {images.shape}, expected {expected}")

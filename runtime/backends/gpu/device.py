"""The layer between an engine and the CUDA libraries: buffers, copies, streams, events, and CUDA graphs in one of them.

Streams and events are opaque handles of the library below; a buffer is a device address. Everything but
:meth:`Device.current` is called inside ``with device.current():``, on any thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy.typing as npt

from runtime.errors import IntvitError

# Library -> "module:class"; the first that can be imported is taken.
LIBRARIES: dict[str, str] = {
    "pycuda": "runtime.backends.gpu.with_pycuda:PycudaDevice",
    "cuda-python": "runtime.backends.gpu.with_cuda_python:CudaPythonDevice",
}


class Replay(Protocol):
    """A recorded CUDA graph."""

    def __call__(self) -> None:
        """Enqueue it on the stream it was recorded on."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Device(Protocol):
    """One GPU, its primary context (the one torch and TensorRT use too).

    Attributes:
        name: the library's, a key of :data:`LIBRARIES`.
        index: number of the GPU.
        version: of the library.
        captures: whether :meth:`capture` works.
    """

    name: str
    index: int
    version: str
    captures: bool

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU's context this thread's while the block runs."""
        ...

    def allocate(self, nbytes: int) -> int:
        """A buffer of ``nbytes``: its device address.

        Raises:
            IntvitError: the memory is used up.
        """
        ...

    def free(self, address: int) -> None:
        """Give a buffer back."""
        ...

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A host array of zeros in page-locked memory.

        Raises:
            IntvitError: the memory is used up.
        """
        ...

    def unpin(self, array: npt.NDArray[Any]) -> None:
        """Give a pinned array back; the caller drops it now."""
        ...

    def create_stream(self) -> Any:
        """A stream that does not wait for the default stream, nor the default stream for it."""
        ...

    def stream_handle(self, stream: Any) -> int:
        """The stream as the integer that TensorRT takes."""
        ...

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back; its work is done."""
        ...

    def copy_in(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """Enqueue a copy of a contiguous, pinned array to the device."""
        ...

    def copy_out(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Enqueue a copy from the device into a contiguous, pinned array."""
        ...

    def create_event(self) -> Any:
        """An event that keeps time."""
        ...

    def destroy_event(self, event: Any) -> None:
        """Give an event back."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue an event."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that have happened."""
        ...

    def synchronize(self, stream: Any | None = None) -> None:
        """Wait for a stream, or for all work of the GPU where none is given.

        Raises:
            IntvitError: a kernel or copy failed.
        """
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Replay:
        """Record what ``work`` enqueues on the stream; calling the result enqueues it again.

        Raises:
            IntvitError: the library cannot, or ``work`` cannot be captured.
        """
        ...

    def close(self) -> None:
        """Give back what is left and the context, after everything that uses them is gone; once is enough."""
        ...


def open_device(index: int, chosen: str = "auto", *, capture: bool = False) -> Device:
    """The GPU of that number through the library ``chosen``.

    Args:
        chosen: a key of :data:`LIBRARIES`, or "auto" for the first that is installed.
        capture: prefer a library that captures graphs.

    Raises:
        IntvitError: no library is installed, or it does not reach the GPU.
    """
    names = list(LIBRARIES) if chosen == "auto" else [chosen]
    if capture:
        names.sort(key=lambda name: name != "cuda-python")
    reasons = []
    for name in names:
        module, _, attribute = LIBRARIES[name].partition(":")
        try:
            opened: Device = getattr(importlib.import_module(module), attribute)(index)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        return opened
    raise IntvitError(
        "no library for GPU memory is installed",
        where="backend 'tensorrt'",
        why="; ".join(reasons),
        next="pip install cuda-python (JetPack 7: `pip install 'cuda-python>=13'`, JetPack 6: "
        "`pip install 'cuda-python<13'`), or pip install pycuda, which is compiled on the device",
    )


def closed() -> IntvitError:
    """A use after :meth:`Device.close`."""
    return IntvitError("the engine has been closed", where="its GPU")


def out_of_memory(nbytes: int, why: str) -> IntvitError:
    """A buffer that the GPU has no room for."""
    return IntvitError(
        "the GPU's memory is used up",
        where=f"a buffer of {nbytes / 2**20:.1f} MiB",
        why=why,
        next="close other programs, or use a smaller --batch; a Jetson shares its memory with the CPU: leave the "
        "desktop with `sudo init 3`",
    )


def failed(what: str, why: str) -> IntvitError:
    """A CUDA call that failed."""
    hint = "run `python -m runtime.doctor`; a fault that comes back after a restart of the process is worth a report"
    return IntvitError("CUDA failed", where=what, why=why, next=hint)

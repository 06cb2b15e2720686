"""The GPU through pycuda: primary context, pinned arrays, streams, events. It has no graph capture."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy.typing as npt

from runtime.backends.gpu.device import Replay, closed, failed, out_of_memory
from runtime.errors import IntvitError
from runtime.machine import version_of
from runtime.nvidia import install_cuda_python

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING in cuda.h
_contexts: dict[int, tuple[Any, Any]] = {}  # by GPU: pycuda's driver module, its primary context


def _retained(cuda: Any, index: int) -> Any:
    """A GPU's primary context, kept for as long as the process lives.

    When pycuda lets go of the last reference to one, it pushes it on the calling thread and does not pop it again
    (``detach`` in pycuda's cuda.hpp), and modules that were loaded into it go with it.
    """
    known = _contexts.get(index)
    if known is None or known[0] is not cuda:
        _contexts[index] = known = (cuda, cuda.Device(index).retain_primary_context())
    return known[1]


class PycudaDevice:
    """See :class:`runtime.backends.gpu.device.Device`.

    The context is the primary one, pushed for each block of work and popped after it: ``pycuda.autoinit`` would make a
    context of its own, whose streams and buffers TensorRT and torch refuse.
    """

    name = "pycuda"
    captures = False

    def __init__(self, index: int) -> None:
        import pycuda.driver as cuda

        self._cuda: Any = cuda
        self.index, self.version = index, version_of("pycuda")
        try:
            cuda.init()
            self._context: Any = _retained(cuda, index)
        except cuda.Error as error:
            raise failed("cuInit", str(error)) from error
        self._buffers: dict[int, Any] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See :meth:`runtime.backends.gpu.device.Device.current`."""
        context = self._context
        if context is None:
            raise closed()
        context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, nbytes: int) -> int:
        """See :meth:`runtime.backends.gpu.device.Device.allocate`."""
        try:
            buffer = self._cuda.mem_alloc(nbytes)
        except self._cuda.MemoryError as error:
            raise out_of_memory(nbytes, str(error)) from error
        with self._lock:
            self._buffers[int(buffer)] = buffer
        return int(buffer)

    def free(self, address: int) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.free`."""
        with self._lock:
            buffer = self._buffers.pop(address)
        buffer.free()

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See :meth:`runtime.backends.gpu.device.Device.pinned`."""
        try:
            array: npt.NDArray[Any] = self._cuda.pagelocked_empty(tuple(shape), dtype)
        except self._cuda.MemoryError as error:
            raise out_of_memory(0, str(error)) from error
        array[...] = 0
        return array

    def unpin(self, array: npt.NDArray[Any]) -> None:
        """Nothing to do: pycuda unpins an array with its last reference, which the caller drops now."""

    def create_stream(self) -> Any:
        """See :meth:`runtime.backends.gpu.device.Device.create_stream`."""
        return self._cuda.Stream(_NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """See :meth:`runtime.backends.gpu.device.Device.stream_handle`."""
        return int(stream.handle)

    def destroy_stream(self, stream: Any) -> None:
        """Nothing to do: pycuda destroys a stream with its last reference, which the caller drops now."""

    def copy_in(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.copy_in`."""
        self._cuda.memcpy_htod_async(address, source, stream)

    def copy_out(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.copy_out`."""
        self._cuda.memcpy_dtoh_async(target, address, stream)

    def create_event(self) -> Any:
        """See :meth:`runtime.backends.gpu.device.Device.create_event`."""
        return self._cuda.Event()

    def destroy_event(self, event: Any) -> None:
        """Nothing to do: pycuda destroys an event with its last reference, which the caller drops now."""

    def record(self, event: Any, stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.record`."""
        event.record(stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See :meth:`runtime.backends.gpu.device.Device.elapsed_ms`."""
        return float(start.time_till(end))

    def synchronize(self, stream: Any | None = None) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.synchronize`."""
        try:
            (self._cuda.Context if stream is None else stream).synchronize()
        except self._cuda.Error as error:
            raise failed("waiting for the GPU", str(error)) from error

    def capture(self, stream: Any, work: Callable[[], None]) -> Replay:
        """pycuda has no CUDA graphs.

        Raises:
            IntvitError: always.
        """
        raise IntvitError(
            "pycuda cannot record CUDA graphs",
            where="--option cuda_graph=on",
            why="it has no interface to them",
            next=f"{install_cuda_python()} and use --option cuda=cuda-python, or cuda_graph=off",
        )

    def close(self) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.close`."""
        if self._context is None:
            return
        with self.current():
            for address in list(self._buffers):
                self.free(address)
        self._context = None  # it stays retained: see _retained

"""The GPU through cuda-python's runtime interface (``cuda.bindings``, from 12.6.1 on): the layer with graph capture."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.gpu.device import Replay, closed, failed, out_of_memory
from runtime.machine import version_of


class CudaPythonDevice:
    """See :class:`runtime.backends.gpu.device.Device`. The runtime interface works in the primary context by itself."""

    name = "cuda-python"
    captures = True

    def __init__(self, index: int) -> None:
        from cuda.bindings import runtime

        self._cuda: Any = runtime
        self.index = index
        self.version = version_of("cuda-bindings")
        self._buffers: set[int] = set()
        self._pages: set[int] = set()
        self._lock = threading.Lock()
        self._closed = False
        with self.current():
            self._done("cudaFree", runtime.cudaFree(0))  # the documented way to make the context now

    def _done(self, what: str, returned: tuple[Any, ...]) -> Any:
        """What a call returned behind its status.

        Raises:
            IntvitError: the status is not success.
        """
        status, *values = returned
        if int(status) != 0:
            text = self._cuda.cudaGetErrorString(status)[1]
            said = text.decode() if isinstance(text, bytes) else str(text)
            raise failed(what, f"error {int(status)}: {said}")
        return values[0] if values else None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See :meth:`runtime.backends.gpu.device.Device.current`."""
        if self._closed:
            raise closed()
        self._done("cudaSetDevice", self._cuda.cudaSetDevice(self.index))
        yield

    def _memory(self, what: str, nbytes: int, returned: tuple[Any, ...]) -> int:
        if returned[0] == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            self._cuda.cudaGetLastError()  # clears it: the next call would report it again
            raise out_of_memory(nbytes, f"{what}: out of memory")
        return int(self._done(what, returned))

    def allocate(self, nbytes: int) -> int:
        """See :meth:`runtime.backends.gpu.device.Device.allocate`."""
        address = self._memory("cudaMalloc", nbytes, self._cuda.cudaMalloc(nbytes))
        with self._lock:
            self._buffers.add(address)
        return address

    def free(self, address: int) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.free`."""
        with self._lock:
            self._buffers.remove(address)
        self._done("cudaFree", self._cuda.cudaFree(address))

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See :meth:`runtime.backends.gpu.device.Device.pinned`."""
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * kind.itemsize
        address = self._memory("cudaMallocHost", nbytes, self._cuda.cudaMallocHost(nbytes))
        with self._lock:
            self._pages.add(address)
        held = (ctypes.c_char * nbytes).from_address(address)
        array: npt.NDArray[Any] = np.frombuffer(memoryview(held), kind).reshape(tuple(shape))
        array[...] = 0
        return array

    def unpin(self, array: npt.NDArray[Any]) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.unpin`."""
        self._unpin(array.ctypes.data)

    def _unpin(self, address: int) -> None:
        with self._lock:
            self._pages.remove(address)
        self._done("cudaFreeHost", self._cuda.cudaFreeHost(address))

    def create_stream(self) -> Any:
        """See :meth:`runtime.backends.gpu.device.Device.create_stream`."""
        made = self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)
        return self._done("cudaStreamCreateWithFlags", made)

    def stream_handle(self, stream: Any) -> int:
        """See :meth:`runtime.backends.gpu.device.Device.stream_handle`."""
        return int(stream)

    def destroy_stream(self, stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.destroy_stream`."""
        self._done("cudaStreamDestroy", self._cuda.cudaStreamDestroy(stream))

    def copy_in(self, address: int, source: npt.NDArray[Any], stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.copy_in`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = self._cuda.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, stream)
        self._done("copy to the GPU", done)

    def copy_out(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.copy_out`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = self._cuda.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, stream)
        self._done("copy from the GPU", done)

    def create_event(self) -> Any:
        """See :meth:`runtime.backends.gpu.device.Device.create_event`."""
        return self._done("cudaEventCreate", self._cuda.cudaEventCreate())

    def destroy_event(self, event: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.destroy_event`."""
        self._done("cudaEventDestroy", self._cuda.cudaEventDestroy(event))

    def record(self, event: Any, stream: Any) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.record`."""
        self._done("cudaEventRecord", self._cuda.cudaEventRecord(event, stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See :meth:`runtime.backends.gpu.device.Device.elapsed_ms`."""
        return float(self._done("cudaEventElapsedTime", self._cuda.cudaEventElapsedTime(start, end)))

    def synchronize(self, stream: Any | None = None) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.synchronize`."""
        if stream is None:
            self._done("waiting for the GPU", self._cuda.cudaDeviceSynchronize())
        else:
            self._done("waiting for the GPU", self._cuda.cudaStreamSynchronize(stream))

    def capture(self, stream: Any, work: Callable[[], None]) -> Replay:
        """See :meth:`runtime.backends.gpu.device.Device.capture`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._done("cudaStreamBeginCapture", self._cuda.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(stream)
            raise
        graph = self._done("cudaStreamEndCapture", self._cuda.cudaStreamEndCapture(stream))
        executable = self._done("cudaGraphInstantiate", self._cuda.cudaGraphInstantiate(graph, 0))
        self._done("cudaGraphDestroy", self._cuda.cudaGraphDestroy(graph))
        return _Replay(self, executable, stream)

    def close(self) -> None:
        """See :meth:`runtime.backends.gpu.device.Device.close`."""
        if self._closed:
            return
        with self.current():
            for address in list(self._buffers):
                self.free(address)
            for address in list(self._pages):
                self._unpin(address)
        self._closed = True


class _Replay:
    """A recorded graph; calling it enqueues it."""

    def __init__(self, device: CudaPythonDevice, executable: Any, stream: Any) -> None:
        self._device, self._executable, self._stream = device, executable, stream

    def __call__(self) -> None:
        launched = self._device._cuda.cudaGraphLaunch(self._executable, self._stream)
        self._device._done("cudaGraphLaunch", launched)

    def release(self) -> None:
        self._device._done("cudaGraphExecDestroy", self._device._cuda.cudaGraphExecDestroy(self._executable))

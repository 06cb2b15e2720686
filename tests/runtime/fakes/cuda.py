"""Recording fakes of pycuda and of cuda-python's ``cuda.bindings.runtime``, on the memory of a :class:`World`.

Only what the layer uses exists; a test holds the names of the second against the real module where it is installed.
"""

from __future__ import annotations

import ctypes
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.runtime.fakes.world import World

_EVENTS = itertools.count(1)


def fake_pycuda(world: World) -> dict[str, types.ModuleType]:
    """The modules ``pycuda`` and ``pycuda.driver``."""
    package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    class Context:
        def __init__(self) -> None:
            world.record("retain_primary_context")
            self.number = world.born("Context")

        def push(self) -> None:
            world.current.depth = world.depth() + 1

        @staticmethod
        def pop() -> None:
            world.current.depth = world.depth() - 1

        @staticmethod
        def synchronize() -> None:
            world.need_context("Context.synchronize")
            world.record("Context.synchronize")

        def __del__(self) -> None:
            world.gone("Context", self.number)

    class Device:
        def __init__(self, index: int) -> None:
            world.record("Device", index)

        def retain_primary_context(self) -> Context:
            return Context()

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self.address = address

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            world.need_context("free")
            world.record("free")
            del world.memory[self.address]

    def mem_alloc(nbytes: int) -> DeviceAllocation:
        world.record("mem_alloc", nbytes)
        address = world.allocate(nbytes)
        if not address:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return DeviceAllocation(address)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            world.need_context("Stream")
            assert flags == 1
            self.handle = 0x5000 + world.born("Stream")
            world.streams.add(self.handle)

        def synchronize(self) -> None:
            world.need_context("Stream.synchronize")
            world.record("synchronize")
            if text := world.faults.get("synchronize"):
                raise Error(text)

        def __del__(self) -> None:
            world.streams.discard(self.handle)
            world.gone("Stream", self.handle - 0x5000)

    class Event:
        def __init__(self) -> None:
            self.time = 0

        def record(self, stream: Stream) -> None:
            world.record("Event.record")
            self.time = next(_EVENTS)

        def time_till(self, other: Event) -> float:
            return float(other.time - self.time)

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        world.need_context("pagelocked_empty")
        array = np.empty(shape, dtype)
        world.pages.append((array.ctypes.data, array.nbytes))
        return array

    def memcpy_htod_async(address: int, source: np.ndarray, stream: Stream) -> None:
        _copy(world, address, source, stream.handle, inward=True)

    def memcpy_dtoh_async(target: np.ndarray, address: int, stream: Stream) -> None:
        _copy(world, address, target, stream.handle, inward=False)

    known: dict[str, Any] = {
        "Error": Error,
        "MemoryError": OutOfMemory,
        "Context": Context,
        "Device": Device,
        "Stream": Stream,
        "Event": Event,
        "mem_alloc": mem_alloc,
        "pagelocked_empty": pagelocked_empty,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
        "init": lambda: world.record("init"),
    }
    for name, value in known.items():
        setattr(driver, name, value)
    package.driver = driver  # type: ignore[attr-defined]
    return {"pycuda": package, "pycuda.driver": driver}


def _copy(world: World, address: int, array: np.ndarray, stream: int, *, inward: bool) -> None:
    what = "copy_in" if inward else "copy_out"
    world.need_context(what)
    world.record(what, array.shape)
    begin, nbytes = array.ctypes.data, array.nbytes
    if not array.flags.c_contiguous or not any(b <= begin and begin + nbytes <= b + n for b, n in world.pages):
        world.broken.append(f"{what} with an array that is not pinned or not contiguous")

    def work() -> None:
        memory = world.buffer(address, nbytes)
        if inward:
            memory[:] = array.tobytes()
        else:
            ctypes.memmove(begin, bytes(memory), nbytes)

    world.enqueue(stream, work, what)


def fake_cuda_python(world: World) -> dict[str, types.ModuleType]:
    """The modules ``cuda``, ``cuda.bindings`` and ``cuda.bindings.runtime``."""
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    runtime = types.ModuleType("cuda.bindings.runtime")
    pinned: dict[int, Any] = {}
    graphs: dict[int, list[Callable[[], None]]] = {}
    handles = itertools.count(0x9000)

    class cudaError_t(int):
        cudaErrorMemoryAllocation = 2

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    class cudaStreamCaptureMode:
        cudaStreamCaptureModeThreadLocal = 1

    fine, full = cudaError_t(0), cudaError_t(2)

    def set_device(index: int) -> tuple[Any, ...]:
        world.current.depth, world.sticky = 1, True  # the runtime's device stays set for the thread
        return (fine,)

    def malloc(nbytes: int) -> tuple[Any, ...]:
        world.record("cudaMalloc", nbytes)
        address = world.allocate(nbytes)
        return (fine, address) if address else (full, None)

    def free(address: int) -> tuple[Any, ...]:
        if address:
            world.record("free")
            del world.memory[address]
        return (fine,)

    def malloc_host(nbytes: int) -> tuple[Any, ...]:
        page = ctypes.create_string_buffer(nbytes)
        pinned[ctypes.addressof(page)] = page
        world.pages.append((ctypes.addressof(page), nbytes))
        return fine, ctypes.addressof(page)

    def free_host(address: int) -> tuple[Any, ...]:
        del pinned[address]
        return (fine,)

    def create_stream(flags: int) -> tuple[Any, ...]:
        assert flags == 1
        handle = next(handles)
        world.record("new Stream")
        world.streams.add(handle)
        return fine, handle

    def destroy_stream(stream: int) -> tuple[Any, ...]:
        world.record("del Stream")
        world.streams.remove(stream)
        return (fine,)

    def copy(target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[Any, ...]:
        inward = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, target) if inward else (target, source)
        view = np.frombuffer(memoryview((ctypes.c_char * nbytes).from_address(host)), np.uint8)
        _copy(world, device, view, stream, inward=inward)
        return (fine,)

    def synchronize(stream: int) -> tuple[Any, ...]:
        world.record("synchronize")
        return (cudaError_t(700),) if world.faults.get("synchronize") else (fine,)

    def device_synchronize() -> tuple[Any, ...]:
        world.record("Context.synchronize")
        return (fine,)

    def event() -> tuple[Any, ...]:
        world.live["Event"] += 1
        return fine, {"time": 0}

    def destroy_event(one: dict[str, int]) -> tuple[Any, ...]:
        world.live["Event"] -= 1
        return (fine,)

    def record(one: dict[str, int], stream: int) -> tuple[Any, ...]:
        world.record("Event.record")
        one["time"] = next(_EVENTS)
        return (fine,)

    def elapsed(start: dict[str, int], end: dict[str, int]) -> tuple[Any, ...]:
        return fine, float(end["time"] - start["time"])

    def begin(stream: int, mode: int) -> tuple[Any, ...]:
        world.record("begin capture")
        world.capturing[stream] = []
        return (fine,)

    def end(stream: int) -> tuple[Any, ...]:
        world.record("end capture")
        handle = next(handles)
        graphs[handle] = world.capturing.pop(stream)
        return fine, handle

    def instantiate(graph: int, flags: int) -> tuple[Any, ...]:
        handle = next(handles)
        graphs[handle] = graphs[graph]
        world.live["Graph"] += 1
        return fine, handle

    def launch(executable: int, stream: int) -> tuple[Any, ...]:
        world.record("launch")
        for work in graphs[executable]:
            work()
        return (fine,)

    def destroy_graph(graph: int) -> tuple[Any, ...]:
        del graphs[graph]
        return (fine,)

    def destroy_executable(executable: int) -> tuple[Any, ...]:
        world.live["Graph"] -= 1
        del graphs[executable]
        return (fine,)

    known: dict[str, Any] = {
        "cudaError_t": cudaError_t,
        "cudaMemcpyKind": cudaMemcpyKind,
        "cudaStreamCaptureMode": cudaStreamCaptureMode,
        "cudaStreamNonBlocking": 1,
        "cudaGetErrorString": lambda status: (fine, b"an illegal memory access was encountered"),
        "cudaGetLastError": lambda: (fine,),
        "cudaSetDevice": set_device,
        "cudaMalloc": malloc,
        "cudaFree": free,
        "cudaMallocHost": malloc_host,
        "cudaFreeHost": free_host,
        "cudaStreamCreateWithFlags": create_stream,
        "cudaStreamDestroy": destroy_stream,
        "cudaMemcpyAsync": copy,
        "cudaStreamSynchronize": synchronize,
        "cudaDeviceSynchronize": device_synchronize,
        "cudaEventCreate": event,
        "cudaEventDestroy": destroy_event,
        "cudaEventRecord": record,
        "cudaEventElapsedTime": elapsed,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end,
        "cudaGraphInstantiate": instantiate,
        "cudaGraphLaunch": launch,
        "cudaGraphDestroy": destroy_graph,
        "cudaGraphExecDestroy": destroy_executable,
    }
    for name, value in known.items():
        setattr(runtime, name, value)
    bindings.runtime = runtime  # type: ignore[attr-defined]
    package.bindings = bindings  # type: ignore[attr-defined]
    return {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime}

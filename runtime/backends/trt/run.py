"""A plan loaded and run: one execution context, stream and set of buffers for each thread that runs it.

A TensorRT engine may be shared by threads, an execution context may not. So every thread that calls :meth:`Plan.run`
gets a context of its own at its first call (with its share of device memory); those of ended threads are given back
when the next is made, the rest by :meth:`Plan.close`, which waits for runs under way. Teardown goes from what depends
to what is depended on: recorded graph, context, buffers, stream; then engine, runtime, logger. The CUDA context is
the caller's, and goes last.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.gpu.device import Device, Replay
from runtime.backends.gpu.foreign import Foreign, foreign
from runtime.backends.trt.log import Heard, failure, make_logger
from runtime.backends.trt.types import EngineInspector, ICudaEngine, IExecutionContext, ILogger, Runtime, TensorRT
from runtime.errors import IntvitError

_ALIGNMENT = 256  # bytes; what TensorRT documents for set_tensor_address
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan. ``least`` and ``most`` are the shapes it takes; an output's are empty."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    least: tuple[int, ...]
    most: tuple[int, ...]


class _Lane:
    """What one thread runs with."""

    def __init__(self, plan: Plan) -> None:
        self.thread = threading.current_thread()
        self.lock = threading.Lock()
        self.device = plan.device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.pages: Arrays = {}
        self.replay: Replay | None = None
        self.context: IExecutionContext = None
        self.stream: Any = self.device.create_stream()
        self.handle = self.device.stream_handle(self.stream)
        try:
            self._fill(plan)
        except BaseException:
            self.close()
            raise

    def _fill(self, plan: Plan) -> None:
        mark = plan.heard.mark()
        self.context = plan.engine.create_execution_context()
        if self.context is None:
            raise plan.failed("TensorRT makes no execution context", mark)
        for tensor in plan.inputs:
            if tensor.least != tensor.most:
                self.context.set_input_shape(tensor.name, tensor.most)
            self.shapes[tensor.name] = tensor.most
        for tensor in plan.tensors:
            most = tuple(int(size) for size in self.context.get_tensor_shape(tensor.name))
            self.pages[tensor.name] = self.device.pinned(most, tensor.dtype)
            self.addresses[tensor.name] = self.device.allocate(self.pages[tensor.name].nbytes)
        self.own_addresses()

    def own_addresses(self) -> None:
        """Point the context at this lane's buffers."""
        for name, address in self.addresses.items():
            self.context.set_tensor_address(name, address)

    def view(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The front part of a pinned array as ``shape``."""
        page = self.pages[name]
        return page.reshape(-1)[: int(np.prod(shape))].reshape(shape)

    def drop_replay(self) -> None:
        """Forget the recorded graph: shapes or addresses change."""
        if self.replay is not None:
            self.replay.release()
            self.replay = None

    def close(self) -> None:
        """Give everything back, in order."""
        self.drop_replay()
        self.context = None
        for address in self.addresses.values():
            self.device.free(address)
        for page in self.pages.values():
            self.device.unpin(page)
        self.addresses.clear()
        self.pages.clear()
        self.device.destroy_stream(self.stream)
        self.stream = None


class Plan:
    """A plan in GPU memory. Attributes: ``tensors``, its inputs and outputs; ``heard``, what TensorRT said."""

    def __init__(
        self, trt: TensorRT, data: bytes, device: Device, *, cuda_graph: bool = False, where: str = ""
    ) -> None:
        """Load the plan ``data``; the caller vouches for its bytes, which TensorRT executes.

        Raises:
            IntvitError: TensorRT does not take it, or memory does not suffice.
        """
        logger, heard = make_logger(trt)
        self.device, self.where = device, where
        self.heard: Heard = heard
        self._logger: ILogger = logger
        self._cuda_graph = cuda_graph
        self._lanes: list[_Lane] = []
        self._own = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        self._trt: TensorRT = trt
        self.engine: ICudaEngine = None
        with device.current():
            self._runtime: Runtime = trt.Runtime(logger)
            try:
                self.engine = self._runtime.deserialize_cuda_engine(data)
            except Exception as error:
                heard.errors.append(str(error))
            if self.engine is None:
                refused = self.failed("TensorRT does not load the plan", 0)
                self._drop()
                raise refused
            self.tensors = self._boundary(trt)
        self.inputs = [tensor for tensor in self.tensors if tensor.is_input]
        self.outputs = [tensor for tensor in self.tensors if not tensor.is_input]

    def failed(self, what: str, mark: int) -> IntvitError:
        """The error for a call that failed, with what TensorRT has said since ``mark``."""
        hint = "build it anew: `python -m runtime.compile BUNDLE --backend tensorrt --force`"
        return failure(what, self.heard, mark, self.where, hint)

    def _boundary(self, trt: TensorRT) -> list[Tensor]:
        kinds = {
            trt.DataType.FLOAT: np.float32,
            trt.DataType.HALF: np.float16,
            trt.DataType.INT8: np.int8,
            trt.DataType.INT32: np.int32,
            trt.DataType.INT64: np.int64,
            trt.DataType.UINT8: np.uint8,
            trt.DataType.BOOL: np.bool_,
        }
        found = []
        for index in range(int(self.engine.num_io_tensors)):
            name = str(self.engine.get_tensor_name(index))
            is_input = self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(int(size) for size in self.engine.get_tensor_shape(name))
            least, most = shape, shape
            if is_input and -1 in shape:
                shapes = self.engine.get_tensor_profile_shape(name, 0)
                least, most = (tuple(int(size) for size in shapes[which]) for which in (0, 2))
            kind = kinds.get(self.engine.get_tensor_dtype(name))
            if kind is None:
                raise IntvitError(f"tensor {name!r} of the plan has a type numpy lacks", where=self.where)
            found.append(Tensor(name, is_input, np.dtype(kind), least, most))
        return found

    def _lane(self) -> _Lane:
        with self._lock:
            if self._closed:
                raise IntvitError("the engine has been closed", where=self.where)
            lane: _Lane | None = getattr(self._own, "lane", None)
            if lane is None:
                for old in [old for old in self._lanes if not old.thread.is_alive()]:
                    self._lanes.remove(old)
                    old.close()
                lane = self._own.lane = _Lane(self)
                self._lanes.append(lane)
            return lane

    def _enqueue(self, lane: _Lane) -> None:
        mark = self.heard.mark()
        if not lane.context.execute_async_v3(lane.handle):
            raise self.failed("TensorRT failed while running", mark)

    def _execute(self, lane: _Lane) -> None:
        if not self._cuda_graph:
            self._enqueue(lane)
            return
        if lane.replay is None:
            self._enqueue(lane)  # the first run of a shape does work that cannot be recorded
            self.device.synchronize(lane.stream)
            if hasattr(lane.context, "is_stream_capturable") and not lane.context.is_stream_capturable(lane.handle):
                hint = "--option cuda_graph=off"
                raise IntvitError("this engine cannot be recorded as a CUDA graph", where=self.where, next=hint)
            lane.replay = self.device.capture(lane.stream, lambda: self._enqueue(lane))
        lane.replay()

    def _shape(self, lane: _Lane, name: str, shape: tuple[int, ...]) -> None:
        if lane.shapes[name] != shape:
            lane.drop_replay()
            mark = self.heard.mark()
            if not lane.context.set_input_shape(name, shape):
                raise self.failed(f"TensorRT does not take {name!r} of shape {shape}", mark)
            lane.shapes[name] = shape

    def _send(self, lane: _Lane, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        for tensor in self.inputs:
            given = feeds[tensor.name]
            if given.dtype != tensor.dtype or given.ndim != len(tensor.most) or not self.takes(tensor, given.shape):
                expected = f"{tensor.dtype} {tensor.least} to {tensor.most}"
                why = f"{tensor.name!r}: got {given.dtype} {given.shape}, expected {expected}"
                raise IntvitError("wrong input for the engine", where=self.where, why=why)
            self._shape(lane, tensor.name, given.shape)
            page = lane.view(tensor.name, given.shape)
            page[...] = given
            self.device.copy_in(lane.addresses[tensor.name], page, lane.stream)

    @staticmethod
    def takes(tensor: Tensor, shape: tuple[int, ...]) -> bool:
        """Whether an input takes that shape."""
        return all(low <= size <= high for low, size, high in zip(tensor.least, shape, tensor.most, strict=True))

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The outputs of one run on ``feeds``, an array for every input; numpy in, numpy out, safe from any thread.

        Raises:
            IntvitError: an input has another type or shape, the plan has been closed, or the run failed.
        """
        with self.device.current():
            lane = self._lane()
            with lane.lock:
                self._open(lane)
                self._send(lane, feeds)
                self._execute(lane)
                pages = {}
                for tensor in self.outputs:
                    shape = tuple(int(size) for size in lane.context.get_tensor_shape(tensor.name))
                    pages[tensor.name] = lane.view(tensor.name, shape)
                    self.device.copy_out(pages[tensor.name], lane.addresses[tensor.name], lane.stream)
                self.device.synchronize(lane.stream)
                return {name: page.copy() for name, page in pages.items()}

    def run_device(self, source: Any, target: Any) -> None:
        """One run from one array in device memory to another, nothing copied; returns when the result is there.

        ``source`` and ``target`` have ``__dlpack__`` or ``__cuda_array_interface__`` (torch, CuPy): contiguous float32
        arrays on the engine's GPU, in the shapes of the plan's only input and only output, 256-byte aligned.

        Raises:
            IntvitError: they are not so, the plan has been closed, or the run failed.
        """
        (first,), (last,) = self.inputs, self.outputs
        with self.device.current():
            lane = self._lane()
            with lane.lock:
                self._open(lane)
                given = foreign(source, lane.handle, what=first.name)
                try:
                    made = foreign(target, lane.handle, what=last.name)
                    try:
                        self._run_foreign(lane, first, last, given, made)
                    finally:
                        made.release()
                finally:
                    given.release()

    def _run_foreign(self, lane: _Lane, first: Tensor, last: Tensor, given: Foreign, made: Foreign) -> None:
        if len(given.shape) != len(first.most) or not self.takes(first, given.shape):
            why = f"{first.name!r} has shape {given.shape}, the engine takes {first.least} to {first.most}"
            raise IntvitError("wrong input for the engine", where=self.where, why=why)
        self._shape(lane, first.name, given.shape)
        shape = tuple(int(size) for size in lane.context.get_tensor_shape(last.name))
        if made.shape != shape:
            why = f"{last.name!r} has shape {made.shape}, the engine writes {shape}"
            raise IntvitError("wrong output array for the engine", where=self.where, why=why)
        for name, memory in ((first.name, given), (last.name, made)):
            if memory.device not in (-1, self.device.index):
                why = f"{name!r} lies on GPU {memory.device}, the engine on {self.device.index}"
                raise IntvitError("TensorRT cannot use the array", where=self.where, why=why)
            if memory.address % _ALIGNMENT:
                hint = "pass a fresh copy of the array, e.g. `tensor.clone()`"
                why = f"{name!r} begins at an address that is no multiple of {_ALIGNMENT}"
                raise IntvitError("TensorRT cannot use the array", where=self.where, why=why, next=hint)
        if not (given.settled and made.settled):
            self.device.synchronize()
        try:
            lane.context.set_tensor_address(first.name, given.address)
            lane.context.set_tensor_address(last.name, made.address)
            self._enqueue(lane)
        finally:
            self.device.synchronize(lane.stream)
            lane.own_addresses()

    def gpu_ms(self, feeds: Mapping[str, npt.NDArray[Any]], calls: int) -> list[float]:
        """Milliseconds on the GPU of ``calls`` runs, event to event, copies left out (trtexec's "GPU Compute").

        Raises:
            IntvitError: as :meth:`run`.
        """
        with self.device.current():
            lane = self._lane()
            with lane.lock:
                self._open(lane)
                self._send(lane, feeds)
                self._execute(lane)
                start, end = self.device.create_event(), self.device.create_event()
                try:
                    found = []
                    for _ in range(calls):
                        self.device.record(start, lane.stream)
                        self._execute(lane)
                        self.device.record(end, lane.stream)
                        self.device.synchronize(lane.stream)
                        found.append(self.device.elapsed_ms(start, end))
                    return found
                finally:
                    self.device.destroy_event(start)
                    self.device.destroy_event(end)

    def layers_json(self) -> str:
        """The engine inspector's JSON of every layer: what TensorRT made of the graph.

        Raises:
            IntvitError: the plan has been closed.
        """
        with self._lock, self.device.current():
            if self._closed:
                raise IntvitError("the engine has been closed", where=self.where)
            inspector: EngineInspector = self.engine.create_engine_inspector()
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _open(self, lane: _Lane) -> None:
        if lane.context is None:
            raise IntvitError("the engine has been closed", where=self.where)

    def _drop(self) -> None:
        self.engine = None
        self._runtime = None
        self._logger = None

    def close(self) -> None:
        """Wait for runs under way, then give everything back; once is enough."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self.device.current():
                for lane in self._lanes:
                    with lane.lock:
                        lane.close()
                self._lanes.clear()
                self._drop()

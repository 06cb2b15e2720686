"""A recording fake of TensorRT's Python module, made from the list of names of one version.

A name that the version lacks raises AttributeError, as in the real one. A "plan" is the ONNX file behind a header, and
an execution context runs it under ONNX Runtime on the fake device memory, so results can be compared. Nothing here
says anything about hardware.
"""

from __future__ import annotations

import functools
import json
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from runtime.kernels.in_onnx import written_out
from tests.runtime.fakes.world import Segfault, World
from tests.runtime.tensorrt_names import names

MAGIC = b"FAKEPLAN"
RELEASES = {
    "10.3": "10.3.0",
    "10.13": "10.13.3.9",
    "10.16": "10.16.2.10",
    "11.0": "11.0.0.114",
    "11.4": "11.4.0.106",
    "rtx-1.7.1": "1.7.1.116",
}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT64": np.int64}
_ELEM = {1: "FLOAT", 10: "HALF", 3: "INT8", 7: "INT64"}


class Member(int):
    """A value of an enumeration."""

    label: str

    def __new__(cls, number: int, label: str) -> Member:
        made = super().__new__(cls, number)
        made.label = label
        return made

    def __repr__(self) -> str:
        return self.label


class Thing:
    """An object of one of TensorRT's classes: every access is recorded and held against the list."""

    def __init__(self, module: FakeTensorRT, kind: str, parent: int = 0, **state: Any) -> None:
        number = module.world.born(kind, parent)
        for name, value in {"_module": module, "_kind": kind, "_number": number, "_state": state}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        module: FakeTensorRT = object.__getattribute__(self, "_module")
        full = f"{self._kind}.{name}"
        module.need(full)
        behaviour = getattr(module, "do_" + full.replace(".", "_"), None)
        if full in PROPERTIES:
            return behaviour(self) if behaviour else self._state.get(name)

        def call(*arguments: Any) -> Any:
            module.world.record(full, *arguments)
            return behaviour(self, *arguments) if behaviour else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        full = f"{self._kind}.{name}"
        self._module.need(full)
        self._module.world.record(f"{full} =", value)
        self._state[name] = value

    def __bytes__(self) -> bytes:
        assert self._kind == "IHostMemory"
        data: bytes = self._state["data"]
        return data

    def __del__(self) -> None:
        self._module.world.gone(self._kind, self._number)


PROPERTIES = {"INetworkDefinition.num_inputs", "OnnxParser.num_errors", "ICudaEngine.num_io_tensors"}


class Scope:
    """A class as seen through the module: an enumeration, or something to make objects of."""

    def __init__(self, module: FakeTensorRT, path: str) -> None:
        self.module, self.path = module, path

    def __getattr__(self, name: str) -> Any:
        full = f"{self.path}.{name}"
        self.module.need(full)
        inside = [one for one in sorted(names(self.module.version)) if one.startswith(f"{full}.")]
        if inside:
            return Scope(self.module, full)
        siblings = sorted(one for one in names(self.module.version) if one.startswith(f"{self.path}."))
        return Member(siblings.index(full), full)

    def __call__(self, *arguments: Any) -> Any:
        return self.module.make(self.path, *arguments)


class FakeTensorRT:
    """The module ``tensorrt`` (or ``tensorrt_rtx``) of a version."""

    def __init__(self, version: str, world: World) -> None:
        self.version, self.world = version, world
        self.__name__ = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
        self.__version__ = RELEASES[version]
        self.ILogger = self._logger_class()

    def need(self, full: str) -> None:
        """Raise AttributeError for what the version lacks."""
        if full not in names(self.version):
            raise AttributeError(f"TensorRT {self.version} has no {full}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            raise AttributeError(name)
        self.need(name)
        return Scope(self, name)

    def _logger_class(self) -> type:
        module = self

        class ILogger:
            Severity = Scope(module, "ILogger.Severity")

            def __init__(self) -> None:
                self.number = module.world.born("ILogger")

            def __del__(self) -> None:
                module.world.gone("ILogger", self.number)

        return ILogger

    def make(self, path: str, *arguments: Any) -> Thing:
        if path in ("Builder", "Runtime"):
            if not self.world.driver and self.__name__ != "tensorrt_rtx":
                raise Segfault(f"{path} without a driver")
            if self.world.faults.get("start"):
                raise TypeError("pybind11::init(): factory function returned nullptr")
            if path == "Runtime":
                self.world.need_context("Runtime")
            return Thing(self, path, arguments[0].number, logger=arguments[0])
        assert path == "OnnxParser"
        network, logger = arguments
        return Thing(self, path, network._number, network=network._state, logger=logger, errors=[])

    def say(self, logger: Any, text: str) -> None:
        logger.log(self.ILogger.Severity.ERROR, text)

    # --- building

    def do_Builder_create_network(self, builder: Thing, flags: int) -> Thing:
        assert flags == 1 << int(self.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Thing(self, "INetworkDefinition", builder._number, model=b"")

    def do_Builder_create_builder_config(self, builder: Thing) -> Thing:
        return Thing(self, "IBuilderConfig", builder._number, shapes={}, profiles=[])

    def do_Builder_create_optimization_profile(self, builder: Thing) -> Thing:
        return Thing(self, "IOptimizationProfile", shapes={})

    def do_IOptimizationProfile_set_shape(self, profile: Thing, name: str, *shapes: tuple[int, ...]) -> None:
        profile._state["shapes"][name] = [list(shape) for shape in shapes]

    def do_IBuilderConfig_add_optimization_profile(self, config: Thing, profile: Thing) -> int:
        config._state["shapes"].update(profile._state["shapes"])
        return 0

    def do_IBuilderConfig_create_timing_cache(self, config: Thing, data: bytes) -> Thing | None:
        return None if data == b"spoiled" else Thing(self, "ITimingCache", data=data)

    def do_IBuilderConfig_set_timing_cache(self, config: Thing, cache: Thing, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        return cache._state["data"] != b"of another device"

    def do_ITimingCache_serialize(self, cache: Thing) -> Thing:
        return Thing(self, "IHostMemory", data=b"tuned " + cache._state["data"][-8:])

    def do_OnnxParser_parse(self, parser: Thing, data: bytes) -> bool:
        if fault := self.world.faults.get("parse"):
            parser._state["errors"] = [fault]
            return False
        onnx.load_from_string(data)
        parser._state["network"]["model"] = data
        return True

    def do_OnnxParser_num_errors(self, parser: Thing) -> int:
        return len(parser._state["errors"])

    def do_OnnxParser_get_error(self, parser: Thing, index: int) -> Thing:
        return Thing(self, "ParserError", parser._number, fault=parser._state["errors"][index])

    def do_ParserError_desc(self, fault: Thing) -> str:
        return str(fault._state["fault"][0])

    def do_ParserError_node_name(self, fault: Thing) -> str:
        return str(fault._state["fault"][1])

    def do_ParserError_node_operator(self, fault: Thing) -> str:
        return str(fault._state["fault"][2])

    def do_Builder_build_serialized_network(self, builder: Thing, network: Thing, config: Thing) -> Thing | None:
        if self.__name__ == "tensorrt":
            self.world.need_context("build_serialized_network")
        if text := self.world.faults.get("build_raises"):
            raise RuntimeError(text)
        if text := self.world.faults.get("build"):
            self.say(builder._state["logger"], text)
            return None
        model = network._state["model"]
        for value in onnx.load_from_string(model).graph.input:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if 0 in dims and value.name not in config._state["shapes"]:
                self.say(builder._state["logger"], f"input {value.name} is dynamic and in no profile")
                return None
        head = json.dumps({"version": self.__version__, "shapes": config._state["shapes"]}).encode()
        return Thing(self, "IHostMemory", data=MAGIC + len(head).to_bytes(4, "big") + head + model)

    # --- running

    def do_Runtime_deserialize_cuda_engine(self, runtime: Thing, data: bytes) -> Thing | None:
        logger = runtime._state["logger"]
        if text := self.world.faults.get("deserialize"):
            self.say(logger, text)
            return None
        if not data.startswith(MAGIC):
            self.say(logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)")
            return None
        length = int.from_bytes(data[8:12], "big")
        head = json.loads(data[12 : 12 + length])
        if head["version"] != self.__version__:
            self.say(logger, f"the plan is of version {head['version']}, this is {self.__version__}")
            return None
        model = data[12 + length :]
        tensors = _tensors(model, head["shapes"])
        return Thing(self, "ICudaEngine", runtime._number, model=model, tensors=tensors, logger=logger)

    def do_ICudaEngine_num_io_tensors(self, engine: Thing) -> int:
        return len(engine._state["tensors"])

    def do_ICudaEngine_get_tensor_name(self, engine: Thing, index: int) -> str:
        return list(engine._state["tensors"])[index]

    def do_ICudaEngine_get_tensor_mode(self, engine: Thing, name: str) -> Member:
        return self.TensorIOMode.INPUT if engine._state["tensors"][name]["input"] else self.TensorIOMode.OUTPUT

    def do_ICudaEngine_get_tensor_shape(self, engine: Thing, name: str) -> list[int]:
        return list(engine._state["tensors"][name]["shape"])

    def do_ICudaEngine_get_tensor_dtype(self, engine: Thing, name: str) -> Member:
        return getattr(self.DataType, engine._state["tensors"][name]["type"])

    def do_ICudaEngine_get_tensor_profile_shape(self, engine: Thing, name: str, profile: int) -> list[list[int]]:
        return engine._state["tensors"][name]["profile"]

    def do_ICudaEngine_create_execution_context(self, engine: Thing) -> Thing | None:
        self.world.need_context("create_execution_context")
        if text := self.world.faults.get("context"):
            self.say(engine._state["logger"], text)
            return None
        shapes = {name: one["shape"] for name, one in engine._state["tensors"].items()}
        owner = threading.get_ident()
        busy = threading.Lock()
        state = {**engine._state, "shapes": shapes, "addresses": {}, "owner": owner, "busy": busy}
        return Thing(self, "IExecutionContext", engine._number, **state)

    def do_ICudaEngine_create_engine_inspector(self, engine: Thing) -> Thing:
        return Thing(self, "EngineInspector", engine._number, model=engine._state["model"])

    def do_EngineInspector_get_engine_information(self, inspector: Thing, form: Member) -> str:
        assert form.label == "LayerInformationFormat.JSON"
        return json.dumps(
            {"Layers": [{"Name": n.name} for n in onnx.load_from_string(inspector._state["model"]).graph.node]}
        )

    def do_IExecutionContext_set_input_shape(self, context: Thing, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = context._state["tensors"][name]["profile"]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self.say(context._state["logger"], f"shape {shape} of {name} is not in the profile")
            return False
        context._state["shapes"] = {**context._state["shapes"], name: list(shape)}
        return True

    def do_IExecutionContext_get_tensor_shape(self, context: Thing, name: str) -> list[int]:
        shapes, tensors = context._state["shapes"], context._state["tensors"]
        if tensors[name]["input"] or -1 not in shapes[name]:
            return list(shapes[name])
        batch = next(shapes[one][0] for one in tensors if tensors[one]["input"])
        return [batch, *shapes[name][1:]]

    def do_IExecutionContext_set_tensor_address(self, context: Thing, name: str, address: int) -> bool:
        context._state["addresses"][name] = address
        return True

    def do_IExecutionContext_is_stream_capturable(self, context: Thing, stream: int) -> bool:
        return not self.world.faults.get("capture")

    def do_IExecutionContext_execute_async_v3(self, context: Thing, stream: int) -> bool:
        self.world.need_context("execute_async_v3")
        if text := self.world.faults.get("execute"):
            self.say(context._state["logger"], text)
            return False
        if threading.get_ident() != context._state["owner"]:
            self.world.broken.append("a context was used by another thread than the one it was made for")
        if not context._state["busy"].acquire(blocking=False):
            self.world.broken.append("a context was used by two threads at once")
        shapes = {name: self.do_IExecutionContext_get_tensor_shape(context, name) for name in context._state["tensors"]}
        addresses = dict(context._state["addresses"])
        state = context._state
        self.world.enqueue(stream, lambda: self._execute(state, shapes, addresses), "execute_async_v3")
        context._state["busy"].release()
        return True

    def _execute(self, state: dict[str, Any], shapes: dict[str, list[int]], addresses: dict[str, int]) -> None:
        feeds, tensors = {}, state["tensors"]
        for name, one in tensors.items():
            if one["input"]:
                kind = np.dtype(_NUMPY[one["type"]])
                memory = self.world.buffer(addresses[name], int(np.prod(shapes[name])) * kind.itemsize)
                feeds[name] = np.frombuffer(memory, kind).reshape(shapes[name]).copy()
        made = _session(state["model"]).run(None, feeds)
        for (name, one), value in zip([(n, o) for n, o in tensors.items() if not o["input"]], made, strict=True):
            assert value.dtype == _NUMPY[one["type"]]
            self.world.buffer(addresses[name], value.nbytes)[:] = value.tobytes()


def _tensors(model: bytes, profiles: dict[str, list[list[int]]]) -> dict[str, dict[str, Any]]:
    graph, found = onnx.load_from_string(model).graph, {}
    batches = {dim.dim_value for value in graph.input for dim in list(value.type.tensor_type.shape.dim)[:1]}
    for is_input, values in ((True, graph.input), (False, graph.output)):
        for value in values:
            kind = value.type.tensor_type
            shape = [dim.dim_value or -1 for dim in kind.shape.dim]
            if not is_input and shape and shape[0] == -1 and 0 not in batches:
                shape[0] = next(iter(batches))  # TensorRT follows the input's fixed batch to the outputs
            if not is_input and not shape:
                shape = list(_shapes(model)[value.name])
            profile = profiles.get(value.name, [shape] * 3)
            found[value.name] = {"input": is_input, "shape": shape, "type": _ELEM[kind.elem_type], "profile": profile}
    return found


@functools.lru_cache(maxsize=32)
def _shapes(model: bytes) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs that name none, found by a run on zeros."""
    graph = onnx.load_from_string(model).graph
    feeds = {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            _NUMPY[_ELEM[value.type.tensor_type.elem_type]],
        )
        for value in graph.input
    }
    made = _session(model).run(None, feeds)
    return {value.name: array.shape for value, array in zip(graph.output, made, strict=True)}


@functools.lru_cache(maxsize=32)
def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(written_out(model), options, providers=["CPUExecutionProvider"])

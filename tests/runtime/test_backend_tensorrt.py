"""The tensorrt backend under recording fakes of TensorRT and CUDA, for every version it is for.

These tests claim logic, not hardware: which calls are made and in which order, what outlives what, what is kept, what
is built anew and why, and what a person is told when something fails. The fakes refuse every name that a version
lacks (tests/runtime/data/tensorrt-api). No GPU and no TensorRT takes part.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import compile as verb
from runtime.backends.base import open_engine, open_pair
from runtime.backends.gpu.device import open_device
from runtime.backends.trt.engines import Place, graph_bytes, graph_of, inputs_of
from runtime.backends.trt.options import TensorRtOptions
from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.errors import IntvitError
from runtime.manifest import Manifest
from runtime.onnx_retype import float_type, retype
from runtime.onnx_wire import read_graph
from runtime.registry import load_registry
from tests.runtime.fakes.machine import GPU, Machine, opened, pictures, raised
from tests.runtime.tiny import Spec, graph, make_bundle, reference, rehash


@pytest.mark.parametrize("cuda", ["pycuda", "cuda-python"])
def test_logits_are_those_of_the_graph(machine: Machine, version: str, cuda: str, bundle_copy: Path) -> None:
    world, images = machine(version, cuda), pictures()
    engine = opened(bundle_copy, batch="4")
    assert engine.input_shape == (3, 8, 8) and engine.num_classes == 10
    for count in (4, 1, 8, 7):
        wanted, _ = reference(Spec(), images[:count])
        np.testing.assert_allclose(engine.run(images[:count]), wanted, rtol=1e-4, atol=1e-5)
    about = engine.describe()
    assert json.loads(json.dumps(about)) == about
    assert (about["backend"], about["graph"], about["device"]["sm"]) == ("tensorrt", "canonical", "8.7")
    assert about["cuda"].startswith(cuda) and about["options"]["workspace_mib"] == 2048
    engine.close()
    engine.close()
    with pytest.raises(IntvitError, match="closed"):
        engine.run(images)
    world.check_empty()


def test_the_twin_is_the_float_network_in_float16(machine: Machine, bundle_copy: Path) -> None:
    world, images = machine(), pictures()
    engine, twin = open_pair(Bundle.open(bundle_copy), "tensorrt", options={"batch": "2", "precision": "fp32"})
    wanted, _ = reference(Spec(), images, quantize=False)
    far = np.abs(twin.run(images) - wanted).max()
    assert 1e-6 < far < 5e-3 * np.abs(wanted).max()
    assert twin.describe()["options"]["precision"] == "fp16" and twin.describe()["float"] == "float16"
    assert twin.describe()["options"]["batch"] == engine.describe()["options"]["batch"] == "2"
    engine.close()
    twin.close()
    world.check_empty()


def test_a_forgotten_engine_is_closed(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    engine = opened(bundle_copy)
    engine.run(pictures(1))
    del engine
    world.check_empty()


BUILD = (
    "new ILogger",
    "new Builder",
    "Builder.create_network",
    "OnnxParser.parse",
    "IBuilderConfig.builder_optimization_level =",
    "IBuilderConfig.profiling_verbosity =",
    "IBuilderConfig.set_memory_pool_limit",
    "Builder.build_serialized_network",
    "del OnnxParser",
    "del INetworkDefinition",
    "del IBuilderConfig",
    "del Builder",
)


def test_order_of_calls_and_of_teardown(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    engine = opened(bundle_copy)
    assert tuple(world.of(*BUILD)) == (*BUILD, "new ILogger")
    loaded = world.log[len(world.log) - world.log[::-1].index("del ILogger") :]
    assert [name for name in loaded if name in ("Runtime.deserialize_cuda_engine", "new ICudaEngine")]
    world.log.clear()
    engine.run(pictures(1))
    run = ("copy_in", "IExecutionContext.execute_async_v3", "copy_out", "synchronize")
    assert world.of("new Stream", "new IExecutionContext", *run) == ["new Stream", "new IExecutionContext", *run]
    world.log.clear()
    engine.run(pictures(1))
    assert [name for name in world.log if not name.startswith("IExecutionContext.get")] == list(run)
    world.log.clear()
    engine.close()
    order = ["del IExecutionContext", "free", "free", "del Stream", "del ICudaEngine", "del Runtime", "del ILogger"]
    assert world.log == order
    world.check_empty()


def test_precision_and_shapes_are_in_the_graph_not_in_flags(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    opened(bundle_copy, batch="2", precision="bf16", level="5", workspace="100").close()
    asked = dict(world.calls)
    assert asked["IBuilderConfig.builder_optimization_level ="] == (5,)
    assert asked["IBuilderConfig.set_memory_pool_limit"][1] == 100 << 20
    assert "IBuilderConfig.add_optimization_profile" not in asked and "IBuilderConfig.set_flag" not in asked
    opened(bundle_copy, batch="1:2:4").close()
    asked = dict(world.calls)
    assert asked["IOptimizationProfile.set_shape"] == ("images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))


def test_a_range_of_batches(machine: Machine, bundle_copy: Path) -> None:
    world, images = machine(), pictures(9)
    engine = opened(bundle_copy, batch="2:2:4")
    wanted, _ = reference(Spec(), images)
    for count in (1, 2, 3, 4, 9):
        np.testing.assert_allclose(engine.run(images[:count]), wanted[:count], rtol=1e-4, atol=1e-5)
    shapes = [arguments[1] for name, arguments in world.calls if name == "IExecutionContext.set_input_shape"]
    assert shapes == [(4, 3, 8, 8), (2, 3, 8, 8), (3, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)][: len(shapes)]
    engine.close()
    world.check_empty()


def test_an_engine_is_built_once(machine: Machine, bundle_copy: Path, capfd: Any) -> None:
    world = machine()
    opened(bundle_copy).close()
    assert "building the integer engine (no engine for TensorRT yet)" in capfd.readouterr().err
    world.log.clear()
    opened(bundle_copy).close()
    assert "new Builder" not in world.log and capfd.readouterr().err == ""
    opened(bundle_copy, twin=True).close()
    assert "building the twin engine" in capfd.readouterr().err
    assert sorted(record.inputs["role"] for record in load_registry(bundle_copy).engines) == ["integer", "twin"]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"level": "5"}, "changed: level 3 -> 5"),
        ({}, {"batch": "8"}, "changed: batch 1 -> 8"),
        ({}, {"workspace": "64"}, "changed: workspace_mib 2048 -> 64"),
        ({}, {"precision": "fp16"}, "changed: precision graph -> fp16"),
        ({"name": "Fake Thor", "sm": "11.0"}, {}, "changed: device Fake Orin -> Fake Thor; sm 8.7 -> 11.0"),
        ({"version": "10.16"}, {}, "changed: tensorrt 10.3.0 -> 10.16.2.10"),
        ({"version": "rtx-1.7.1"}, {}, "changed: library tensorrt -> tensorrt_rtx; tensorrt 10.3.0 -> 1.7.1.116"),
    ],
)
def test_what_differs_is_said_in_one_line(
    machine: Machine, bundle_copy: Path, capfd: Any, change: dict[str, str], options: dict[str, str], said: str
) -> None:
    machine()
    opened(bundle_copy).close()
    capfd.readouterr()
    machine(**change)
    opened(bundle_copy, **options).close()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and f"building the integer engine ({said})" in lines[0] and "built in" in lines[1]


def test_another_graph_is_built_anew(machine: Machine, bundle_copy: Path, tmp_path: Path, capfd: Any) -> None:
    machine()
    opened(bundle_copy).close()
    other = make_bundle(tmp_path / "other", Spec(seed=3))
    (bundle_copy / "canonical/model.onnx").write_bytes((other / "canonical/model.onnx").read_bytes())
    rehash(bundle_copy)
    opened(bundle_copy).close()
    assert "changed: graph_sha256" in capfd.readouterr().err
    assert len(load_registry(bundle_copy).engines) == 1


def test_engines_of_another_version_go_and_those_of_another_batch_stay(machine: Machine, bundle_copy: Path) -> None:
    machine()
    for batch in ("1", "8"):
        opened(bundle_copy, batch=batch).close()
    opened(bundle_copy, batch="8", level="1").close()
    kept = [(record.inputs["batch"], record.inputs["level"]) for record in load_registry(bundle_copy).engines]
    assert kept == [("1", 3), ("8", 1)]
    machine("10.16")
    opened(bundle_copy).close()
    (record,) = load_registry(bundle_copy).engines
    assert record.inputs["tensorrt"] == "10.16.2.10"
    folders = [path.name for path in (bundle_copy / "engines").iterdir() if path.is_dir()]
    assert folders == [f"tensorrt-{record.key}"]


def test_other_backends_keep_their_engines(machine: Machine, bundle_copy: Path) -> None:
    machine()
    verb.compile_bundle(Bundle.open(bundle_copy))
    opened(bundle_copy).close()
    verb.compile_bundle(Bundle.open(bundle_copy), force=True)
    assert sorted(record.backend for record in Bundle.open(bundle_copy).engines) == ["ort", "tensorrt"]


def test_the_graph_for_tensorrt_is_preferred(machine: Machine, bundle_copy: Path, tmp_path: Path) -> None:
    machine()
    other = make_bundle(tmp_path / "other", Spec(seed=3))
    (bundle_copy / "tensorrt").mkdir()
    (bundle_copy / "tensorrt/model.onnx").write_bytes((other / "canonical/model.onnx").read_bytes())
    manifest = Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    files = [*manifest.files, entry_for(bundle_copy, "tensorrt/model.onnx", "graph", "tensorrt")]
    write_manifest(bundle_copy, manifest.model_copy(update={"files": files}))
    engine = opened(bundle_copy)
    assert engine.describe()["graph"] == "tensorrt"
    wanted, _ = reference(Spec(seed=3), pictures(2))
    np.testing.assert_allclose(engine.run(pictures(2)), wanted, rtol=1e-4, atol=1e-5)


def test_the_twin_for_tensorrt_is_taken_as_it_stands(machine: Machine, bundle_copy: Path) -> None:
    machine()
    (bundle_copy / "tensorrt").mkdir()
    twin = retype(graph(Spec(), quantize=False).SerializeToString(), "bf16")
    (bundle_copy / "tensorrt/float.onnx").write_bytes(twin)
    manifest = Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    files = [*manifest.files, entry_for(bundle_copy, "tensorrt/float.onnx", "float_twin", "tensorrt")]
    write_manifest(bundle_copy, manifest.model_copy(update={"files": files}))
    place = Place(sys.modules["tensorrt"], GPU, open_device(0))
    made = graph_of(Bundle.open(bundle_copy), "twin")
    assert (made.source, made.precision) == ("tensorrt", "graph")
    assert float_type(read_graph(graph_bytes(Bundle.open(bundle_copy), made))) == "bfloat16"
    assert inputs_of(place, made, "twin", TensorRtOptions())["precision"] == "graph"


def test_a_bundle_without_any_graph_for_it(machine: Machine, bundle_copy: Path) -> None:
    machine()
    bundle = Bundle.open(bundle_copy)
    files = [entry for entry in bundle.manifest.files if entry.role != "canonical"]
    without = Bundle(bundle.root, bundle.manifest.model_copy(update={"files": files}), bundle.sha256, ())
    assert "no graph for tensorrt" in raised(lambda: open_engine(without, "tensorrt")).what


# --- the timing cache


def test_the_timing_cache_is_kept_for_the_device(
    machine: Machine, version: str, bundle_copy: Path, tmp_path: Path
) -> None:
    world = machine(version)
    opened(bundle_copy).close()
    files = list((tmp_path / "cache/tensorrt").glob("*.timing"))
    if version.startswith("rtx"):
        assert files == [] and "IBuilderConfig.create_timing_cache" not in world.log
        return
    (file,) = files
    assert "fake-orin" in file.name and "sm8-7" in file.name
    opened(bundle_copy, level="4").close()
    given = [arguments[0] for name, arguments in world.calls if name == "IBuilderConfig.create_timing_cache"]
    assert given == [b"", b"tuned "]


@pytest.mark.parametrize("found", [b"of another device", b"spoiled"])
def test_a_timing_cache_that_does_not_fit_is_begun_anew(
    machine: Machine, bundle_copy: Path, tmp_path: Path, found: bytes
) -> None:
    world = machine()
    opened(bundle_copy).close()
    (file,) = (tmp_path / "cache/tensorrt").glob("*.timing")
    file.write_bytes(found)
    world.calls.clear()
    opened(bundle_copy, level="4").close()
    given = [arguments[0] for name, arguments in world.calls if name == "IBuilderConfig.create_timing_cache"]
    assert given == [found, b""] and file.read_bytes() == b"tuned "
    world.check_empty()


# --- threads, graphs, device memory


@pytest.mark.parametrize("cuda", ["pycuda", "cuda-python"])
def test_threads_have_a_context_each_and_close_waits(machine: Machine, bundle_copy: Path, cuda: str) -> None:
    world, images = machine("10.3", cuda), pictures()
    engine = opened(bundle_copy, batch="2:2:4")
    wanted = engine.run(images)
    wrong: list[str] = []
    stop = threading.Event()

    def work(count: int) -> None:
        while not stop.is_set():
            try:
                if not np.allclose(engine.run(images[:count]), wanted[:count], atol=1e-5):
                    wrong.append(f"{count} images differ")
            except IntvitError as error:
                if "closed" not in error.what:
                    wrong.append(error.what)
                return

    workers = [threading.Thread(target=work, args=(count,)) for count in (1, 3, 8, 2)]
    for worker in workers:
        worker.start()
    stop.wait(0.3)
    engine.close()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers) and wrong == []
    assert world.log.count("new IExecutionContext") == 5
    world.check_empty()


def test_the_contexts_of_ended_threads_are_given_back(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    engine = opened(bundle_copy)
    for _ in range(4):
        worker = threading.Thread(target=lambda: engine.run(pictures(1)))
        worker.start()
        worker.join()
    assert world.log.count("new IExecutionContext") == 4 and world.live["IExecutionContext"] == 1
    engine.close()
    world.check_empty()


def test_a_cuda_graph_is_recorded_once_and_again_for_another_shape(
    machine: Machine, version: str, bundle_copy: Path
) -> None:
    world, images = machine(version, "both"), pictures()
    engine = opened(bundle_copy, cuda_graph="on", batch="1:2:4")
    assert engine.describe()["cuda"].startswith("cuda-python")
    wanted, _ = reference(Spec(), images)
    for count in (2, 2, 2, 3, 2):
        np.testing.assert_allclose(engine.run(images[:count]), wanted[:count], rtol=1e-4, atol=1e-5)
    assert (world.log.count("begin capture"), world.log.count("launch")) == (3, 5)
    assert world.log.index("IExecutionContext.execute_async_v3") < world.log.index("begin capture")
    engine.close()
    world.check_empty()


def test_graphs_that_cannot_be_recorded(machine: Machine, bundle_copy: Path) -> None:
    machine("10.3", "pycuda")
    engine = opened(bundle_copy, cuda_graph="on")
    assert "pycuda cannot record" in raised(lambda: engine.run(pictures(1))).what
    world = machine("rtx-1.7.1", "cuda-python")
    world.faults["capture"] = True
    engine = opened(bundle_copy, cuda_graph="on")
    error = raised(lambda: engine.run(pictures(1)))
    assert "cannot be recorded" in error.what and error.next == "--option cuda_graph=off"


def test_time_on_the_gpu_is_from_event_to_event(machine: Machine, bundle_copy: Path) -> None:
    for cuda in ("pycuda", "cuda-python"):
        world = machine("10.3", cuda)
        engine = opened(bundle_copy, batch="2")
        assert engine.gpu_ms(pictures(2), 3) == [1.0, 1.0, 1.0]
        pattern = ["Event.record", "IExecutionContext.execute_async_v3", "Event.record", "synchronize"]
        assert world.of(*pattern)[-12:] == pattern * 3
        engine.close()
        world.check_empty()


def test_the_inspector_is_read(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    engine = opened(bundle_copy)
    assert any("MatMul" in layer["Name"] for layer in json.loads(engine.layers_json())["Layers"])
    engine.close()
    with pytest.raises(IntvitError, match="closed"):
        engine.layers_json()
    world.check_empty()

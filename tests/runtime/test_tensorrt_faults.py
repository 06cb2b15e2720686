"""What the tensorrt backend says when something fails, under recording fakes of each version.

Logic, not hardware: see test_backend_tensorrt.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import bench
from runtime.backends.base import open_engine
from runtime.backends.tensorrt import TensorRtEngine, compile_engines
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.parity import check
from tests.runtime.fakes.machine import Machine, opened, pictures, raised
from tests.runtime.fakes.world import Segfault
from tests.runtime.tiny import rehash


def test_without_a_driver_no_object_of_tensorrt_is_made(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    world.driver = False
    for action in (
        lambda: opened(bundle_copy),
        lambda: compile_engines(Bundle.open(bundle_copy)),
        lambda: check(Bundle.open(bundle_copy), backend="tensorrt"),
        lambda: bench.measure(Bundle.open(bundle_copy), backend="tensorrt", seconds=0),
    ):
        assert "no NVIDIA GPU" in raised(action).what
    assert world.log == []


def test_the_fake_crashes_as_the_real_one_does(machine: Machine) -> None:
    """So that the test above can fail."""
    machine("10.3").driver = False
    with pytest.raises(Segfault):
        sys.modules["tensorrt"].Builder(None)


def test_no_tensorrt_and_no_memory_library(
    machine: Machine, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("10.3", "none")
    error = raised(lambda: opened(bundle_copy))
    assert "GPU memory" in error.what and "pycuda:" in error.why and "pip install cuda-python" in error.next
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "TensorRT is not installed" and "python3-libnvinfer" in error.next
    assert "tensorrt:" in error.why and "tensorrt_rtx:" in error.why


def test_tensorrt_that_is_too_old(machine: Machine, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("10.3")
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.2")
    assert "8.6.2 is too old" in raised(lambda: opened(bundle_copy)).what


def test_a_graph_that_is_not_read(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    world.faults["parse"] = (
        "shiftIsAllZeros(zeroPoint): Non-zero zero point",
        "b0.fc1/QuantizeLinear",
        "QuantizeLinear",
    )
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "TensorRT cannot read the graph"
    assert "QuantizeLinear node 'b0.fc1/QuantizeLinear'" in error.where and "layer 'b0.fc1'" in error.where
    assert "Non-zero zero point" in error.why and "toolchain.lint" in error.next
    world.check_empty()
    assert not (bundle_copy / "engines").exists()


def test_a_graph_that_is_not_built(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    text = "Error Code 10: Could not find any implementation for node {ForeignNode[b0.fc2.product/MatMul + b0.out/Add]}"
    for fault in ("build", "build_raises"):
        world.faults = {fault: text}
        error = raised(lambda: opened(bundle_copy))
        assert error.what == "TensorRT cannot build an engine from the graph"
        assert "MatMul node 'b0.fc2.product/MatMul'" in error.where and "Could not find" in error.why
        world.check_empty()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("build", "Error Code 1: Cuda Runtime (out of memory)"),
        ("build", "[virtualMemoryBuffer.cpp] OutOfMemory: Requested amount of GPU memory could not be allocated"),
        ("deserialize", "Error Code 2: OutOfMemory (no further information)"),
        ("context", "Error Code 1: Cuda Runtime (out of memory)"),
        ("execute", "Error Code 1: Cuda Runtime (out of memory)"),
        ("allocate", "x"),
    ],
)
@pytest.mark.parametrize("cuda", ["pycuda", "cuda-python"])
def test_memory_that_is_used_up(machine: Machine, bundle_copy: Path, fault: str, text: str, cuda: str) -> None:
    world = machine("10.3", cuda)
    world.faults[fault] = text
    held: list[TensorRtEngine] = []

    def use() -> None:
        held.append(opened(bundle_copy))
        held[0].run(pictures(1))

    error = raised(use)
    assert error.what == "the GPU's memory is used up" and "sudo init 3" in error.next
    for engine in held:
        engine.close()
    held.clear()
    world.check_empty()


def test_tensorrt_that_does_not_start(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    world.faults["start"] = True
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "TensorRT does not start" and "nullptr" in error.why and "doctor" in error.next
    world.check_empty()


def test_a_plan_that_is_refused(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    opened(bundle_copy).close()
    world.faults["deserialize"] = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "TensorRT does not load the plan" and "kSERIALIZATION_VERSION" in error.why
    assert "--backend tensorrt --force" in error.next and error.where.endswith("model.plan")
    world.check_empty()


def test_a_plan_whose_bytes_were_changed_is_never_loaded(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    opened(bundle_copy).close()
    bundle = Bundle.open(bundle_copy)
    (path,) = (bundle_copy / "engines").glob("tensorrt-*/model.plan")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    world.log.clear()
    error = raised(lambda: Bundle.open(bundle_copy))
    assert "engines/" in error.next
    raised(lambda: open_engine(bundle, "tensorrt"))
    assert "Runtime.deserialize_cuda_engine" not in world.log
    path.unlink()
    raised(lambda: open_engine(bundle, "tensorrt"))
    assert "Runtime.deserialize_cuda_engine" not in world.log


def test_a_plan_changed_between_the_check_and_the_load(
    machine: Machine, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = machine()
    opened(bundle_copy).close()
    (path,) = (bundle_copy / "engines").glob("tensorrt-*/model.plan")
    monkeypatch.setattr("runtime.registry.check_file", lambda *_, **__: None)
    path.write_bytes(b"another plan")
    world.log.clear()
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "the engine is not the one that was registered" and "native code" in error.why
    assert "new Runtime" not in world.log


def test_a_plan_of_other_tensors(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    rehash(bundle_copy, output_name="scores")
    error = raised(lambda: opened(bundle_copy))
    assert error.what == "the plan has other inputs or outputs" and "'scores'" in error.why
    world.check_empty()
    rehash(bundle_copy, output_name="logits", num_classes=11)
    engine = opened(bundle_copy)
    assert "other outputs" in raised(lambda: engine.run(pictures(1))).what


def test_a_run_that_fails(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    engine = opened(bundle_copy)
    world.faults["execute"] = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    error = raised(lambda: engine.run(pictures(1)))
    assert error.what == "TensorRT failed while running" and "illegal memory access" in error.why
    world.faults.clear()
    engine.run(pictures(1))
    world.faults["synchronize"] = "illegal address"
    assert raised(lambda: engine.run(pictures(1))).what == "CUDA failed"
    world.faults.clear()
    with pytest.raises(IntvitError, match="wrong input"):
        engine.run(np.zeros((1, 3, 8, 9), np.float32))
    engine.close()
    world.check_empty()


def test_logits_that_are_not_finite_are_not_taken(
    machine: Machine, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(TensorRtEngine, "run", lambda self, images: np.full((len(images), 10), np.nan, np.float32))
    error = raised(lambda: compile_engines(Bundle.open(bundle_copy)))
    assert "no finite logits" in error.what and "bf16" in error.next

"""A bundle whose TensorRT graph has nodes of our kernels: the plugins come first, the integers are the golden ones.

Under recording fakes of TensorRT and CUDA, whose plans run such nodes written out in ONNX's operators: these tests
claim logic and arithmetic, not hardware. The plugins themselves: tests/runtime/kernels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from runtime.backends.tensorrt import exposed_types
from runtime.backends.trt import plugins
from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.kernels.build import source_hash
from runtime.ladder import climb
from runtime.onnx_boundary import boundary_types
from runtime.onnx_wire import INT8, read_graph, with_extra_outputs
from runtime.parity import check, sqnr_db
from runtime.quantizers import symmetric
from tests.runtime.fakes.machine import GPU, install, opened, pictures, raised
from tests.runtime.fakes.world import World
from tests.runtime.tensorrt_names import VERSIONS
from tests.runtime.tiny import Spec, make_bundle, reference
from tests.toolchain.nets import serialized
from toolchain.targets import tensorrt
from toolchain.targets.choices import TensorRtOptions

FULL = [version for version in VERSIONS if not version.startswith("rtx")]
SPEC = Spec(int4=False)
Machine = Callable[..., World]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-made bundle of the runtime's tests, with a TensorRT graph on our kernels. Nobody writes to it."""
    root = make_bundle(tmp_path_factory.mktemp("kernels") / "bundle", SPEC)
    bundle = Bundle.open(root)
    dialect = tensorrt.lower(ir.load(bundle.file("canonical")), TensorRtOptions(kernels="on"))
    (root / "tensorrt").mkdir()
    (root / "tensorrt/model.onnx").write_bytes(serialized(dialect))
    files = [*bundle.manifest.files, entry_for(root, "tensorrt/model.onnx", "graph", "tensorrt")]
    write_manifest(root, bundle.manifest.model_copy(update={"files": files}))
    return root


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A folder such as ``make kernels`` writes, as far as is looked at before TensorRT has it."""
    atomic_write_json(tmp_path / "kernels/kernels.json", {"sources": source_hash()})
    return tmp_path / "kernels"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine with a fake GPU; what is registered with its TensorRT is in its record."""
    monkeypatch.setenv("INTVIT_CACHE", str(tmp_path / "cache"))

    def make(version: str = "10.13", **changes: Any) -> World:
        world = install(monkeypatch, version, gpu=replace(GPU, **changes))
        monkeypatch.setattr(plugins, "_known", [])
        monkeypatch.setattr(plugins.qdp, "register", lambda folder: world.record("ahead of time", str(folder)))

        def creators(folder: Path, *, trt: Any) -> list[str]:
            world.record("IPluginV3", str(folder))
            return ["creator"]

        monkeypatch.setattr(plugins.plugin_v3, "register", creators)
        return world

    return make


def test_the_network_uses_both_plugins(bundle: Path) -> None:
    found = [node.op_type for node in read_graph(Bundle.open(bundle).file("graph", "tensorrt").read_bytes()).nodes]
    assert (found.count("linear_f16"), found.count("linear_i8"), found.count("MatMul")) == (3, 1, 0)


@pytest.mark.parametrize("version", FULL)
def test_the_plugins_are_known_before_the_graph_is_read(
    machine: Machine, version: str, bundle: Path, kernels: Path
) -> None:
    world, kind = machine(version), "IPluginV3" if version == "10.3" else "ahead of time"
    for batch in ("2", "4"):
        opened(bundle, batch=batch, kernels=str(kernels)).close()
    order = ["new Builder", "OnnxParser.parse", "Builder.build_serialized_network", "Runtime.deserialize_cuda_engine"]
    assert world.of("ahead of time", "IPluginV3", *order) == [kind, *order, *order]
    assert dict(world.calls)[kind] == (str(kernels),)
    world.check_empty()


@pytest.mark.parametrize("version", FULL)
def test_only_plans_without_the_kernel_need_the_plugin_to_run(
    machine: Machine, version: str, bundle: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = machine(version)
    opened(bundle, kernels=str(kernels)).close()
    world.log.clear()
    monkeypatch.setattr(plugins, "_known", [])  # another process
    if version == "10.3":
        opened(bundle, kernels=str(kernels)).close()
        assert world.of("IPluginV3", "Runtime.deserialize_cuda_engine") == [
            "IPluginV3",
            "Runtime.deserialize_cuda_engine",
        ]
        assert plugins._known[0][1] == ["creator"]  # TensorRT's registry does not keep it
    else:
        opened(bundle, kernels="nowhere").close()
        assert not world.of("ahead of time", "OnnxParser.parse")


def test_engines_are_built_anew_for_other_kernels(
    machine: Machine, bundle: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = machine()
    engine = opened(bundle, kernels=str(kernels))
    assert engine.record.inputs["kernels"] == source_hash()
    engine.close()
    monkeypatch.setattr("runtime.backends.trt.engines.source_hash", lambda: "f" * 64)
    opened(bundle, kernels=str(kernels)).close()
    assert len(world.of("OnnxParser.parse")) == 2
    twin = opened(bundle, twin=True)
    assert "kernels" not in twin.record.inputs
    twin.close()


def test_the_logits_and_the_golden_integers(machine: Machine, bundle: Path, kernels: Path) -> None:
    """Parity of the whole bundle: an engine, its taps, its logits. GELU and float16 may turn a rounding by one."""
    machine()
    engine, images = opened(bundle, batch="4", kernels=str(kernels)), pictures(4)
    wanted, _ = reference(SPEC, images)
    assert sqnr_db(wanted, engine.run(images)) > 30 and engine.describe()["float"] == "float16"
    engine.close()
    result = check(Bundle.open(bundle), backend="tensorrt", threads=1)
    assert result.ok and max(tap.max_lsb for tap in result.taps) <= 1


def test_the_ladder_reaches_the_kernels(machine: Machine, bundle: Path, kernels: Path) -> None:
    """fc2's integers come from fc1's node alone: its input's step is a float16, and GELU a rational function."""
    machine()
    opened(bundle, kernels=str(kernels)).close()
    ladder = climb(Bundle.open(bundle), backend="tensorrt", threads=1)
    assert ladder.ok, ladder.verdict
    for step in ladder.steps:
        if step.rung in ("dialect", "engine"):
            tap = next(tap for tap in step.taps if tap.name == "b0.fc2")
            assert tap.max_lsb <= 1 and tap.mismatch_rate < 0.5  # percent
            assert step.precision == "float16"


def test_exposed_taps_have_a_type(bundle: Path) -> None:
    opened_bundle = Bundle.open(bundle)
    model = opened_bundle.file("graph", "tensorrt").read_bytes()
    taps = symmetric(opened_bundle.manifest.taps, read_graph(model), where="")
    names = [tap.tensor for tap in taps]
    typed = boundary_types(exposed_types(with_extra_outputs(model, names), names))
    assert {typed[name] for name in names} == {INT8}


def refused(bundle: Path, **options: str) -> IntvitError:
    return raised(lambda: opened(bundle, **options))


def test_rtx_is_refused_before_its_parser_ends_the_process(machine: Machine, bundle: Path, kernels: Path) -> None:
    world = machine("rtx-1.7.1")
    error = refused(bundle, library="tensorrt_rtx", kernels=str(kernels))
    assert error.what == "TensorRT-RTX cannot run our kernels" and "no plugin layers" in error.why
    assert "kernels=off" in error.next and "tensorrt/model.onnx" in error.where
    assert not world.of("OnnxParser.parse")


@pytest.mark.parametrize("version", ["10.3", "10.13"])
def test_kernels_that_are_not_built_are_said(machine: Machine, version: str, bundle: Path, tmp_path: Path) -> None:
    world = machine(version)
    error = refused(bundle, kernels=str(tmp_path / "nowhere"))
    assert "the kernels are not built" in error.what and "nowhere" in error.why
    assert "make kernels" in error.next and "--option kernels=FOLDER" in error.next
    atomic_write_json(tmp_path / "old/kernels.json", {"sources": "0" * 64})
    assert "built from other sources" in refused(bundle, kernels=str(tmp_path / "old")).what
    assert not world.of("OnnxParser.parse", "ahead of time", "IPluginV3")


def test_an_old_gpu_is_refused(machine: Machine, bundle: Path, kernels: Path) -> None:
    world = machine(sm="7.5")
    error = refused(bundle, kernels=str(kernels))
    assert "too old" in error.what and "SM 7.5" in error.why and not world.of("OnnxParser.parse")


def test_another_precision_is_refused(machine: Machine, bundle: Path, kernels: Path) -> None:
    machine()
    error = refused(bundle, precision="bf16", kernels=str(kernels))
    assert "float type cannot be changed" in error.what and "kernels=off" in error.next


def test_graphs_without_such_nodes_need_nothing(machine: Machine, bundle: Path) -> None:
    world = machine()
    opened(bundle, twin=True, kernels="nowhere").close()
    assert world.of("OnnxParser.parse") and not world.of("ahead of time", "IPluginV3")

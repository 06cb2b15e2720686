"""``parity``, ``compile`` and ``bench`` with ``--backend tensorrt``, under recording fakes: logic, not hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime import bench, cli
from runtime import compile as verb
from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.files import sha256_bytes
from runtime.ladder import climb
from runtime.manifest import Manifest
from runtime.onnx_retype import retype
from runtime.parity import check
from runtime.registry import Registry, load_registry, save_registry
from tests.runtime.fakes.machine import Machine, opened
from tests.runtime.tiny import Spec, graph, rehash


def test_parity_reads_the_integers(machine: Machine, version: str, bundle_copy: Path) -> None:
    world = machine(version)
    found = check(Bundle.open(bundle_copy), backend="tensorrt")
    assert found.ok and {tap.name for tap in found.taps} == set(Spec().linears)
    world.check_empty()


def test_parity_of_a_half_precision_graph_has_its_own_limits(machine: Machine, bundle_copy: Path) -> None:
    machine()
    path = bundle_copy / "canonical/model.onnx"
    path.write_bytes(retype(path.read_bytes(), "fp16"))
    rehash(bundle_copy)
    found = check(Bundle.open(bundle_copy), backend="tensorrt")
    assert found.ok and 50 < found.logits_sqnr_db < 90, found.logits_sqnr_db


def test_parity_sees_a_fault(machine: Machine, bundle_copy: Path) -> None:
    machine()
    wrong = graph(Spec(seed=4))
    (bundle_copy / "canonical/model.onnx").write_bytes(wrong.SerializeToString())
    rehash(bundle_copy)
    assert not check(Bundle.open(bundle_copy), backend="tensorrt").ok


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_ladder_reaches_the_engine(machine: Machine, bundle_copy: Path, precision: str) -> None:
    """In float32 by the general limits; in float16 the taps are shown and the logits judged."""
    machine()
    (bundle_copy / "tensorrt").mkdir()
    stored = retype((bundle_copy / "canonical/model.onnx").read_bytes(), precision)
    (bundle_copy / "tensorrt/model.onnx").write_bytes(stored)
    manifest = Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    files = [*manifest.files, entry_for(bundle_copy, "tensorrt/model.onnx", "graph", "tensorrt")]
    write_manifest(bundle_copy, manifest.model_copy(update={"files": files}))
    found = climb(Bundle.open(bundle_copy), backend="tensorrt", threads=1)
    assert [step.rung for step in found.steps] == ["float", "fake-quant", "canonical", "dialect", "engine"]
    assert found.ok, found.verdict
    names = {"fp32": "float32", "fp16": "float16"}
    assert [step.precision for step in found.steps[2:]] == ["float32", names[precision], names[precision]]
    assert found.steps[3].exact is (precision == "fp32")


def test_the_command_compile(machine: Machine, bundle_copy: Path, capfd: Any) -> None:
    world = machine("10.16")
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "tensorrt", "--option", "batch=4"]) == 0
    said = capfd.readouterr()
    assert "float16 twin" in said.out and "no engine for TensorRT yet" in said.err
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "tensorrt", "--option", "batch=4"]) == 0
    assert "up to date" in capfd.readouterr().out
    words = ["--option", "batch=4", "--force", "--layers", str(bundle_copy / "layers.json")]
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "tensorrt", *words]) == 0
    assert "(--force)" in capfd.readouterr().err
    assert json.loads((bundle_copy / "layers.json").read_text())["Layers"]
    capfd.readouterr()
    words[-1] = str(bundle_copy / "manifest.json/layers.json")  # said before an engine is built for minutes
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "tensorrt", *words]) == 1
    said = capfd.readouterr().err
    assert "cannot write the file" in said and "(--force)" not in said
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "tensorrt", "--option", "batsch=4"]) == 1
    assert cli.invoke(verb.main, [str(bundle_copy), "--option", "batch=4"]) == 1
    world.check_empty()


def test_the_command_bench(machine: Machine, bundle_copy: Path, capfd: Any, tmp_path: Path) -> None:
    world, out = machine("11.4"), tmp_path / "bench.json"
    words = [str(bundle_copy), "--backend", "tensorrt", "--batch", "2", "--seconds", "0", "--json", str(out)]
    assert cli.invoke(bench.main, words) == 0
    record = json.loads(out.read_text())
    assert record["engine"]["options"]["batch"] == record["baseline_engine"]["options"]["batch"] == "2"
    assert record["baseline"]["precision"] == "float16" and len(record["raw_ms"]) >= 10
    assert world.log.count("Event.record") >= 40 and capfd.readouterr().out
    world.check_empty()


def test_a_registry_without_its_digest_builds_anew(machine: Machine, bundle_copy: Path) -> None:
    world = machine()
    opened(bundle_copy).close()
    registry = load_registry(bundle_copy)
    (bundle_copy / "engines/registry.sha256").unlink()
    world.log.clear()
    opened(bundle_copy).close()
    assert "new Builder" in world.log
    save_registry(bundle_copy, Registry(engines=registry.engines))
    (record,) = load_registry(bundle_copy).engines
    assert record.sha256 == sha256_bytes((bundle_copy / record.path).read_bytes())

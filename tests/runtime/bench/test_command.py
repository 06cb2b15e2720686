"""The command as a whole: the record's keys, its options, its words."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console

from runtime import bench, cli, machine
from runtime.bench import contenders
from runtime.bench.command import counts
from runtime.bench.measure import measure
from runtime.bench.repeat import pooled
from runtime.bench.show import show
from runtime.bundle import Bundle
from runtime.telemetry import sampler
from runtime.telemetry.reading import Reading
from tests.conftest import REPO
from tests.runtime.bench.fakes import Fake, OnDevice
from tests.runtime.tiny import Spec, make_bundle

FIXED = {"backend", "batch", "threads", "median_ms", "p90_ms", "p99_ms", "raw_ms", "baseline", "speedup"}
FAST = ["--seconds", "0", "--warm-up", "0", "--energy", "0", "--no-bf16"]


def test_tiling() -> None:
    images = np.arange(3, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(contenders.tiled(images, 5)[:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(contenders.tiled(images, 1)[:, 0], [0])


def run(bundle: Path, tmp_path: Path, *more: str) -> dict[str, Any]:
    out = tmp_path / "bench.json"
    assert cli.invoke(bench.main, [str(bundle), *FAST, "--json", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_record(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tiny_bundle, tmp_path, "--batch", "2", "--threads", "1", "--seconds", "0.2")
    assert set(found) >= FIXED and {"median_ms", "raw_ms"} <= set(found["baseline"])
    assert (found["backend"], found["batch"], found["threads"]) == ("ort", 2, 1)
    assert found["speedup"] == pytest.approx(found["baseline"]["median_ms"] / found["median_ms"])
    assert found["median_ms"] == pytest.approx(float(np.median(found["raw_ms"])))
    assert found["median_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["machine"]["cpu"] and found["bundle"] and found["engine"]["threads"] == 1
    assert {"transfers", "spin_wait", "cuda_graph"} <= set(found["settings"])
    assert {"others", "stolen", "waited", "switches", "reasons"} <= set(found["disturbance"])
    assert "weights" not in found and "sweep" not in found and found["others"] == []
    said = capfd.readouterr().out
    assert "FP32 (ort)" in said and found["verdict"] in said
    for part in ("transfers: none", "CUDA graph: none", "spin-wait: on", "no copies", "telemetry: "):
        assert part in said


def test_random_weights_are_said_in_capitals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_bundle(tmp_path / "bundle", weights="random")
    assert run(root, tmp_path)["weights"] == "RANDOM WEIGHTS"
    assert "RANDOM WEIGHTS" in capfd.readouterr().out


def test_another_bundle_beside_it(tiny_bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", Spec(hidden=256, seed=1))
    found = run(tiny_bundle, tmp_path, "--compare", str(other))
    (beside,) = found["others"]
    assert beside["role"] == "other" and beside["speedup"] == pytest.approx(beside["median_ms"] / found["median_ms"])
    assert "of the other bundle" in found["verdict"]


def test_waiting_by_spinning_is_a_choice(tiny_bundle: Path, tmp_path: Path) -> None:
    found = run(tiny_bundle, tmp_path, "--no-spin-wait")
    assert found["settings"]["spin_wait"] == "off"
    assert found["baseline_engine"]["options"]["session.intra_op.allow_spinning"] == "0"


def test_a_gpus_options_are_refused_on_a_cpu(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(bench.main, [str(tiny_bundle), *FAST, "--cuda-graph"]) == 1
    assert "cuda_graph" in capfd.readouterr().err


def test_a_sweep(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tiny_bundle, tmp_path, "--batch", "1,3", "--threads", "1", "--streams", "1,2")
    rows = found["sweep"]
    assert [(row["batch"], row["streams"]) for row in rows] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert all(row["images_s"] > 0 and row["speedup"] > 0 and row["threads"] == 1 for row in rows)
    assert all(len(row["raw_ms"]) == len(row["baseline_raw_ms"]) >= 12 for row in rows)
    assert found["throughput"] == {} and "2 streams at once" in capfd.readouterr().out


def test_processes_are_pooled(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tiny_bundle, tmp_path, "--processes", "2", "--threads", "1", "--option", "spin_wait=off")
    assert len(found["processes"]) == found["settings"]["processes"] == 2
    assert len(found["raw_ms"]) == len(found["baseline"]["raw_ms"]) == 24
    assert found["speedup"] == pytest.approx(found["baseline"]["median_ms"] / found["median_ms"])
    assert found["rerun_spread"] >= 0 and found["settings"]["spin_wait"] == "off"
    assert found["settings"]["options"] == {"spin_wait": "off"}
    assert "speedup by process" in capfd.readouterr().out


def test_what_one_process_says_of_clocks_stands_in_the_pool(tiny_bundle: Path) -> None:
    one = measure(Bundle.open(tiny_bundle), seconds=0.0, energy_s=0.0, bf16=False)
    lines = ["clock cpu CPU fell from 4000 to 2000 MHz", "clocks were held down: nvml: software power cap"]
    found = pooled([one, {**one, "warnings": lines}])["warnings"]
    assert [line for line in found if line.startswith("clock")] == lines


@pytest.mark.parametrize("option", ["--seconds", "--warm-up", "--energy", "--sustained"])
def test_no_time_is_endless(tiny_bundle: Path, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(bench.main, [str(tiny_bundle), option, "inf"]) == 2
    assert option in capfd.readouterr().err


@pytest.mark.parametrize(("option", "most"), [("--threads", 1024), ("--streams", 64)])
def test_more_engines_or_threads_than_any_machine_runs_are_refused_at_once(
    option: str, most: int, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(bench.main, [str(tiny_bundle), option, f"1,{most + 1}"]) == 2
    assert f"{most + 1} is more than {most}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("more", [[], ["--batch", "1,2"]])
def test_the_record_outlives_the_reader_of_what_is_printed(tiny_bundle: Path, tmp_path: Path, more: list[str]) -> None:
    """``bench --json x.json | head -1``: the reader goes away after a line."""
    out = tmp_path / "x.json"
    words = [sys.executable, "-m", "runtime.bench", str(tiny_bundle), *FAST, *more, "--json", str(out)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, cwd=REPO, stdout=write, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(write)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert json.loads(out.read_text())["speedup"] > 0


def test_an_encoding_without_the_ellipsis_costs_no_record(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    words = [sys.executable, "-m", "runtime.bench", str(tiny_bundle), *FAST, "--batch", "1,2", "--json", str(out)]
    narrow = {**os.environ, "PYTHONIOENCODING": "iso-8859-1", "COLUMNS": "40"}
    done = subprocess.run(words, cwd=REPO, env=narrow, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert b"\\u2026" in done.stdout and out.exists()


def test_a_process_that_fails_is_told(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tiny_bundle), *FAST, "--processes", "2", "--option", "depth=3"]
    assert cli.invoke(bench.main, arguments) == 1
    assert "unknown option of the ort backend" in capfd.readouterr().err


def test_sustained(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tiny_bundle, tmp_path, "--sustained", "0.005")
    assert found["sustained"]["series"] and found["sustained"]["slowdown"] > 0
    assert "sustained for 0.005 min" in capfd.readouterr().out


def test_a_clock_that_falls_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = itertools.chain([3000.0, 2900.0], itertools.repeat(1500.0))

    class Hot:
        name = "cpu"

        def read(self) -> Reading:
            return Reading(clocks_mhz={"CPU": next(clocks)}, throttle=("hot",))

        def close(self) -> None: ...

    monkeypatch.setattr(sampler, "FINDERS", (Hot, lambda: "no power rails: none"))
    found = bench.measure(Bundle.open(tiny_bundle), seconds=0, bf16=False, interval_s=0.01, sustained_min=0.005)
    assert "clock cpu CPU fell from 3000 to 1500 MHz" in found["warnings"]
    assert "clocks were held down: cpu: hot" in found["warnings"]
    assert found["telemetry"]["absent"] == ["no power rails: none"] and found["telemetry"]["energy"] == {}


@pytest.mark.skipif(not machine.has_module("openvino"), reason="OpenVINO is not installed")
def test_bf16_beside_it(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(tiny_bundle), "--seconds", "0", "--warm-up", "0", "--json", str(tmp_path / "bench.json")]
    monkeypatch.setattr(machine, "fast_bf16", lambda: True)
    assert cli.invoke(bench.main, arguments) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [one["name"] for one in found["others"]] == ["BF16 (openvino)"] and found["absent"] == []
    assert found["bf16_engine"]["options"]["INFERENCE_PRECISION_HINT"] == "bf16"
    assert "BF16 (openvino)" in found["verdict"]


def test_why_there_is_no_bf16(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "fast_bf16", lambda: False)
    found = bench.measure(Bundle.open(tiny_bundle), bench.Plan(seconds=0, warm_up_s=0, energy_s=0))
    assert found["absent"] == [contenders.NO_BF16]
    monkeypatch.setattr(machine, "fast_bf16", lambda: True)
    monkeypatch.setattr(machine, "has_module", lambda name: False)
    assert contenders.bf16_absence("ort") == contenders.NO_OPENVINO
    assert contenders.bf16_absence("tensorrt") == ""


def test_an_engine_on_a_device(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for a GPU's engine: FP16 twin, phases, and its own word on transfers."""

    class Engine(OnDevice):
        def describe(self) -> dict[str, Any]:
            return {"cuda_graph": True, "timing": {"transfers": "on", "spin_wait": "off"}}

    asked: list[Any] = []

    class Gpu:
        twin_precision = "float16"
        twin_options = frozenset({"batch", "device"})

        @staticmethod
        def open(bundle: Bundle, **more: Any) -> Fake:
            asked.append(more["options"])
            return Engine("t", 0.004) if more["twin"] else Engine("e", 0.002)

    monkeypatch.setattr(contenders, "backend_class", lambda name: {"gpu": Gpu}[name])
    plan = bench.Plan(backend="gpu", seconds=0, warm_up_s=0, timing={"cuda_graph": "on"})
    options = {"depth": "3", "device": "1"}
    found = bench.measure(Bundle.open(tiny_bundle), plan, batch=2, options=options)
    shared = {"batch": "2", "device": "1", "cuda_graph": "on"}
    assert asked == [{**shared, "depth": "3"}, shared]
    assert found["baseline"]["precision"] == "float16"
    assert found["baseline"]["name"] == "FP16 (gpu)" and found["settings"]["cuda_graph"] == "on"
    assert set(found["phases"]) == {"h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms"}
    assert any("bound by the host" in line for line in found["warnings"])
    assert "x FP16 here" in found["verdict"]
    show(found, Console())
    said = capfd.readouterr().out
    assert "compute 2.000" in said and "transfers: on; CUDA graph: on; spin-wait: off" in said
    assert "no copies" not in said


@pytest.mark.parametrize(("text", "wanted"), [("1", (1,)), ("1,4,8", (1, 4, 8))])
def test_counts(text: str, wanted: tuple[int, ...]) -> None:
    assert counts(text) == wanted


@pytest.mark.parametrize("text", ["", "many", "0", "1,,2", "1,-1"])
def test_wrong_counts(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        counts(text)

"""Engines timed in processes of their own: they answer in turn, a broken one says why, and the table holds them all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benches import cpu_engines, engine_process
from benches.cpu_engines import drawn, int8_peak
from benches.engine_process import EngineProcess, interleave
from benches.engine_tables import engines
from benches.peers import ENGINES, LANES, OURS, openvino
from benches.record import kept_rows, write_result
from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from tests.conftest import NO_OPENVINO
from tests.toolchain.nets import noise, spec_of, vit, write_bundle

MODEL = "tiny"


def test_no_bias_is_0_and_no_layer_norm_is_1_by_chance() -> None:
    module = vit()
    weights, again = drawn(module, seed=1), drawn(module, seed=1)
    assert weights.keys() == module.state_dict().keys()
    for name, value in weights.items():
        assert (value == again[name]).all()
        if value.ndim == 1:
            assert abs(float(value.mean()) - (0 if name.endswith("bias") else 1)) < 0.1 and value.std() > 0.005
        else:
            assert (value == module.state_dict()[name]).all()


def test_workers_take_turns(tmp_path: Path) -> None:
    module = vit()
    bundle = write_bundle(module, spec_of(module), "w8a8", tmp_path / "bundle")
    names = ("ours on ONNX Runtime", "ONNX Runtime float32")
    with EngineProcess(names[0], MODEL, bundle, 2, 1) as mine, EngineProcess(names[1], MODEL, bundle, 2, 1) as peer:
        assert mine.started["shape"] == peer.started["shape"] == [2, 7]
        times = interleave([mine, peer], rounds=3, calls=2)
    assert list(times) == list(names)
    assert all(len(values) == 6 and min(values) > 0 for values in times.values())


def test_an_engine_that_cannot_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="an engine failed") as caught:
        EngineProcess("ours on ONNX Runtime", MODEL, tmp_path / "nothing", 1, 1)
    assert "exit code 1" in caught.value.why


def test_a_fresh_checkout_has_no_folder_for_the_log_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "WORK", tmp_path / "build/benches")
    with pytest.raises(IntvitError, match="an engine failed"):
        EngineProcess("ours on ONNX Runtime", MODEL, tmp_path / "nothing", 1, 1)
    assert "Error" in (tmp_path / "build/benches/cpu_engines.log").read_text()


def test_a_network_is_built_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    measured: list[tuple[Path, str, int]] = []

    def build(model: str, scheme: str) -> Path:
        built.append(model)
        return tmp_path / model

    def measure(bundle: Path, model: str, scheme: str, batch: int, threads: int, *_: Any) -> dict[str, Any]:
        measured.append((bundle, model, batch))
        return {"model": model, "scheme": scheme, "batch": batch, "threads": threads, "median_ms": {}}

    monkeypatch.setattr(cpu_engines, "kept_rows", partial(kept_rows, results=tmp_path))
    monkeypatch.setattr(cpu_engines, "write_result", partial(write_result, results=tmp_path))
    monkeypatch.setattr(cpu_engines, "build", build)
    monkeypatch.setattr(cpu_engines, "measure", measure)
    monkeypatch.setattr(cpu_engines, "int8_peak", lambda threads: 1.0)
    options = ["--models", "deit_t,deit_s", "--batches", "1,8", "--threads", "2"]
    assert cli.invoke(cpu_engines.main, options) == 0
    assert built == ["deit_t", "deit_s"]
    assert measured == [(tmp_path / model, model, batch) for model in built for batch in (1, 8)]
    assert cli.invoke(cpu_engines.main, options) == 0
    assert len(built) == 2 and len(measured) == 4  # every row is there already: nothing is built


def test_the_peak_is_a_plausible_figure() -> None:
    assert 0.1 < int8_peak(1, seconds=0.05) < 1e5


def test_ours_are_told_from_the_peers() -> None:
    assert 0 < len(OURS) < len(ENGINES)
    assert all("," not in name for name in ENGINES)  # they are chosen by a comma-separated list


@pytest.mark.parametrize(("batch", "threads", "left_out"), [(1, 2, True), (4, 1, True), (3, 2, True), (4, 2, False)])
def test_lanes_of_the_peers_where_a_batch_can_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, threads: int, left_out: bool
) -> None:
    module = vit()
    bundle = write_bundle(module, spec_of(module), "w8a8", tmp_path / "bundle")
    asked = list[str]()

    class Worker:
        def __init__(self, engine: str, *_: object) -> None:
            self.engine = engine
            asked.append(engine)

        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None: ...

        def run(self, calls: int) -> list[float]:
            return [10.0 if self.engine in OURS else 8.0 if self.engine in LANES else 20.0] * calls

    monkeypatch.setattr(cpu_engines, "EngineProcess", Worker)
    row = cpu_engines.measure(bundle, MODEL, "w8a8", batch, threads, 2, 1, list(ENGINES))
    assert set(ENGINES) - set(asked) == (set(LANES) if left_out else set())
    assert row["best_ratio_as_documented"] == 0.5
    assert row["best_ratio"] == (0.5 if left_out else 1.25)


def test_peers_in_lanes_answer_as_they_do_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = vit()
    spec = spec_of(module)
    bundle = Bundle.open(write_bundle(module, spec, "w8a8", tmp_path / "bundle"))
    images = noise(spec, 12, seed=3).numpy()
    plain, shared = (openvino("f32", lanes=lanes)(bundle, MODEL, 2) for lanes in (False, True))
    for _ in range(2):
        assert np.allclose(shared(images), plain(images), rtol=1e-4, atol=1e-5)


def test_the_table_lists_every_engine() -> None:
    rows = [
        {
            "model": "deit_s",
            "scheme": "w8a8",
            "batch": batch,
            "threads": 2,
            "gmacs": 4.0 * batch,
            "median_ms": {"ours": 10.0 * batch, "peer": 20.0 * batch},
            "failed": {"broken": "it is"},
            "best_ratio": 0.75,
            "best_ratio_as_documented": 0.5,
        }
        for batch in (8, 1)
    ]
    record = {"rows": rows, "int8_peak_gmacs": 2000.0, "peers": {"openvino": "1.2"}}
    note, _, *table = engines(record).splitlines()
    assert "2 threads, w8a8" in note and "2000 G" in note and "openvino 1.2" in note
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["engine", "deit_s, batch 1", "deit_s, batch 8"]
    assert cells[2:] == [
        ["ours", "10.0", "80.0"],
        ["peer", "20.0", "160.0"],
        ["broken", "failed", "failed"],
        ["floor: its int8 products at the peak", "2.0", "16.0"],
        ["**our best / best other**", "**0.50**", "**0.50**"],
        ["**the same, others in lanes too**", "**0.75**", "**0.75**"],
    ]

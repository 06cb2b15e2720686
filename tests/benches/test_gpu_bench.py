"""The bench over a GPU, gone through on the CPU: the stand-in engine, what a row holds, its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benches import gpu_bench
from benches.gpu_bench import DTYPES, REPEATS, StandIn, contenders, measure
from benches.record import read_result, write_result
from benches.tables import render
from runtime.bench.loop import PHASES
from runtime.cli import invoke
from runtime.telemetry.reading import Reading
from runtime.telemetry.sampler import Sensors


class Card:
    """NVML's source, as far as the bench sees: 60 W and a counter that goes up by 6 J a reading."""

    name = "nvml"
    joules = 0.0

    def read(self) -> Reading:
        self.joules += 6
        clocks = {"SM": 1980.0, "memory": 2619.0}
        return Reading({"GPU": 60.0}, {"GPU": self.joules}, clocks, {"GPU": 41.0}, ("software power cap",))

    def close(self) -> None: ...


def stand_in(dtype: torch.dtype, batch: int = 3) -> StandIn:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    return StandIn(network, (3, 2, 2), 5, batch=batch, dtype=dtype, device="cpu")


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 1e-2)])
def test_the_stand_in_computes_the_network_and_tells_the_parts(dtype: torch.dtype, close: float) -> None:
    engine = stand_in(dtype)
    images = np.random.default_rng(0).standard_normal((3, 3, 2, 2)).astype(np.float32)
    logits, parts = engine.run_phased(images)
    torch.manual_seed(0)
    with torch.no_grad():
        right = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, right, atol=close)
    assert tuple(parts) == PHASES and all(value >= 0 for value in parts.values())
    assert parts["enqueue_ms"] <= parts["compute_ms"], "on the CPU the call itself is the work"
    again = engine.run(2 * images)
    assert not np.array_equal(again, logits), "an earlier answer must not change with the next call"
    assert engine.describe()["cuda_graph"] is False
    assert len(engine.bare_ms(4)) == 4
    engine.close()
    with pytest.raises(RuntimeError):
        engine.run(images)


def test_both_precisions_are_one_network(tmp_path: Path) -> None:
    half, single = contenders("vit_digits", 2, "cpu")
    assert [half.name, single.name] == [f"{name} (torch)" for name in DTYPES]
    assert [half.role, single.role] == ["engine", "baseline"]
    ours, right = half.engine.run(half.images), single.engine.run(single.images)
    assert 0 < np.abs(ours - right).max() < 0.05 * np.abs(right).max()


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return measure("vit_digits", 2, Sensors([Card()], []), seconds=0.1, device="cpu")


def test_a_row_has_the_runs_the_parts_and_the_telemetry(row: dict[str, Any]) -> None:
    assert len(row["ratios"]) == REPEATS and row["spread_percent"] >= 0
    assert list(row["contenders"]) == [f"{name} (torch)" for name in DTYPES]
    for one in row["contenders"].values():
        parts = one["phases"]
        assert sum(parts[name] for name in PHASES[:3]) + one["outside_ms"] == pytest.approx(one["median_ms"], rel=0.5)
        assert one["outside_ms"] > 0
        assert one["compute_over_bare"] == pytest.approx(parts["compute_ms"] / one["bare_ms"])
        assert len(one["raw_ms"].split()) >= 12
    watched = row["telemetry"]
    assert watched["power_w"]["nvml GPU"] > 0
    assert watched["clocks_mhz"] == {"nvml SM": [1980, 1980], "nvml memory": [2619, 2619]}
    assert watched["temperature_c"] == {"nvml GPU": 41}
    assert watched["throttled"] == ["nvml: software power cap"]
    assert row["energy"]["rails"] == ["nvml GPU"] and set(row["energy"]["by"]) == {"engine", "baseline"}


def test_the_record_fits_the_schema_and_has_a_table(row: dict[str, Any], tmp_path: Path) -> None:
    gpu = {"name": "A card", "sm": "90", "nvidia_smi": {"driver_version": "580.1"}}
    write_result("gpu_bench", {"gpu": gpu, "rows": [row]}, seeds=[0], results=tmp_path)
    lines = render("gpu_bench", tmp_path).splitlines()
    assert "A card, SM 90, driver 580.1." in lines
    first, second = lines[-2:]
    assert first.startswith("| vit_digits | 2 | FP16 |") and first.endswith("| 1980–1980 | 41 |")
    assert second.startswith("| vit_digits | 2 | FP32 |") and second.endswith("|  |  |  |  |")
    assert first.count("|") == second.count("|") == lines[-4].count("|")


def test_without_sensors_the_row_has_no_telemetry(tmp_path: Path) -> None:
    found = measure("vit_digits", 1, Sensors([], ["none"]), seconds=0.05, repeats=1, device="cpu")
    assert found["telemetry"] == {} and found["energy"] == {}
    gpu = {"name": "A card", "sm": "90", "nvidia_smi": {}}
    write_result("gpu_bench", {"gpu": gpu, "rows": [found]}, seeds=[0], results=tmp_path)
    assert render("gpu_bench", tmp_path).splitlines()[-2].endswith("| – | – | – |")


def test_what_is_written_is_kept_row_by_row(
    row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_third(model: str, batch: int, sensors: Sensors, **_: Any) -> dict[str, Any]:
        if batch == gpu_bench.BATCHES[2]:
            raise KeyboardInterrupt
        return row | {"model": model, "batch": batch}

    nothing: Callable[..., Any] = lambda *_: {"name": "A card"}  # noqa: E731
    for name, made in (("need_gpu", nothing), ("describe_gpu", nothing), ("measure", fail_at_the_third)):
        monkeypatch.setattr(gpu_bench, name, made)
    with pytest.raises(KeyboardInterrupt):
        gpu_bench.main("cuda", "deit_s", 0.1, tmp_path)
    found = read_result("gpu_bench", tmp_path)
    assert found is not None
    assert [one["batch"] for one in found["rows"]] == list(gpu_bench.BATCHES[:2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(gpu_bench.main, ["--results", str(tmp_path)]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

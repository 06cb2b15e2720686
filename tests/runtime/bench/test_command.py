"""Timing: percentiles by hand, fair turns, the record's keys, honest words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import bench, cli
from tests.runtime.tiny import make_bundle

FIXED = {"backend", "batch", "threads", "median_ms", "p90_ms", "p99_ms", "raw_ms", "baseline", "speedup"}


def test_percentile_by_trtexec_rule() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [bench.percentile(values, part) for part in (0.9, 0.95, 0.99)] == [90.0, 95.0, 99.0]
    assert bench.percentile([7.0], 0.99) == 7.0
    assert bench.percentile([1.0, 2.0, 3.0], 0.99) == 3.0
    assert bench.percentile([1.0, 2.0], 0.0) == 1.0


class _Fake:
    def __init__(self, log: list[str], name: str, seconds: float) -> None:
        self.log, self.label, self.seconds = log, name, seconds

    def run(self, images: Any) -> Any:
        self.log.append(self.label)
        time.sleep(self.seconds)
        return images


def test_turns_are_taken_and_their_order_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_UP_S", 0.0)
    log: list[str] = []
    mine, twin = bench.interleave(_Fake(log, "e", 0.001), _Fake(log, "t", 0.004), np.zeros(1), seconds=0.0)  # type: ignore[arg-type]
    block = bench.BLOCK + 1
    order = "".join(log[2:])
    assert order == "".join(letter * block for letter in "etteet")
    assert len(mine.raw_ms) == len(twin.raw_ms) == 3 * bench.BLOCK >= bench.MIN_CALLS
    assert 2 < twin.median_ms / mine.median_ms < 6


def test_tiling() -> None:
    images = np.arange(3, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(bench.tiled(images, 5)[:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(bench.tiled(images, 1)[:, 0], [0])


def test_the_record(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = [str(tiny_bundle), "--batch", "2", "--threads", "1", "--seconds", "0.2", "--json", str(out)]
    assert cli.invoke(bench.main, arguments) == 0
    found = json.loads(out.read_text())
    assert set(found) >= FIXED and {"median_ms", "raw_ms"} <= set(found["baseline"])
    assert (found["backend"], found["batch"], found["threads"]) == ("ort", 2, 1)
    assert found["speedup"] == pytest.approx(found["baseline"]["median_ms"] / found["median_ms"])
    assert found["median_ms"] == pytest.approx(float(np.median(found["raw_ms"])))
    assert found["median_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["machine"]["cpu"] and found["bundle"] and found["engine"]["threads"] == 1
    assert "weights" not in found
    assert "float32" in capfd.readouterr().out


def test_random_weights_are_said_in_capitals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, out = make_bundle(tmp_path / "bundle", weights="random"), tmp_path / "bench.json"
    assert cli.invoke(bench.main, [str(root), "--seconds", "0", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["weights"] == "RANDOM WEIGHTS"
    assert "RANDOM WEIGHTS" in capfd.readouterr().out


def test_slower_is_said_plainly() -> None:
    assert "slower than float32: do not deploy this for speed" in bench.verdict(0.5)
    assert "2.00x as fast" in bench.verdict(2.0)
    assert "no faster" in bench.verdict(1.01)

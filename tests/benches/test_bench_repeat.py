"""The bench of the bench, with a stand-in for the command line and a tiny bundle, and the table of its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benches import bench_repeat, cpu_latency
from benches.quality_tables import quality
from benches.record import RESULTS, read_result
from tests.runtime.tiny import make_bundle


class Verbs:
    """Builds a tiny bundle, and answers the bench with speedups in turn."""

    def __init__(self, speedups: Sequence[float]) -> None:
        self.speedups, self.arguments = list(speedups), list[list[str]]()

    def __call__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        options = dict(zip(arguments[::2], arguments[1::2], strict=False))
        if module == "toolchain.build":
            make_bundle(Path(options["--out"]))
            return 0
        self.arguments.append(list(arguments))
        ratio = self.speedups.pop(0)
        out = Path(arguments[arguments.index("--json") + 1])
        out.parent.mkdir(parents=True, exist_ok=True)
        quiet = {"others": 0.02, "waited": None, "switches": 30.0, "reasons": []}
        record = {"median_ms": 10.0, "raw_ms": [10.0] * 12, "baseline": {"median_ms": 10 * ratio}, "speedup": ratio}
        record |= {"others": [{"name": "BF16 (openvino)", "speedup": 1.1}], "disturbance": quiet, "verdict": "fine"}
        record["disturbed"] = [] if self.speedups else ["other processes kept 1.00 of 2 processor(s) busy"]
        out.write_text(json.dumps(record))
        return 0


def test_repeats_overhead_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_repeat, cpu_latency):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(bench_repeat, "CALLS", 50)
    verbs = Verbs([2.0, 2.1, 1.9, 2.5])
    found = bench_repeat.measure(1, 0.02, execute=verbs, results=tmp_path)
    assert [row["speedup"] for row in found["rows"]] == [2.0, 2.1, 1.9]
    assert found["spread_percent"] == pytest.approx(10.0)
    assert found["beside_a_hog"]["disturbed"] and len(verbs.arguments) == 4
    assert {name: one["turns"] >= 1 for name, one in found["overhead"].items()} == {
        "deit_s-w8a8": True,
        "vit_digits-w8a8": True,
    }
    assert found["memory"]["calls"] == 50
    assert json.loads((tmp_path / "bench_quality.json").read_text())["rows"] == found["rows"]
    table = quality(found)
    assert "2.100×" in table and "beside a busy process" in table and "10.0 % apart" in table
    assert "| 0.02 | – | 30 | no |" in table and "| yes |" in table


def test_what_was_measured_is_what_was_promised() -> None:
    """The committed record: repeated calls within 5 %, the loop within 2 % of a bare one, memory within 5 MB."""
    record = read_result("bench_quality", RESULTS)
    assert record is not None and len(record["rows"]) >= 3
    assert record["spread_percent"] < 5.0
    assert all(abs(one["overhead_percent"]) < 2.0 for one in record["overhead"].values())
    assert record["memory"]["calls"] >= 10_000 and record["memory"]["grown_mb"] < 5.0
    assert record["beside_a_hog"]["disturbed"]

"""Figures of the tables, from hand-made records."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.toolchain.report.pages import accuracy_record, bare_bundle, bench_record
from toolchain.report.gather import Measured, gather
from toolchain.report.page import timing
from toolchain.report.summary import Cell, floating, headline, heat_map, points


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return gather(bare_bundle(tmp_path_factory.mktemp("bare") / "b"))


def having(found: Measured, **records: list) -> Measured:
    return replace(found, by_kind={**found.by_kind, **records})


def test_a_slower_engine_is_called_slower(bare: Measured) -> None:
    rows = headline(having(bare, bench=[bench_record(median=6.0)]))
    assert next(row.ratio for row in rows if row.what.startswith("latency")) == "2.00× the time"


def test_energy_without_a_sensor_says_so(bare: Measured) -> None:
    record = bench_record()
    del record["telemetry"]
    row = next(row for row in headline(having(bare, bench=[record])) if row.what.startswith("energy"))
    assert (row.integer, row.missing) == ("–", "") and "no power sensor" in row.ratio


def test_energy_that_was_left_out_is_not_blamed_on_the_machine(bare: Measured) -> None:
    record = bench_record()
    record["telemetry"]["energy"] = {}
    row = next(row for row in headline(having(bare, bench=[record])) if row.what.startswith("energy"))
    assert "no power sensor" not in row.ratio and "--energy 0" in row.ratio


def test_every_measurement_has_a_row_of_its_own(bare: Measured) -> None:
    """Two bundles are compared by these texts: energy at batch 8 must not stand beside energy at batch 1."""
    half = bench_record() | {"settings": {"options": {"precision": "bf16", "cache_dir": "/tmp/x"}}}
    records = [bench_record(), bench_record() | {"batch": 8}, half]
    top1 = [accuracy_record(), accuracy_record(79.0) | {"options": {"precision": "bf16"}}]
    found = having(bare, bench=records, accuracy=top1)
    rows = [row.what for row in headline(found)]
    assert len(set(rows)) == len(rows)
    for start in ("latency", "energy"):
        assert sum(what.startswith(start) for what in rows) == 3
    assert any("ort precision=bf16, batch 1" in what for what in rows) and not any("cache_dir" in what for what in rows)
    assert [point.top1 for point in points([found])] == [80.0, 80.0, 79.0]


def test_a_twin_in_float16_is_called_so(bare: Measured) -> None:
    timed = bench_record()
    timed["baseline"]["precision"] = "float16"
    found = having(bare, bench=[timed], accuracy=[accuracy_record() | {"twin_precision": "float16"}])
    rows = {row.what.split(",")[0].split(" on ")[0]: row.floating for row in headline(found)}
    assert rows["latency"].endswith("ms (float16)") and rows["top-1"].endswith("% (float16)")
    assert (floating(found), floating(having(bare, bench=[bench_record()]))) == ("float", "float32")
    assert [name for name, _ in timing(timed, "x")["rows"]][:2] == ["integer engine", "float16"]
    assert "float16, median" in timing(timed, "x")["figure"] and "float32" not in timing(timed, "x")["figure"]


def test_failed_parity_is_not_hidden(bare: Measured) -> None:
    record = {"backend": "ort", "ok": False, "verdict": "engine parts", "rungs": []}
    row = next(row for row in headline(having(bare, ladder=[record])) if row.what.startswith("parity"))
    assert (row.integer, row.ratio) == ("FAILED", "engine parts")


def test_every_layer_and_block_is_in_the_heat_map(bare: Measured) -> None:
    rows, outside = heat_map(bare)
    assert [name for name, _ in rows] == ["blocks.0", "blocks.1"]
    assert all(len(cells) == 5 and all(cell.db is not None and cell.db > 5 for cell in cells) for _, cells in rows)
    assert [name for name, _ in outside] == ["patch_embed.proj", "head"]
    assert bare.network is not None
    assert rows[1][1][-1].db == bare.network["blocks"][1]["sqnr_db"]
    assert heat_map(replace(bare, network=None))[0][0][1][-1].db is None


@pytest.mark.parametrize(("db", "part"), [(None, 0.0), (0.0, 0.0), (10.0, 0.0), (30.0, 0.5), (50.0, 1.0), (200.0, 1.0)])
def test_heat(db: float | None, part: float) -> None:
    assert Cell(db).part == part


def test_points_join_latency_and_accuracy_of_one_backend(bare: Measured) -> None:
    batch8 = bench_record() | {"batch": 8, "median_ms": 8.0}
    other = accuracy_record(70.0) | {"backend": "openvino"}
    found = points([having(bare, bench=[bench_record(), batch8], accuracy=[accuracy_record(), other])])
    assert [(point.ms, point.top1) for point in found] == [(2.0, 80.0), (1.0, 80.0)]
    assert points([having(bare, bench=[bench_record()], accuracy=[other])]) == []


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """Where a bundle was measured there may be none."""
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['timm'] = None\n"
        "from toolchain.report.page import render\nprint('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=100)
    assert done.stdout == "ok\n", done.stderr

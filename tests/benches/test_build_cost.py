"""A build is measured from nothing, and what it says of itself becomes the row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benches import build_cost, tables
from benches.record import read_result
from runtime.errors import IntvitError

ASKED = {"scheme": "w4a8", "images": 128, "budget": "default"}


class Build:
    """Stands in for ``toolchain.build``; its second stage holds most memory."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[dict[str, str]] = []

    def __call__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        self.calls.append(options)
        out, store = Path(options["--out"]), Path(options["--cache"])
        assert module == "toolchain.build" and not store.exists()
        store.mkdir(parents=True)
        out.mkdir(parents=True)
        cost = {"images": {"seconds": 60.0, "peak_mib": 1024}, "lower": {"seconds": 6.0, "peak_mib": 512}}
        cost["calibrate"] = {"seconds": 180.0, "peak_mib": 3072, "steps_seconds": {"rounding": 90.0}}
        (out / "cost.json").write_text(json.dumps(cost))
        return self.code


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cost, "WORK", tmp_path / "work")


def test_a_row_is_what_the_build_says_of_itself(tmp_path: Path) -> None:
    build = Build()
    (row,) = build_cost.measure_all(["vit_b"], ASKED, execute=build, results=tmp_path)
    assert build.calls[0]["--checkpoint"] == "random" and build.calls[0]["--method"] == "procedural"
    assert (row["calibrate_seconds"], row["calibrate_mib"], row["steps_seconds"]) == (180.0, 3072, {"rounding": 90.0})
    assert row["wall_seconds"] >= 0 and row["weights"] == "random" and row["threads"] >= 1
    build_cost.measure_all(["vit_b"], ASKED, execute=build, results=tmp_path)
    assert len(build.calls) == 1
    build_cost.measure_all(["vit_b"], ASKED, force=True, execute=build, results=tmp_path)
    assert len(build.calls) == 2
    last = tables.render("build_cost", tmp_path).splitlines()[-1]
    assert last.startswith("| vit_b | random | w4a8 | procedural | 128 | default | ")
    assert last.endswith(" | 1.0 | 3.0 | 0.1 | 3.0 |")


def test_a_build_that_fails_leaves_no_row(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="exit code 2"):
        build_cost.measure_all(["vit_b"], ASKED, execute=Build(code=2), results=tmp_path)
    assert read_result(build_cost.NAME, tmp_path) is None

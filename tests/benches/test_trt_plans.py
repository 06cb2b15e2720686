"""The record of plans: a row is built once, and the table shows what was built. The plans themselves:
tests/toolchain/test_tensorrt_rtx.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benches import tables, trt_plans
from benches.record import read_result
from toolchain.targets.choices import TensorRtOptions

HALF = TensorRtOptions()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What was built, in place of building it."""
    made: list[tuple[str, str, str]] = []

    def rows_of(model: str, scheme: str, options: TensorRtOptions, capabilities: list[str]) -> Iterator[dict[str, Any]]:
        for sm in capabilities:
            made.append((model, scheme, sm))
            yield {
                "model": model,
                "weights": "random",
                "scheme": scheme,
                "precision": options.precision,
                "sm": sm,
                "graph_bytes": 2_000_000,
                "plan_bytes": 3_000_000,
                "findings": ["int8-attention"] if "attn8" in scheme else [],
            }

    monkeypatch.setattr(trt_plans, "rows_of", rows_of)
    return made


def test_every_row_is_saved_at_once_and_kept(built: list[tuple[str, str, str]], tmp_path: Path) -> None:
    trt_plans.build_all(["deit_s"], ["w8a8"], ["8.6"], HALF, results=tmp_path)
    rows = trt_plans.build_all(["deit_s"], ["w8a8", "float"], ["8.6", "12.0"], HALF, results=tmp_path)
    assert built == [("deit_s", scheme, sm) for scheme in ("w8a8", "float") for sm in ("8.6", "12.0")]
    record = read_result(trt_plans.NAME, tmp_path)
    assert record is not None and record["rows"] == rows and len(rows) == 4
    assert list(record["builder"]) == ["tensorrt-rtx"]
    trt_plans.build_all(["deit_s"], ["w8a8"], ["8.6"], HALF, force=True, results=tmp_path)
    assert len(built) == 5


def test_the_table(built: list[tuple[str, str, str]], tmp_path: Path) -> None:
    trt_plans.build_all(["deit_s"], ["w8a8", "w8a8+attn8", "float"], ["8.6", "12.0"], HALF, results=tmp_path)
    *_, head, ruler, first, second, third = tables.render("trt_plans", tmp_path).splitlines()
    assert head == "| model | scheme | compute type | graph MB | plan MB, SM 8.6 | plan MB, SM 12.0 | warnings |"
    assert ruler.count("|") == 8
    assert first == "| deit_s (random weights) | w8a8 | fp16 | 2.0 | 3.0 | 3.0 | none |"
    assert second.endswith("| `int8-attention` |")
    assert third.startswith("| deit_s (random weights) | float twin |")

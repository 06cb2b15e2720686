"""The bench of the inter-head similarity loss: both forms agree, and a row says what was measured."""

from __future__ import annotations

import pytest
import torch

from benches import head_similarity as bench


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(dtype: str) -> bench.Case:
    return bench.Case("tiny", layers=2, heads=3, width=8, tokens=11, batch=2, dtype=dtype, threads=1)


def test_forms_agree_and_the_row_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def weigh(case: bench.Case, form: str, device: str) -> float:
        asked.append((form, device))
        return {"naive": 80.0, "ours": 5.0}[form]

    monkeypatch.setattr(bench, "probe", weigh)
    row = bench.measure(tiny("float32"), "cpu", repeats=3)
    assert asked == [("naive", "cpu"), ("ours", "cpu")]
    assert row["loss_difference"] < 1e-5 and row["gradient_difference"] < 1e-4
    assert row["memory_ratio"] == 16.0 and row["network"] == "tiny"
    for form in bench.FORMS:
        assert len(row[f"{form}_raw_ms"].split()) == 3
    low_precision = bench.measure(tiny("bfloat16"), "cpu", repeats=1)
    assert low_precision["loss_difference"] < 1e-5 and low_precision["gradient_difference"] < 1e-2


def test_memory_is_that_of_the_process() -> None:
    assert 2**20 < bench.process_memory("VmRSS") <= bench.process_memory("VmHWM")
    assert bench.peak_memory(tiny("float32"), "ours", "cpu") >= 0

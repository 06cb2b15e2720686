"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from toolchain import cost
from toolchain.cost import Meter, peak_mib


def test_seconds_and_peak_are_those_of_the_work() -> None:
    with Meter() as before:
        pass
    with Meter() as meter:
        block = np.ones(100 * 2**20, np.uint8)
        time.sleep(0.05)
        del block
    assert 0.05 <= meter.cost["seconds"] < 5
    assert meter.cost["peak_mib"] >= before.cost["peak_mib"] + 80


@pytest.mark.skipif(not cost.RESET.exists(), reason="this kernel cannot start the peak again")
def test_the_peak_of_earlier_work_is_forgotten() -> None:
    block = np.ones(200 * 2**20, np.uint8)
    high = peak_mib()
    del block
    with Meter() as meter:
        pass
    assert meter.cost["peak_mib"] < high - 100


def test_without_the_kernels_counters_there_is_still_a_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "STATUS", tmp_path / "none")
    monkeypatch.setattr(cost, "RESET", tmp_path / "no/such")
    with Meter() as meter:
        pass
    assert meter.cost["peak_mib"] > 10


def test_a_failure_passes_through() -> None:
    with pytest.raises(KeyError), Meter() as meter:
        raise KeyError("x")
    assert meter.cost["seconds"] >= 0

"""Throttling over time, with a clock and an engine that obey."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.bench import sustained
from tests.runtime.bench.fakes import Fake, contender


class Heating(Fake):
    """Its call moves a clock by 10 ms at first and ``factor`` times as much at the end of ten minutes."""

    def __init__(self, factor: float) -> None:
        super().__init__("h", 0.0)
        self.now, self.factor = 0.0, factor

    def run(self, images: Any) -> Any:
        self.now += 0.01 * (1 + (self.factor - 1) * min(1.0, self.now / 600))


@pytest.mark.parametrize(("factor", "throttles"), [(1.0, False), (1.02, False), (1.5, True)])
def test_first_against_last(factor: float, throttles: bool) -> None:
    engine = Heating(factor)
    windows = sustained.run(contender(engine), 10.0, clock=lambda: engine.now)
    record = sustained.record(windows, 10.0)
    assert len(windows) == pytest.approx(sustained.WINDOWS, abs=1)
    assert [row[0] for row in record["series"]] == sorted(row[0] for row in record["series"])
    assert record["first_ms"] == pytest.approx(10.0, rel=0.05)
    assert record["slowdown"] == pytest.approx(factor, rel=0.05)
    assert ("it throttles" in sustained.sentence(record)) is throttles


def test_a_short_run_has_windows_too() -> None:
    windows = sustained.run(contender(Fake("e", 0.001)), 0.005)
    assert 2 <= len(windows) <= 13 and all(window.calls >= 1 for window in windows)
    assert len(sustained.run(contender(Fake("e", 0.001)), 1e-9)) == 1

"""trtexec's figures, by hand and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bench import statistics

TIMES = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=200)


def test_percentile_by_trtexec_rule() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [statistics.percentile(values, part) for part in (0.9, 0.95, 0.99)] == [90.0, 95.0, 99.0]
    assert statistics.percentile([7.0], 0.99) == 7.0
    assert statistics.percentile([1.0, 2.0, 3.0], 0.99) == 3.0
    assert statistics.percentile([1.0, 2.0], 0.0) == 1.0


@given(TIMES, st.integers(1, 64))
def test_summary(times: list[float], batch: int) -> None:
    found = statistics.summary(times, batch)
    assert found["raw_ms"] == times
    assert found["min_ms"] <= found["median_ms"] <= found["max_ms"]
    assert found["p90_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["p99_ms"] in times and found["variation"] >= 0
    assert found["images_s"] == pytest.approx(1e3 * batch / found["mean_ms"])


def test_spread() -> None:
    assert statistics.relative_spread([2.0, 2.1, 1.9]) == pytest.approx(0.1)
    assert statistics.relative_spread([5.0]) == 0.0
    assert statistics.variation([1.0, 3.0]) == pytest.approx(0.5)

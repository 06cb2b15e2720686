"""What a list of times says: trtexec's percentiles, its coefficient of variation, throughput."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def percentile(values: Sequence[float], part: float) -> float:
    """The value at ``part`` (0..1) by trtexec's rule: sorted, element n - 1 - floor((1 - part) n), no interpolation.

    Source: TensorRT 11.1, samples/common/sampleReporting.cpp.
    """
    ordered = sorted(values)
    excluded = math.floor((1.0 - part) * len(ordered) + 1e-9)  # 1.0 - 0.9 is a little less than 0.1
    return ordered[max(0, len(ordered) - 1 - excluded)]


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return statistics.pstdev(values) / statistics.fmean(values)


def summary(raw_ms: Sequence[float], batch: int = 1) -> dict[str, Any]:
    """The figures of one list of times, in milliseconds a call of ``batch`` images; at least one time.

    Keys: median_ms, mean_ms, min_ms, max_ms, p90_ms, p95_ms, p99_ms (:func:`percentile`), variation
    (:func:`variation`), images_s (images a second while nothing but these calls ran), raw_ms (every time, in order).
    """
    return {
        "median_ms": statistics.median(raw_ms),
        "mean_ms": statistics.fmean(raw_ms),
        "min_ms": min(raw_ms),
        "max_ms": max(raw_ms),
        "p90_ms": percentile(raw_ms, 0.90),
        "p95_ms": percentile(raw_ms, 0.95),
        "p99_ms": percentile(raw_ms, 0.99),
        "variation": variation(raw_ms),
        "images_s": 1e3 * batch * len(raw_ms) / math.fsum(raw_ms),
        "raw_ms": list(raw_ms),
    }


def relative_spread(values: Sequence[float]) -> float:
    """How far apart the values lie: (largest - smallest) / median. All positive."""
    return (max(values) - min(values)) / statistics.median(values)

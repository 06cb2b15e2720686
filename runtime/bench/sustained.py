"""Minutes of the same call: does the machine throttle? A time series of medians, the first against the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from runtime.bench.contenders import Contender
from runtime.progress import task

WINDOWS = 60
THROTTLES = 1.05


@dataclass(frozen=True)
class Window:
    """A stretch of the run: ``start_s`` seconds after its begin, ``calls`` calls, their median in milliseconds."""

    start_s: float
    calls: int
    median_ms: float


def run(contender: Contender, minutes: float, clock: Callable[[], float] = time.perf_counter) -> list[Window]:
    """Call the engine without a pause for ``minutes``, in at most :data:`WINDOWS` windows of a second or more each.

    Shorter runs have windows of a twelfth of their length. A window holds one call at least.
    """
    total = 60.0 * minutes
    length = max(min(1.0, total / 12), total / WINDOWS)
    windows: list[Window] = []
    engine, images = contender.engine, contender.images
    engine.run(images)
    with task("sustained", max(1, round(total))) as advance:
        begin, shown = clock(), 0
        while not windows or clock() - begin < total:
            start, times = clock(), list[float]()
            while not times or clock() - start < length:
                before = clock()
                engine.run(images)
                times.append(1e3 * (clock() - before))
            windows.append(Window(start - begin, len(times), median(times)))
            done = min(round(total), int(clock() - begin))
            if done > shown:
                advance(done - shown)
                shown = done
        advance(max(0, max(1, round(total)) - shown))
    return windows


def record(windows: list[Window], minutes: float) -> dict[str, Any]:
    """The series as JSON values: windows, first_ms and last_ms (medians of the first and the last twelfth of the
    windows), slowdown (last over first)."""
    edge = max(1, len(windows) // 12)
    first = median(window.median_ms for window in windows[:edge])
    last = median(window.median_ms for window in windows[-edge:])
    series = [[round(window.start_s, 3), window.calls, window.median_ms] for window in windows]
    return {"minutes": minutes, "first_ms": first, "last_ms": last, "slowdown": last / first, "series": series}


def sentence(found: dict[str, Any]) -> str:
    """What the series says."""
    begin = f"sustained for {found['minutes']:g} min: {found['first_ms']:.3f} ms at first, {found['last_ms']:.3f} ms"
    if found["slowdown"] > THROTTLES:
        return f"{begin} at the end, {found['slowdown']:.2f}x: it throttles; count on the last figure."
    return f"{begin} at the end: no throttling."

"""Measure benches/results/bench_quality.json: how far ``runtime.bench`` itself can be trusted.

Three things: whether repeated calls agree on the ratio (and what a busy process beside one does to it), what the timed
loop adds to a call, and what ten thousand calls leave in memory. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import typer

from benches.cpu_latency import build
from benches.record import RESULTS, write_result
from benches.verbs import WORK, Call, call, must, read_json
from runtime import machine
from runtime.backends.ort import OrtEngine
from runtime.bench.contenders import Contender, tiled
from runtime.bench.loop import BLOCK, Timing, _turn, warm_up
from runtime.bench.statistics import relative_spread
from runtime.bundle import Bundle
from runtime.cli import run

NAME = "bench_quality"
SCHEME = "w8a8"
REPEATS = 3
CALLS = 10_000
SEED = 0


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """``count`` processes that never pause, while the block runs."""
    made = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in made:
            hog.kill()
            hog.wait()


def timed(bundle: Path, threads: int, seconds: float, execute: Call) -> dict[str, Any]:
    """One call of ``python -m runtime.bench``: its medians, speedups, counters and reasons of doubt."""
    out = WORK / NAME / "bench.json"
    arguments = [str(bundle), "--threads", str(threads), "--seconds", str(seconds), "--json", str(out)]
    must(execute("runtime.bench", arguments, {}), "runtime.bench", arguments)
    found = read_json(out, ["median_ms", "baseline", "speedup", "others", "disturbance", "disturbed", "verdict"])
    return {
        "engine_ms": round(found["median_ms"], 4),
        "float_ms": round(found["baseline"]["median_ms"], 4),
        "speedup": round(found["speedup"], 4),
        "others": {one["name"]: round(one["speedup"], 4) for one in found["others"]},
        "calls": len(found["raw_ms"]),
        "disturbance": found["disturbance"],
        "disturbed": found["disturbed"],
        "verdict": found["verdict"],
    }


def overhead(bundle: Path, threads: int, seconds: float) -> dict[str, Any]:
    """What the loop adds: the mean of a turn's calls beside the mean of as many bare calls of the same session.

    The bare loop has one clock around all its calls and nothing inside but ``InferenceSession.run``. Turns alternate.
    """
    opened = Bundle.open(bundle)
    images = tiled(opened.golden().images, 1)
    engine = OrtEngine.open(opened, threads=threads)
    contender, timing, bare = Contender("engine", bundle.name, engine, images), Timing(), list[float]()
    session, (feed, output) = engine.session(lane=threads == 1), engine._names
    warm_up([contender], 1.0)
    start = time.perf_counter()
    while not bare or time.perf_counter() - start < seconds:
        _turn(contender, timing)
        session.run([output], {feed: images})
        begun = time.perf_counter_ns()
        for _ in range(BLOCK):
            session.run([output], {feed: images})
        bare.append((time.perf_counter_ns() - begun) / 1e6 / BLOCK)
    engine.close()
    ours = [fmean(block) for block in timing.blocks]
    return {
        "bare_ms": round(median(bare), 5),
        "measured_ms": round(median(ours), 5),
        "overhead_percent": round(100 * (median(ours) / median(bare) - 1), 3),
        "turns": len(bare),
    }


def growth(bundle: Path, calls: int) -> dict[str, Any]:
    """Resident memory of this process before and after ``calls`` timed calls, in MB."""
    opened = Bundle.open(bundle)
    engine = OrtEngine.open(opened, threads=1)
    size = opened.manifest.preprocess
    images = np.zeros((1, size.channels, size.height, size.width), np.float32)
    contender, timing = Contender("engine", bundle.name, engine, images), Timing()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    warm_up([contender], 1.0)
    before = resident()
    for _ in range(calls // (BLOCK + 1)):
        _turn(contender, timing)
    after = resident()
    engine.close()
    return {
        "calls": calls,
        "before_mb": round(before, 2),
        "after_mb": round(after, 2),
        "grown_mb": round(after - before, 2),
    }


def measure(threads: int, seconds: float, *, execute: Call = call, results: Path = RESULTS) -> dict[str, Any]:
    """All of it, saved at the end; the bundles are built first."""
    large, small = build("deit_s", SCHEME, execute), build("vit_digits", SCHEME, execute)
    repeats = [timed(large, threads, seconds, execute) for _ in range(REPEATS)]
    with hogs(1):
        beside = timed(large, threads, seconds / 2, execute)
    payload = {
        "rows": repeats,
        "threads": threads,
        "spread_percent": round(100 * relative_spread([row["speedup"] for row in repeats]), 2),
        "beside_a_hog": beside,
        "overhead": {path.name: overhead(path, threads, seconds / 2) for path in (large, small)},
        "memory": growth(small, CALLS),
        "packages": {"openvino": machine.version_of("openvino")},
    }
    return write_result(NAME, payload, seeds=[SEED], results=results)


def main(
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every engine.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="How long each call measures.")] = 20.0,
) -> None:
    """Measure the bench: repeated calls, overhead, memory."""
    found = measure(threads, seconds)
    ratios = ", ".join(f"{row['speedup']:.3f}x" for row in found["rows"])
    print(f"speedups {ratios}: spread {found['spread_percent']} %")
    print(f"beside a hog: {found['beside_a_hog']['disturbed']}")
    print(f"overhead: {found['overhead']}; memory: {found['memory']}")


if __name__ == "__main__":
    run(main)

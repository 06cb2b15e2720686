"""``python -m runtime.bench BUNDLE``: how long one call takes, integer engine against float twin, side by side.

Both models live in one process and take turns in short blocks, so that whatever slows the machine down (heat, a
neighbour, a clock change) slows both. Each time is one call, input array to logits array.
"""

from __future__ import annotations

import datetime
import gc
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from runtime import cli, machine
from runtime.backends.base import Engine, Images, backend_class, open_pair
from runtime.bundle import Bundle
from runtime.files import atomic_write_json
from runtime.progress import task

BLOCK = 4
MIN_CALLS = 12
GPU_ROUNDS = 10
WARM_UP_S = 0.3
_UNSTABLE = 0.025


def percentile(values: Sequence[float], part: float) -> float:
    """The value at ``part`` (0..1) by trtexec's rule: sorted, element n - 1 - floor((1 - part) n), no interpolation."""
    ordered = sorted(values)
    excluded = math.floor((1.0 - part) * len(ordered) + 1e-9)  # 1.0 - 0.9 is a little less than 0.1
    return ordered[max(0, len(ordered) - 1 - excluded)]


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return statistics.pstdev(values) / statistics.fmean(values)


def tiled(images: Images, batch: int) -> Images:
    """``batch`` images, the given ones repeated: float32 (batch, C, H, W)."""
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every timed call, in order."""

    raw_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The middle time, or the mean of the two middle ones."""
        return statistics.median(self.raw_ms)


def _block(engine: Engine, images: Images, out: list[float]) -> None:
    engine.run(images)  # untimed: its weights come back into the caches the other model has just filled
    for _ in range(BLOCK):
        start = time.perf_counter_ns()
        engine.run(images)
        out.append((time.perf_counter_ns() - start) / 1e6)


def interleave(engine: Engine, twin: Engine, images: Images, *, seconds: float) -> tuple[Timing, Timing]:
    """Time two engines on the same images, taking turns in blocks of :data:`BLOCK`, the order swapped every round.

    Runs for about ``seconds`` and at least :data:`MIN_CALLS` calls each, after a warm-up.
    """
    warm = time.perf_counter()
    while True:
        twin.run(images)
        engine.run(images)
        if time.perf_counter() - warm >= WARM_UP_S:
            break
    times: tuple[list[float], list[float]] = ([], [])
    pair, swap = [(engine, times[0]), (twin, times[1])], False
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with task("bench", max(1, round(seconds))) as advance:
            start, shown = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < seconds or len(times[0]) < MIN_CALLS:
                if int(spent) > shown:
                    advance(int(spent) - shown)
                    shown = int(spent)
                for model, out in reversed(pair) if swap else pair:
                    _block(model, images, out)
                swap = not swap
            advance(max(0, round(seconds) - shown))
    finally:
        if collecting:
            gc.enable()
    return Timing(tuple(times[0])), Timing(tuple(times[1]))


def gpu_times(engine: Engine, twin: Engine, images: Images) -> dict[str, Any]:
    """``gpu``: milliseconds between two events on the GPU, copies left out, the two engines taking turns.

    Nothing for engines without ``gpu_ms``, those of a CPU.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(GPU_ROUNDS):
        for model, out in zip((engine, twin), times, strict=True):
            clock = getattr(model, "gpu_ms", None)
            if clock is None:
                return {}
            out += clock(images, BLOCK)
    medians = [statistics.median(values) for values in times]
    baseline = {"median_ms": medians[1], "raw_ms": times[1]}
    return {"gpu": {"median_ms": medians[0], "raw_ms": times[0], "baseline": baseline}}


def measure(
    bundle: Bundle,
    *,
    backend: str = "ort",
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 5.0,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time the bundle's engine and its twin; the result is the JSON record.

    Fixed keys: backend, batch, threads, median_ms, p90_ms, p99_ms, raw_ms, baseline {precision, median_ms, raw_ms},
    speedup (baseline median / engine median). Times are milliseconds a call of ``batch`` images. ``options`` go to the
    engine; the twin stays float32, or float16 on a GPU, where ``gpu`` has the times between events. An engine that is
    built for one batch size is built for this one.

    Raises:
        IntvitError: unknown backend, or a graph that does not load or run.
    """
    used = threads or machine.available_cores()
    images = tiled(bundle.golden().images, batch)
    if "batch" in backend_class(backend).twin_options:
        options = {"batch": str(batch), **(options or {})}
    engine, twin = open_pair(bundle, backend, threads=used, options=options)
    try:
        mine, baseline = interleave(engine, twin, images, seconds=seconds)
        about = {"engine": engine.describe(), "baseline_engine": twin.describe()} | gpu_times(engine, twin, images)
    finally:
        engine.close()
        twin.close()
    record: dict[str, Any] = {
        "backend": backend,
        "batch": batch,
        "threads": used,
        "median_ms": mine.median_ms,
        "p90_ms": percentile(mine.raw_ms, 0.90),
        "p99_ms": percentile(mine.raw_ms, 0.99),
        "raw_ms": list(mine.raw_ms),
        "baseline": {
            "precision": about["baseline_engine"].get("float", "float32"),
            "median_ms": baseline.median_ms,
            "p90_ms": percentile(baseline.raw_ms, 0.90),
            "p99_ms": percentile(baseline.raw_ms, 0.99),
            "raw_ms": list(baseline.raw_ms),
            "variation": variation(baseline.raw_ms),
        },
        "speedup": baseline.median_ms / mine.median_ms,
        "variation": variation(mine.raw_ms),
        "model": bundle.manifest.model,
        "scheme": bundle.manifest.scheme,
        "bundle": bundle.sha256,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        **about,
    }
    if bundle.manifest.weights == "random":
        record["weights"] = "RANDOM WEIGHTS"
    return record


def verdict(speedup: float, precision: str = "float32") -> str:
    """One sentence a person can act on; ``speedup`` is the float twin's time over the integer engine's."""
    if speedup < 1.0:
        return f"{1 / speedup:.2f}x the time of {precision}: slower than {precision}: do not deploy this for speed."
    if speedup < 1.05:
        return f"{speedup:.2f}x {precision}: no faster in practice; the gain is the smaller file."
    return f"{speedup:.2f}x as fast as {precision} on this machine, at this batch and thread count."


def show(record: dict[str, Any], console: Console) -> None:
    """Print the times, the verdict and every reason to doubt them."""
    heading = f"{record['model']} {record['scheme']}, batch {record['batch']}, {record['threads']} thread(s), ms a call"
    table, precision = Table(title=heading), record["baseline"].get("precision", "float32")
    for column in ("", "median", "p90", "p99", "calls", "variation"):
        table.add_column(column, justify="right" if column else "left")
    for name, part in ((f"integer ({record['backend']})", record), (f"{precision} twin", record["baseline"])):
        times = (f"{part[key]:.3f}" for key in ("median_ms", "p90_ms", "p99_ms"))
        table.add_row(name, *times, str(len(part["raw_ms"])), f"{100 * part['variation']:.1f} %")
    console.print(table)
    console.print(verdict(record["speedup"], precision), style="bold", highlight=False, soft_wrap=True)
    if gpu := record.get("gpu"):
        both = f"{gpu['median_ms']:.3f} ms against {gpu['baseline']['median_ms']:.3f}"
        console.print(f"on the GPU alone, copies left out: {both} (medians)", highlight=False, soft_wrap=True)
    if record.get("weights"):
        console.print(f"{record['weights']}: the times are real, the predictions mean nothing", style="bold red")
    if max(record["variation"], record["baseline"]["variation"]) > _UNSTABLE:
        console.print("the times vary by more than 2.5 %: the machine is shared or throttles; trust the ratio")


def main(
    bundle: cli.BundleArgument,
    backend: cli.BackendOption = "ort",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a call.")] = 1,
    threads: cli.ThreadsOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="How long to measure.")] = 5.0,
    option: cli.EngineOption = None,
    json: cli.JsonOption = None,
    debug: cli.DebugOption = False,
) -> None:
    """Time the integer engine interleaved with its float twin and say which is faster."""
    options = cli.parse_options(option)
    opened = Bundle.open(bundle)
    record = measure(opened, backend=backend, batch=batch, threads=threads, seconds=seconds, options=options)
    show(record, Console())
    if json is not None:
        atomic_write_json(json, record)


if __name__ == "__main__":
    cli.run(main)

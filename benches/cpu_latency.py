"""Measure benches/results/cpu_latency.json: integer engine and float32 twin, interleaved, by model, scheme and batch.

The DeiT models carry random weights: a latency does not depend on their values, and none has to be fetched. A row is
saved as soon as it is measured; a later run keeps it unless ``--force`` is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.record import RESULTS, kept_rows, put_row, write_result
from benches.verbs import WORK, Call, call, chosen, must, read_json
from runtime.cli import run

NAME = "cpu_latency"
MODELS = ("vit_digits", "deit_t", "deit_s", "deit_b")
SCHEMES = ("w8a8", "w4a8")
BATCHES = (1, 8)
KEY = ("model", "scheme", "batch", "threads")
KEPT_CALLS = 300
SEED = 0


def raw(times: Sequence[float]) -> str:
    """Every call's milliseconds in order on one line; of more than KEPT_CALLS an even spread."""
    step = max(1, -(-len(times) // KEPT_CALLS))
    return " ".join(f"{value:.4g}" for value in times[::step])


def build(model: str, scheme: str, execute: Call) -> Path:
    """Build the bundle to time; the stages already done are taken from the cache."""
    out = WORK / NAME / f"{model}-{scheme}"
    arguments = ["--model", model, "--bits", scheme, "--method", "noise", "--images", "4", "--budget", "fast"]
    arguments += ["--seed", str(SEED), "--out", str(out)]
    if model != "vit_digits":
        arguments += ["--checkpoint", "random"]
    must(execute("toolchain.build", arguments, {}), "toolchain.build", arguments)
    return out


def measure(bundle: Path, model: str, scheme: str, batch: int, threads: int, seconds: float, execute: Call) -> Any:
    """One row: medians of the engine and of its twin, with spread and raw times in milliseconds a call."""
    out = WORK / NAME / f"{bundle.name}-b{batch}.json"
    arguments = [str(bundle), "--batch", str(batch), "--threads", str(threads), "--seconds", str(seconds)]
    arguments += ["--json", str(out)]
    must(execute("runtime.bench", arguments, {}), "runtime.bench", arguments)
    timed = read_json(out, ["median_ms", "p90_ms", "p99_ms", "raw_ms", "baseline", "speedup"])
    return {
        "model": model,
        "scheme": scheme,
        "batch": batch,
        "threads": threads,
        "float_ms": round(timed["baseline"]["median_ms"], 4),
        "engine_ms": round(timed["median_ms"], 4),
        "speedup": round(timed["speedup"], 3),
        "weights": read_json(bundle / "manifest.json", ["weights"])["weights"],
        "engine_p90_ms": round(timed["p90_ms"], 4),
        "engine_p99_ms": round(timed["p99_ms"], 4),
        "calls": len(timed["raw_ms"]),
        "engine_raw_ms": raw(timed["raw_ms"]),
        "float_raw_ms": raw(timed["baseline"]["raw_ms"]),
    }


def measure_all(
    models: Sequence[str],
    schemes: Sequence[str],
    *,
    threads: int = 2,
    seconds: float = 10.0,
    force: bool = False,
    execute: Call = call,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Measure the rows that are missing, all of the selection with ``force``, and save after each."""
    rows, have = kept_rows(NAME, KEY, force, results)
    for model in models:
        for scheme in schemes:
            batches = [batch for batch in BATCHES if (model, scheme, batch, threads) not in have]
            bundle = build(model, scheme, execute) if batches else None
            for batch in batches:
                assert bundle is not None
                row = measure(bundle, model, scheme, batch, threads, seconds, execute)
                rows = put_row(rows, row, KEY)
                write_result(NAME, {"rows": rows}, seeds=[SEED], results=results)
    return rows


def main(
    models: Annotated[str, typer.Option("--models", help="Comma-separated; default: " + ",".join(MODELS))] = "",
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated; default: " + ",".join(SCHEMES))] = "",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of both engines.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="How long to time each row.")] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Time integer engines beside their float32 twins on this CPU."""
    rows = measure_all(
        chosen(models, MODELS, "--models"),
        chosen(schemes, SCHEMES, "--schemes"),
        threads=threads,
        seconds=seconds,
        force=force,
    )
    print(f"{RESULTS / NAME}.json: {len(rows)} rows")


if __name__ == "__main__":
    run(main)

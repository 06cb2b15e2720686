"""Measure benches/results/accuracy_throughput.json: is decoding hidden when ``runtime.accuracy`` measures accuracy?

``accuracy`` asks two models about every picture and decodes it while it waits. In one process, round by round:

own       the models alone on the same cores, on a batch that is already decoded, engine and twin one after the other
          with all threads each, as ``runtime.bench`` times them (a call shares its batch among lanes): pictures a
          second
lanes     the models alone in lanes that never meet, as ``accuracy`` runs them, on pictures already decoded: what
          decoding is hidden in
accuracy  :func:`runtime.predictions.predict` over the photographs, decoding included
decode    the same photographs decoded on one core, nothing else: milliseconds a picture

Two rows: both models, which is what the verb does, and the engine alone, which is the hardest case: the faster the
model, the larger decoding's share of the cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benches.real_accuracy import PHOTOGRAPHS
from benches.record import write_result
from runtime import machine
from runtime.accuracy import lanes_of
from runtime.backends.base import Engine, open_engine
from runtime.bundle import Bundle
from runtime.cli import run
from runtime.dataset import Sample, Unreadable, load_folder
from runtime.images import load_image
from runtime.predictions import predict

NAME = "accuracy_throughput"


def own_seconds(engines: Sequence[Engine], images: Any, calls: int, lanes: int = 1) -> float:
    """Seconds a picture of ``engines`` one after the other, ``calls`` calls in each of ``lanes`` threads."""

    def work(engine: Engine) -> None:
        for _ in range(calls):
            engine.run(images)

    total = 0.0
    with ThreadPoolExecutor(lanes) as pool:
        for engine in engines:
            engine.run(images)
            start = time.perf_counter()
            list(pool.map(work, [engine] * lanes))
            total += (time.perf_counter() - start) / calls / lanes / len(images)
    return total


def measure(bundle: Bundle, samples: Sequence[Sample], *, batch: int, rounds: int, backend: str = "ort") -> Any:
    """Both rows."""
    threads, rule = machine.available_cores(), bundle.manifest.preprocess
    count, part = lanes_of(backend, threads, batch)
    golden, calls = bundle.golden().images, max(3, len(samples) // batch // 8)
    images = np.ascontiguousarray(np.resize(golden, (batch, *golden.shape[1:])))
    some = samples[:: max(1, len(samples) // 100)]
    rows = []
    for name, kinds in (("engine and float twin", (False, True)), ("engine alone", (False,))):
        whole = [open_engine(bundle, backend, threads=threads, twin=twin) for twin in kinds]
        lane = [open_engine(bundle, backend, threads=threads // count, twin=twin) for twin in kinds]
        own, lanes, mine, decode = [], [], [], []
        for _ in range(rounds):
            own.append(own_seconds(whole, images, calls))
            lanes.append(own_seconds(lane, images[:part], calls, count))
            start = time.perf_counter()
            predict([[engine.run for engine in lane]] * count, samples, rule, Unreadable(), batch=part)
            mine.append((time.perf_counter() - start) / len(samples))
            start = time.perf_counter()
            for sample in some:
                load_image(sample.path, rule)
            decode.append((time.perf_counter() - start) / len(some))
        for engine in (*whole, *lane):
            engine.close()
        alone, apart, spent, decoding = (statistics.median(values) for values in (own, lanes, mine, decode))
        rows.append(
            {
                "models": name,
                "batch": batch,
                "threads": threads,
                "lanes": count,
                "images": len(samples),
                "own_per_second": round(1 / alone, 1),
                "lanes_per_second": round(1 / apart, 1),
                "accuracy_per_second": round(1 / spent, 1),
                "part": _part(own, mine),
                "part_of_lanes": _part(lanes, mine),
                "decode_ms": round(1e3 * decoding, 3),
                "possible_of_lanes": round(100 * apart / (apart + decoding / threads), 1),
                **{
                    f"{key}_raw_ms": [round(1e3 * value, 3) for value in values]
                    for key, values in (("own", own), ("lanes", lanes), ("accuracy", mine))
                },
            }
        )
    return rows


def _part(before: Sequence[float], after: Sequence[float]) -> float:
    """Percent of the pictures a second that are left, the median over the rounds."""
    return round(100 * statistics.median(b / a for b, a in zip(before, after, strict=True)), 1)


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle of vit_t.")],
    data: Annotated[Path, typer.Option("--data", help="The photographs.")] = PHOTOGRAPHS,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 8,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 3,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the record.")] = True,
) -> None:
    """Compare the pictures a second of an accuracy run with those of the models alone."""
    opened = Bundle.open(bundle)
    rows = measure(opened, load_folder(data, opened.classes()), batch=batch, rounds=rounds)
    for row in rows:
        print(row)
    if save:
        about = {"model": opened.manifest.model, "scheme": opened.manifest.scheme}
        write_result(NAME, {**about, "rows": rows}, hashes={"bundle": opened.sha256})


if __name__ == "__main__":
    run(main)

"""Measure benches/results/accuracy_throughput.json: is decoding hidden when ``runtime.accuracy`` measures accuracy?

``accuracy`` asks two models about every picture and decodes it while it waits. In one process, round by round:

own       the models alone on the same cores, on a batch that is already decoded, engine and twin one after the other
          with all threads each, as ``runtime.bench`` times them: pictures a second
accuracy  :func:`runtime.predictions.predict` over the photographs, decoding included
decode    the same photographs decoded on one core, nothing else: milliseconds a picture

Two rows: both models, which is what the verb does, and the engine alone, which is the hardest case: the faster the
model, the larger decoding's share of the cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benches.real_accuracy import PHOTOGRAPHS
from benches.record import write_result
from runtime import machine
from runtime.accuracy import LANES
from runtime.backends.base import Engine, open_engine
from runtime.bundle import Bundle
from runtime.cli import run
from runtime.dataset import Sample, Unreadable, load_folder
from runtime.images import load_image
from runtime.predictions import predict

NAME = "accuracy_throughput"


def own_seconds(engines: Sequence[Engine], images: Any, calls: int) -> float:
    """Seconds a picture of ``engines`` one after the other, each ``calls`` calls on its own."""
    total = 0.0
    for engine in engines:
        engine.run(images)
        start = time.perf_counter()
        for _ in range(calls):
            engine.run(images)
        total += (time.perf_counter() - start) / calls / len(images)
    return total


def measure(bundle: Bundle, samples: Sequence[Sample], *, batch: int, rounds: int, backend: str = "ort") -> Any:
    """Both rows."""
    threads, rule = machine.available_cores(), bundle.manifest.preprocess
    count = min(LANES.get(backend, 1), threads)
    golden = bundle.golden().images
    images = np.ascontiguousarray(np.resize(golden, (batch, *golden.shape[1:])))
    rows = []
    for name, kinds in (("engine and float twin", (False, True)), ("engine alone", (False,))):
        whole = [open_engine(bundle, backend, threads=threads, twin=twin) for twin in kinds]
        lanes = [
            [open_engine(bundle, backend, threads=threads // count, twin=twin) for twin in kinds] for _ in range(count)
        ]
        own, mine, decode = [], [], []
        for _ in range(rounds):
            own.append(own_seconds(whole, images, max(3, len(samples) // batch // 8)))
            start = time.perf_counter()
            predict([[engine.run for engine in lane] for lane in lanes], samples, rule, Unreadable(), batch=batch)
            mine.append((time.perf_counter() - start) / len(samples))
            start = time.perf_counter()
            for sample in samples[:: max(1, len(samples) // 100)]:
                load_image(sample.path, rule)
            decode.append((time.perf_counter() - start) / len(samples[:: max(1, len(samples) // 100)]))
        for engine in (*whole, *(engine for lane in lanes for engine in lane)):
            engine.close()
        spent, alone, decoding = (statistics.median(values) for values in (mine, own, decode))
        rows.append(
            {
                "models": name,
                "batch": batch,
                "threads": threads,
                "lanes": count,
                "images": len(samples),
                "own_per_second": round(1 / alone, 1),
                "accuracy_per_second": round(1 / spent, 1),
                "part": round(100 * statistics.median(o / m for o, m in zip(own, mine, strict=True)), 1),
                "decode_ms": round(1e3 * decoding, 3),
                "possible": round(100 * alone / (alone + decoding / threads), 1),
                "own_raw_ms": [round(1e3 * value, 3) for value in own],
                "accuracy_raw_ms": [round(1e3 * value, 3) for value in mine],
            }
        )
    return rows


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

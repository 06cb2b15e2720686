"""Measure benches/results/synthesis_accuracy.json: what images from each method are worth as calibration data.

ViT-Ti with its real weights, one fixed calibration, and the integer engine's top-1 on the 1,000 photographs. The
calibration is a build's own up to block reconstruction (budget ``fast``; docs/decisions/0038-the-fixed-calibration.md)
with scales wherever they help a layer (docs/decisions/0040-scales-after-gelu.md), whatever the method. Every row is one
calibration: method, number of images, seed, scheme. ``real`` draws its calibration photographs by seed; its
``unseen_top1`` is taken on those it did not draw. ``divergence`` is the mean KL(float || engine) on the photographs in
nats, which moves less by chance than top-1; ``hits`` is a string of 0 and 1, one a photograph, for paired comparisons.

Calibration and engine run on one thread each, as many rows at a time as there are cores. Rows are saved as they come;
a later run keeps them. ``--iterations`` runs every optimising method for another number of iterations than its
published one; rows say which. ``--device cuda`` makes the images on a GPU.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benches import verbs
from benches.engines import engine_logits
from benches.exam import Exam, drawn, photograph_set
from benches.real_accuracy import CHECKPOINT
from benches.record import RESULTS, kept_rows, put_row, read_result, write_result
from benches.synthesis_ablation import ABLATION
from benches.synthesis_sets import claims, get
from calib.calibrate import calibrate
from calib.given import device_of
from calib.models import LoadedModel, load
from calib.recipes import BUDGETS, REAL
from calib.scheme import parse
from calib.synthesis.methods import METHODS, SPDFQ, SynthesisConfig, with_iterations
from runtime.cli import run
from runtime.machine import available_cores

NAME = "synthesis_accuracy"
KEY = ("method", "iterations", "images", "seed", "scheme")
CLAIM_KEY = ("method", "iterations", "seed", "images")
BUDGET = "fast"
FIXED = replace(BUDGETS[BUDGET], gelu_scale=0.0)


@dataclass(frozen=True)
class Cell:
    """One row to measure."""

    method: str
    images: int
    seed: int
    scheme: str


_shared: tuple[LoadedModel, Exam] | None = None


def _begin() -> None:
    """Once in every worker process: the network and the photographs, on one thread."""
    global _shared
    torch.set_num_threads(1)
    loaded = load("vit_t", str(CHECKPOINT))
    _shared = (loaded, Exam.of(loaded))


def _measure(cell: Cell, pixels: Tensor | None) -> dict[str, Any]:
    """Calibrate, lower and run on every photograph; ``pixels`` is None for ``real``."""
    assert _shared is not None
    return measure(*_shared, cell, pixels)


def measure(loaded: LoadedModel, exam: Exam, cell: Cell, pixels: Tensor | None) -> dict[str, Any]:
    """What ``pixels`` (B, 3, H, W) in [0, 1] are worth as calibration images; None = photographs, drawn by seed."""
    calibrates = drawn(len(exam.photos), cell.images, cell.seed)
    data = exam.photos[calibrates] if pixels is None else loaded.spec.normalise(pixels.float())
    begun = time.monotonic()
    model = calibrate(loaded.module, loaded.spec, parse(cell.scheme), data, replace(FIXED, seed=cell.seed))
    seconds = time.monotonic() - begun
    logits = torch.from_numpy(engine_logits(model, exam.photos, threads=1))
    marks = exam.marks(logits, calibrates if pixels is None else None)
    return {"calibrate_seconds": round(seconds, 1)} | marks


def configuration(method: str, iterations: int | None) -> SynthesisConfig:
    """The method or ablation row of that name, at ``iterations`` where given."""
    config = ABLATION[method] if method in ABLATION else METHODS[method]
    return config if iterations is None else with_iterations(config, iterations)


def cells(methods: list[str], counts: list[int], seeds: list[int], schemes: list[str]) -> Iterator[Cell]:
    """Seed by seed, so that a part of the table is whole early."""
    for seed in seeds:
        for method in methods:
            for count in counts:
                for scheme in schemes:
                    yield Cell(method, count, seed, scheme)


def _float_row(loaded: LoadedModel) -> dict[str, Any]:
    exam = Exam.of(loaded)
    return {"float_top1": exam.top1(exam.logits), "float_hits": exam.hits_text(exam.logits)}


def measure_all(wanted: list[Cell], iterations: int | None, force: bool, device: str, jobs: int) -> int:
    """Measure the cells that are missing (all with ``force``); the number of rows there are then."""
    loaded = load("vit_t", str(CHECKPOINT))
    rows, have = kept_rows(NAME, KEY, force)
    record = {} if force else read_result(NAME) or {}
    sets = list(record.get("sets", []))
    head: dict[str, Any] = {key: record[key] for key in ("float_top1", "float_hits") if key in record}
    head = head or _float_row(loaded)

    def save() -> None:
        seeds = sorted({row["seed"] for row in rows})
        write_result(NAME, {"model": "vit_t", "budget": BUDGET, **head, "sets": sets, "rows": rows}, seeds=seeds)

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin) as pool:
        pending = {}
        largest: dict[tuple[str, int], int] = {}
        for cell in wanted:
            key = (cell.method, cell.seed)
            largest[key] = max(cell.images, largest.get(key, 0))
        for cell in wanted:
            config = None if cell.method == REAL else configuration(cell.method, iterations)
            about = {"method": cell.method, "iterations": config.iterations if config else 0}
            about |= {"images": cell.images, "seed": cell.seed, "scheme": cell.scheme}
            if tuple(about[field] for field in KEY) in have:
                continue
            many = largest[cell.method, cell.seed]
            known = any(all(old[k] == {**about, "images": many}[k] for k in CLAIM_KEY) for old in sets)
            made = None
            if config is not None:
                made = get(loaded, replace(config, images=many, method=cell.method), cell.seed, device)
            if not known:
                shown = made or photograph_set(loaded, many, cell.seed)
                sets = put_row(sets, claims(loaded, shown, cell.seed, SPDFQ), CLAIM_KEY)
            pixels = None if made is None else made.first(cell.images).pixels
            pending[pool.submit(_measure, cell, pixels)] = about
            if len(pending) >= 2 * jobs:
                rows = _collect(pending, rows, 1)
                save()
        while pending:
            rows = _collect(pending, rows, 1)
            save()
    return len(rows)


def _collect(pending: dict[Any, dict[str, Any]], rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    for number, future in enumerate(as_completed(list(pending))):
        about = pending.pop(future)
        row = about | future.result()
        shown = ", ".join(str(about[field]) for field in KEY)
        print(f"{shown}: {row['top1']:.1f}", flush=True)
        rows = put_row(rows, row, KEY)
        if number + 1 == count:
            break
    return rows


def main(
    methods: Annotated[str, typer.Option("--methods", help="Comma-separated; default: all, and real.")] = "",
    images: Annotated[str, typer.Option("--images", help="Comma-separated counts.")] = "32,128",
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated.")] = "0,1,2",
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated.")] = "w4a8,w8a8",
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Default: each method's own.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda, for the synthesis.")] = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Rows at a time; 0 = as many as cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Measure the table, or a part of it."""
    known = (*METHODS, REAL, *ABLATION)
    names = verbs.chosen(methods, known, "--methods") if methods else [*METHODS, REAL]
    counts, drawn_by = verbs.numbers(images, "--images"), verbs.numbers(seeds, "--seeds", 0)
    wanted = list(cells(names, counts, drawn_by, verbs.schemes(schemes)))
    total = measure_all(wanted, iterations, force, device_of(device), jobs or available_cores())
    print(f"{RESULTS / NAME}.json: {total} rows")


if __name__ == "__main__":
    run(main)

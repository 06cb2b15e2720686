"""Measure benches/results/calibration_accuracy.json: what each calibration budget recovers, with and without data.

ViT-Ti with its real weights; the integer engine's top-1 on the 1,000 photographs by scheme, budget and images: ``best``
(data-free), ``real`` (photographs drawn by seed; ``unseen_top1`` leaves those out), any other method or row of the
synthesis ablation, each with its own recipe's calibration; ``--correction`` replaces that of the recipe. Beside top-1
stand the fake-quant model's, and the mean divergence of the engine's output from the float network's on the same
photographs: KL(float || engine) in nats, which moves less by chance than top-1. Rows are saved as they come, with the
seconds and the peak memory of the calibration and the layers that keep 8 bits; a later run keeps them. The images are
those of the synthesis benches (benches/synthesis_sets.py). ``--device cuda`` makes images and calibrates on a GPU.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer

from benches import verbs
from benches.engines import engine_logits
from benches.exam import BATCH, Exam, drawn
from benches.real_accuracy import CHECKPOINT
from benches.record import RESULTS, kept_rows, put_row, write_result
from benches.synthesis_accuracy import ABLATION, configuration
from benches.synthesis_sets import get
from calib.calibrate import calibrate
from calib.given import device_of
from calib.models import LoadedModel, load
from calib.recipes import BUDGETS, REAL, methods, recipe
from calib.scheme import parse
from runtime.cli import run

NAME = "calibration_accuracy"
KEY = ("scheme", "method", "images", "iterations", "budget", "correction", "seed")
MODEL = "vit_t"


def measure(loaded: LoadedModel, exam: Exam, row: dict[str, Any], device: str) -> dict[str, Any]:
    """Calibrate and run one row: what was asked (``KEY``) with what came of it."""
    photos = exam.photos
    made = recipe(row["method"].split(":")[0], row["budget"], row["correction"])
    calibrates = drawn(len(photos), row["images"], row["seed"])
    if made.synthesis is None:
        data = photos[calibrates]
    else:
        config = replace(configuration(row["method"], row["iterations"]), images=row["images"])
        data = loaded.spec.normalise(get(loaded, config, row["seed"], device).pixels.float())
    begun = time.monotonic()
    model = calibrate(
        loaded.module.to(device),
        loaded.spec,
        parse(row["scheme"]),
        data.to(device),
        replace(made.align, seed=row["seed"]),
    )
    seconds = time.monotonic() - begun
    model.module.cpu()
    loaded.module.cpu()
    logits = torch.from_numpy(engine_logits(model, photos))
    blocks = [each for each in model.report if each["step"] == "reconstruct"]
    return row | {
        "device": device,
        "calibrate_seconds": round(seconds, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **exam.marks(logits, calibrates if made.synthesis is None else None),
        "fake_quant_top1": exam.top1(model.logits(photos, BATCH)),
        "blocks_accepted": sum(each["accepted"] for each in blocks),
        "blocks": len(blocks),
        "wide": [each["layer"] for each in model.report if each["step"] == "widen"],
        "block_errors": [[each["before"], each["after"]] for each in blocks],
    }


def main(
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated.")] = "w8a8,w4a8,w3a8,w4a4",
    names: Annotated[str, typer.Option("--methods", help="Comma-separated.")] = "best,real,psaq",
    images: Annotated[str, typer.Option("--images", help="Comma-separated counts.")] = "128",
    budgets: Annotated[str, typer.Option("--budgets", help="Comma-separated.")] = "default",
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Of the synthesis; default: as it is.")
    ] = None,
    corrections: Annotated[str, typer.Option("--corrections", help="Comma-separated; default: the recipe's.")] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Comma-separated.")] = "0,1,2",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Measure the table, or a part of it."""
    device, built = device_of(device), verbs.schemes(schemes)
    counts, drawn_by = verbs.numbers(images, "--images"), verbs.numbers(seeds, "--seeds", 0)
    asked = verbs.chosen(names, [*methods(), *ABLATION], "--methods")
    limits = verbs.chosen(budgets, list(BUDGETS), "--budgets")
    rows, have = kept_rows(NAME, KEY, force)
    wanted = [
        (scheme, method, count, None if method == REAL else iterations, budget, correction or None, seed)
        for seed in drawn_by
        for scheme in built
        for method in asked
        for count in counts
        for budget in limits
        for correction in corrections.split(",")
    ]
    loaded = load(MODEL, str(CHECKPOINT))
    exam = Exam.of(loaded)
    for cell in wanted:
        if cell in have:
            continue
        row = measure(loaded, exam, dict(zip(KEY, cell, strict=True)), device)
        print(", ".join(map(str, cell)) + f": {row['top1']:.1f} ({row['calibrate_seconds']:.0f} s)", flush=True)
        rows = put_row(rows, row, KEY)
        head = {"model": MODEL, "float_top1": exam.top1(exam.logits)}
        write_result(NAME, {**head, "rows": rows}, seeds=sorted({each["seed"] for each in rows}))
    print(f"{RESULTS / NAME}.json: {len(rows)} rows, {REAL} ones calibrated on photographs")


if __name__ == "__main__":
    run(main)

"""Measure benches/results/build_cost.json: what a whole build takes, its images and calibration included.

Each row is one ``python -m toolchain.build`` with nothing in its store. The figures are those the build itself leaves
in cost.json, and ``wall_seconds``, which also counts starting Python and loading the network. A stage's peak of memory
is the process's while it ran. ``threads`` is OMP_NUM_THREADS where set, else the number of cores. ViT-Ti has its
real weights; the larger networks are random and calibrated on ``procedural`` images, since neither time nor memory of
a calibration depends on what its images show.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.real_accuracy import CHECKPOINT
from benches.record import RESULTS, kept_rows, put_row, write_result
from benches.verbs import WORK, Call, call, chosen, must, read_json
from runtime.cli import run
from runtime.machine import available_cores

NAME = "build_cost"
KEY = ("model", "scheme", "method", "images", "budget")
BUILDS: dict[str, dict[str, Any]] = {
    "vit_t": {"weights": str(CHECKPOINT), "method": "best"},
    "vit_s": {"weights": "random", "method": "procedural"},
    "vit_b": {"weights": "random", "method": "procedural"},
}
STAGES = ("images", "calibrate", "lower")
SEED = 0


def measure(asked: Mapping[str, Any], weights: str, execute: Call) -> dict[str, Any]:
    """One row: what was asked (``KEY``), then ``<stage>_seconds`` and ``<stage>_mib`` of every stage.

    Raises:
        IntvitError: the build failed, or left no cost.
    """
    work = WORK / NAME / "-".join(map(str, asked.values()))
    shutil.rmtree(work, ignore_errors=True)
    arguments = ["--model", asked["model"], "--checkpoint", weights, "--bits", asked["scheme"]]
    arguments += ["--method", asked["method"], "--images", str(asked["images"]), "--budget", asked["budget"]]
    arguments += ["--seed", str(SEED), "--cache", str(work / "stages"), "--out", str(work / "bundle")]
    begun = time.monotonic()
    must(execute("toolchain.build", arguments, {}), "toolchain.build", arguments)
    row = dict(asked) | {"wall_seconds": round(time.monotonic() - begun, 1)}
    row["threads"] = int(os.environ.get("OMP_NUM_THREADS", available_cores()))
    row["weights"] = "random" if weights == "random" else "real"
    cost = read_json(work / "bundle" / "cost.json", STAGES)
    for stage in STAGES:
        row |= {f"{stage}_seconds": cost[stage]["seconds"], f"{stage}_mib": cost[stage]["peak_mib"]}
    row["steps_seconds"] = cost["calibrate"].get("steps_seconds", {})
    shutil.rmtree(work)
    return row


def measure_all(
    models: Sequence[str], asked: Mapping[str, Any], force: bool = False, execute: Call = call, results: Path = RESULTS
) -> list[dict[str, Any]]:
    """Measure the models whose row is missing, every one with ``force``; a row is saved as soon as it is there."""
    rows, have = kept_rows(NAME, KEY, force, results)
    for model in models:
        build = {"model": model, "scheme": asked["scheme"], "method": BUILDS[model]["method"]}
        build |= {"images": asked["images"], "budget": asked["budget"]}
        if tuple(build.values()) not in have:
            rows = put_row(rows, measure(build, BUILDS[model]["weights"], execute), KEY)
            write_result(NAME, {"rows": rows}, seeds=[SEED], results=results)
    return rows


def main(
    models: Annotated[str, typer.Option("--models", help="Comma-separated; default: " + ",".join(BUILDS))] = "",
    scheme: Annotated[str, typer.Option("--bits", help="The scheme.")] = "w4a8",
    images: Annotated[int, typer.Option("--images", help="Calibration images.")] = 128,
    budget: Annotated[str, typer.Option("--budget", help="Of the calibration.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Measure what whole builds take on this machine."""
    asked = {"scheme": scheme, "images": images, "budget": budget}
    rows = measure_all(chosen(models, list(BUILDS), "--models"), asked, force=force)
    print(f"{RESULTS / NAME}.json: {len(rows)} rows")


if __name__ == "__main__":
    run(main)

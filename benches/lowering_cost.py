"""Measure benches/results/lowering_cost.json: seconds and memory of the lowering, and the sizes of its graphs.

Lowering is the last stage of a build: the canonical graph, the ONNX Runtime dialect, the float32 twin, each checked,
and the golden vectors. A build makes images and calibration first; the lowering is then done once more in a process of
its own, so that its peak of memory holds nothing of the calibration's. Weights are random: cost and size do not depend
on their values.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.record import RESULTS, kept_rows, put_row, write_result
from benches.verbs import WORK, Call, call, chosen, must, read_json
from runtime.cli import run
from runtime.errors import IntvitError

NAME = "lowering_cost"
MODELS = ("deit_s", "deit_b")
SCHEMES = ("w8a8", "w4a8")
KEY = ("model", "scheme")
SEED = 0


def measure(model: str, scheme: str, execute: Call) -> dict[str, Any]:
    """One row: ``seconds`` and ``peak_mib`` of the lowering stage, and the ``*_bytes`` of the graphs.

    Raises:
        IntvitError: a build failed, or the second one did not do the lowering anew.
    """
    out, cache = WORK / NAME / f"{model}-{scheme}", WORK / NAME / f"{model}-{scheme}-stages"
    arguments = ["--model", model, "--checkpoint", "random", "--bits", scheme, "--method", "noise", "--images", "4"]
    arguments += ["--budget", "fast", "--seed", str(SEED), "--cache", str(cache), "--out", str(out)]
    must(execute("toolchain.build", arguments, {}), "toolchain.build", arguments)
    first = read_json(out / "cost.json", ["lower"])["lower"]
    for stage in cache.glob("lower-*"):
        shutil.rmtree(stage)
    must(execute("toolchain.build", arguments, {}), "toolchain.build", arguments)
    cost = read_json(out / "cost.json", ["lower"])["lower"]
    if cost == first:
        raise IntvitError(
            "the lowering was not done again", where=str(cache), why="its cost is that of the first build"
        )
    files = {entry["path"]: entry["bytes"] for entry in read_json(out / "manifest.json", ["files"])["files"]}
    return {
        "model": model,
        "scheme": scheme,
        "seconds": cost["seconds"],
        "peak_mib": cost["peak_mib"],
        "ort_bytes": files["ort/model.onnx"],
        "canonical_bytes": files["canonical/model.onnx"],
        "float_bytes": files["float/model.onnx"],
    }


def measure_all(
    models: Sequence[str],
    schemes: Sequence[str],
    *,
    force: bool = False,
    execute: Call = call,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Measure the rows that are missing, all of the selection with ``force``, and save after each."""
    rows, have = kept_rows(NAME, KEY, force, results)
    for model in models:
        for scheme in schemes:
            if (model, scheme) not in have:
                rows = put_row(rows, measure(model, scheme, execute), KEY)
                write_result(NAME, {"rows": rows}, seeds=[SEED], results=results)
    return rows


def main(
    models: Annotated[str, typer.Option("--models", help="Comma-separated; default: " + ",".join(MODELS))] = "",
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated; default: " + ",".join(SCHEMES))] = "",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Measure what lowering costs on this machine, and how large its graphs are."""
    rows = measure_all(chosen(models, MODELS, "--models"), chosen(schemes, SCHEMES, "--schemes"), force=force)
    print(f"{RESULTS / NAME}.json: {len(rows)} rows")


if __name__ == "__main__":
    run(main)

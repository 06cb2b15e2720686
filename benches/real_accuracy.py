"""Measure benches/results/real_accuracy.json: top-1 of ViT-Ti on real photographs by scheme and calibration method.

32 of the 1,000 photographs, evenly spread, are set aside for ``--method real``; every row is evaluated on the other
968, so that all methods meet the same pictures. The rows of ``best`` and ``psaq``, which read no picture, are also
given on all 1,000. ``best`` calibrates on 128 images, its default, the others on 32. ``seconds`` is the time of the
whole build command, synthesis and evaluation included; a row whose images were already in the cache has none (schemes
share the images of a method). A row is saved as soon as it is measured; a later run keeps it unless ``--force`` is
given.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benches.record import RESULTS, ROOT, kept_rows, put_row, write_result
from benches.verbs import WORK, Call, call, chosen, must, read_json
from runtime.cli import run
from runtime.errors import IntvitError

NAME = "real_accuracy"
MODEL = "vit_t"
SHARED = ROOT.parent / "shared" / "data"
CHECKPOINT = SHARED / "vit_tiny_patch16_224.augreg_in21k_ft_in1k" / "model.safetensors"
PHOTOGRAPHS = SHARED / "imagenet-ccby" / "val"
SCHEMES = ("w8a8", "w4a8")
METHODS = ("best", "psaq", "noise", "real")
ON_ALL = ("best", "psaq")  # also evaluated on all photographs
IMAGES = {"best": 128}
CALIBRATION_IMAGES = 32
KEY = ("scheme", "method", "images")
SEED = 0


def divide(photographs: Path, count: int = CALIBRATION_IMAGES) -> tuple[list[Path], list[Path]]:
    """The photographs for calibration, ``count`` evenly spread over the sorted list, and all the others."""
    every = sorted(path for path in photographs.glob("*/*") if path.is_file() and not path.name.startswith("."))
    if len(every) <= count:
        raise IntvitError(
            f"{len(every)} photographs are too few to set {count} aside",
            where=str(photographs),
            next="ask for the measuring data described in shared/data/README.md",
        )
    taken = {index * len(every) // count for index in range(count)}
    return [every[index] for index in sorted(taken)], [path for index, path in enumerate(every) if index not in taken]


def gather(files: Sequence[Path], folder: Path) -> Path:
    """Link the files, or copy them across file systems, as ``folder/<class>/<name>``; an old folder is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files:
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copyfile(path, copy)
    return folder


def build(
    scheme: str, method: str, evaluation: Path, calibration: Path, cache: Path, execute: Call
) -> tuple[Any, float]:
    """Build and evaluate one bundle; its row without ``seconds``, and the wall time of the build command in seconds."""
    out = WORK / NAME / f"{scheme}-{method}"
    arguments = ["--model", MODEL, "--checkpoint", str(CHECKPOINT), "--bits", scheme, "--method", method]
    arguments += ["--eval", str(evaluation), "--seed", str(SEED), "--out", str(out)]
    arguments += ["--images", str(IMAGES.get(method, CALIBRATION_IMAGES))]
    if method == "real":
        arguments += ["--calib-data", str(calibration)]
    start = time.perf_counter()
    must(execute("toolchain.build", arguments, {"INTVIT_CACHE": str(cache)}), "toolchain.build", arguments)
    seconds = time.perf_counter() - start
    reported = read_json(out / "manifest.json", ["reported"])["reported"]
    parity = out.with_suffix(".parity.json")
    parity.unlink(missing_ok=True)
    # Parity that fails still leaves its figures, and the row says so.
    execute("runtime.parity", [str(out), "--json", str(parity)], {})
    rungs = read_json(parity, ["ok", "logits_sqnr_db", "free_logits_sqnr_db"])
    row = {
        "scheme": scheme,
        "method": method,
        "images": reported["images"],
        "float_top1": reported["float_top1"],
        "fake_quant_top1": reported["fake_quant_top1"],
        "engine_top1": reported["engine_top1"],
        "stderr": reported["stderr"],
        "sqnr_db": rungs["logits_sqnr_db"],
        "free_sqnr_db": rungs["free_logits_sqnr_db"],
        "parity_ok": rungs["ok"],
    }
    return row, seconds


def measure_all(
    schemes: Sequence[str],
    methods: Sequence[str],
    *,
    photographs: Path = PHOTOGRAPHS,
    force: bool = False,
    execute: Call = call,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Measure the rows that are missing, all of the selection with ``force``, and save after each."""
    rows, have = kept_rows(NAME, KEY, force, results)
    mine, others = divide(photographs)
    calibration = gather(mine, WORK / NAME / "calibration")
    evaluation = gather(others, WORK / NAME / "evaluation")
    if force:
        shutil.rmtree(WORK / NAME / "cache", ignore_errors=True)
    for scheme in schemes:
        for method in methods:
            wanted = [(evaluation, len(others))]
            if method in ON_ALL:
                wanted.append((photographs, len(mine) + len(others)))
            cache = WORK / NAME / "cache" / method
            for folder, images in wanted:
                if (scheme, method, images) in have:
                    continue
                fresh = not cache.exists()
                row, seconds = build(scheme, method, folder, calibration, cache, execute)
                row["seconds"] = round(seconds, 1) if fresh else None
                rows = put_row(rows, row, KEY)
                write_result(NAME, {"model": MODEL, "rows": rows}, seeds=[SEED], results=results)
                cache.mkdir(parents=True, exist_ok=True)
    return rows


def main(
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated; default: " + ",".join(SCHEMES))] = "",
    methods: Annotated[str, typer.Option("--methods", help="Comma-separated; default: " + ",".join(METHODS))] = "",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Measure real accuracy by scheme and calibration method."""
    for path in (CHECKPOINT, PHOTOGRAPHS):
        if not path.exists():
            raise IntvitError("the measuring data is not here", where=str(path), next="see shared/data/README.md")
    rows = measure_all(chosen(schemes, SCHEMES, "--schemes"), chosen(methods, METHODS, "--methods"), force=force)
    print(f"{RESULTS / NAME}.json: {len(rows)} rows")


if __name__ == "__main__":
    run(main)

"""``python -m runtime.accuracy BUNDLE --data DIR``: the engine's accuracy on real pictures, beside its float twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from runtime import cli, machine
from runtime.backends.base import Images, Logits, open_pair
from runtime.bundle import Bundle
from runtime.dataset import Sample, Unreadable, batches, load_folder
from runtime.files import atomic_write_json
from runtime.manifest import Preprocess
from runtime.progress import task

Run = Callable[[Images], Logits]


@dataclass(frozen=True)
class Predictions:
    """What one model said of M pictures: int64 (M, k) class indices, the best first, k = min(5, classes)."""

    top: npt.NDArray[np.int64]

    def hits(self, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
        """bool (M,): whether the label is among the first ``k``."""
        found: npt.NDArray[np.bool_] = (self.top[:, :k] == labels[:, None]).any(axis=1)
        return found


@dataclass(frozen=True)
class Accuracy:
    """The result of :func:`evaluate`. Percentages are 0..100; ``stderr`` is in points.

    Attributes:
        top1, top5: of the engine.
        images: how many pictures were read.
        baseline_top1, baseline_top5: of the float twin on the same pictures.
        twin_precision: what the twin computes in.
        agreement: pictures for which both give the same first class.
        stderr: paired standard error of ``top1 - baseline_top1``, from the differences picture by picture.
        unreadable: (path, reason) of the pictures skipped.
        labels: int64 (M,), M = ``images``.
        engine, baseline: the predictions themselves.
        paths: the M pictures, in order.
    """

    top1: float
    top5: float
    images: int
    baseline_top1: float
    baseline_top5: float
    agreement: float
    stderr: float
    unreadable: tuple[tuple[str, str], ...]
    labels: npt.NDArray[np.int64]
    engine: Predictions
    baseline: Predictions
    paths: tuple[Path, ...]
    twin_precision: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """The fixed keys, and ``baseline_top5`` and ``unreadable`` (path and reason) beside them."""
        names = ("top1", "top5", "images", "baseline_top1", "agreement", "stderr", "baseline_top5")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["unreadable"] = [{"path": path, "reason": reason} for path, reason in self.unreadable]
        return values


def top_classes(logits: Logits, k: int = 5) -> npt.NDArray[np.int64]:
    """int64 (N, min(k, classes)): the best classes of each row, ties to the lower index."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)


def predict(
    runs: list[Run], samples: list[Sample], rule: Preprocess, *, batch: int = 8, label: str = "accuracy"
) -> tuple[list[Predictions], npt.NDArray[np.int64], tuple[Path, ...], Unreadable]:
    """Give the same pictures to several models, each float32 (N, 3, H, W) -> float32 (N, classes).

    Returns:
        The predictions of each model, the labels int64 (M,), the M paths, and the pictures skipped.

    Raises:
        IntvitError: more than 1 % of the pictures are unreadable, or all.
    """
    tops: list[list[npt.NDArray[np.int64]]] = [[] for _ in runs]
    labels: list[npt.NDArray[np.int64]] = []
    paths: list[Path] = []
    unreadable = Unreadable()
    with task(label, len(samples)) as advance:
        for part in batches(samples, rule, unreadable, batch=batch, workers=min(2, machine.available_cores())):
            for run, top in zip(runs, tops, strict=True):
                top.append(top_classes(run(part.images)))
            labels.append(part.labels)
            paths += [sample.path for sample in part.samples]
            advance(len(part.samples))
        advance(len(unreadable.files))
    return [Predictions(np.concatenate(top)) for top in tops], np.concatenate(labels), tuple(paths), unreadable


def percent(hits: npt.NDArray[np.bool_]) -> float:
    """The part of ``hits`` (bool (M,)) that is true, 0..100."""
    return 100.0 * float(hits.mean())


def paired_stderr(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Standard error, in points, of the difference of two hit rates on the same M pictures; 0 for a single picture."""
    difference = first.astype(np.float64) - second.astype(np.float64)
    return 100.0 * float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0


def evaluate(
    bundle: Bundle,
    data: Path,
    *,
    backend: str = "ort",
    limit: int | None = None,
    batch: int = 8,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> Accuracy:
    """Measure the engine and its float twin on the pictures of a folder (see :func:`runtime.dataset.load_folder`).

    ``options`` of the backend go to the engine; the twin keeps its precision, so that it stays the float reference.

    Raises:
        IntvitError: unknown backend or class folder, no pictures, or more than 1 % of them unreadable.
    """
    samples = load_folder(data, bundle.classes(), limit=limit)
    engine, twin = open_pair(bundle, backend, threads=threads, options=options)
    try:
        rule = bundle.manifest.preprocess
        (mine, baseline), labels, paths, unreadable = predict([engine.run, twin.run], samples, rule, batch=batch)
        twin_precision = twin.describe().get("float", "float32")
    finally:
        engine.close()
        twin.close()
    hits, baseline_hits = mine.hits(labels, 1), baseline.hits(labels, 1)
    return Accuracy(
        top1=percent(hits),
        top5=percent(mine.hits(labels, 5)),
        images=len(labels),
        baseline_top1=percent(baseline_hits),
        baseline_top5=percent(baseline.hits(labels, 5)),
        agreement=percent(mine.top[:, 0] == baseline.top[:, 0]),
        stderr=paired_stderr(hits, baseline_hits),
        unreadable=tuple(unreadable.files),
        labels=labels,
        engine=mine,
        baseline=baseline,
        paths=paths,
        twin_precision=twin_precision,
    )


def show(result: Accuracy, console: Console) -> None:
    """Print the result as a table, and the pictures that were skipped."""
    table = Table(title=f"accuracy on {result.images} pictures")
    for column in ("", "top-1 %", "top-5 %"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("integer engine", f"{result.top1:.2f}", f"{result.top5:.2f}")
    table.add_row(f"{result.twin_precision} twin", f"{result.baseline_top1:.2f}", f"{result.baseline_top5:.2f}")
    console.print(table)
    lost = result.top1 - result.baseline_top1
    console.print(
        f"{lost:+.2f} points against {result.twin_precision} (standard error {result.stderr:.2f}); "
        f"same first class for {result.agreement:.2f} % of the pictures",
        highlight=False,
        soft_wrap=True,
    )
    for path, reason in result.unreadable:
        console.print(f"skipped, unreadable: {path}: {reason}", markup=False, highlight=False, soft_wrap=True)


def main(
    bundle: cli.BundleArgument,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Pictures: DIR/<class id or index>/*.jpg|jpeg|png.")
    ],
    backend: cli.BackendOption = "ort",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="An even spread of so many pictures.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures a call.")] = 8,
    threads: cli.ThreadsOption = None,
    option: cli.EngineOption = None,
    json: cli.JsonOption = None,
    debug: cli.DebugOption = False,
) -> None:
    """Measure top-1 and top-5 of the integer engine and of its float32 twin on labelled pictures."""
    options = cli.parse_options(option)
    opened = Bundle.open(bundle)
    result = evaluate(opened, data, backend=backend, limit=limit, batch=batch, threads=threads, options=options)
    show(result, Console())
    if json is not None:
        atomic_write_json(json, {**result.to_json(), "backend": backend, "bundle": opened.sha256})


if __name__ == "__main__":
    cli.run(main)

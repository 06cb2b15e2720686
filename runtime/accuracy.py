"""``python -m runtime.accuracy BUNDLE --data DIR``: the engine's accuracy on real pictures, beside its float twin."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from runtime import cli, disagreements, machine
from runtime.backends.base import open_pair
from runtime.bundle import Bundle
from runtime.classes import Classes
from runtime.console import Console
from runtime.dataset import Unreadable, load_folder
from runtime.files import atomic_write_json, require_writable
from runtime.paired import Hits, discordant, mcnemar_p, paired_interval, paired_stderr, percent
from runtime.predictions import Predictions, predict

CONCURRENT = frozenset({"ort"})  # backends whose engine answers several calls at once, each in its caller's thread
SHOWN_CLASSES = 5


@dataclass(frozen=True)
class ClassDrop:
    """One class: its pictures, and how many of them the engine and the float twin get right."""

    index: int
    images: int
    right: int
    baseline_right: int


@dataclass(frozen=True)
class Accuracy:
    """The result of :func:`evaluate`. Percentages are 0..100.

    Attributes:
        labels: int64 (M,). paths: the M pictures, in order.
        engine, baseline: the predictions of the engine and of the float twin.
        unreadable: (path, reason) of the pictures skipped.
        seconds: wall-clock time from the first picture opened to the last answer, both models included.
        lanes: how many calls of the models went on side by side. twin_precision: what the twin computes in.
    """

    labels: npt.NDArray[np.int64]
    paths: tuple[Path, ...]
    engine: Predictions
    baseline: Predictions
    unreadable: tuple[tuple[str, str], ...]
    seconds: float
    lanes: int = 1
    twin_precision: str = "float32"

    @property
    def images(self) -> int:
        """How many pictures were read."""
        return len(self.labels)

    @property
    def hits(self) -> tuple[Hits, Hits]:
        """bool (M,) each: the first class of the engine, and of the twin, is the label."""
        return self.engine.hits(self.labels, 1), self.baseline.hits(self.labels, 1)

    @property
    def top1(self) -> float:
        """Of the engine, percent."""
        return percent(self.hits[0])

    @property
    def top5(self) -> float:
        """Of the engine, percent."""
        return percent(self.engine.hits(self.labels, 5))

    @property
    def baseline_top1(self) -> float:
        """Of the float twin, percent."""
        return percent(self.hits[1])

    @property
    def baseline_top5(self) -> float:
        """Of the float twin, percent."""
        return percent(self.baseline.hits(self.labels, 5))

    @property
    def agreement(self) -> float:
        """Pictures for which both give the same first class, percent."""
        return percent(self.engine.top[:, 0] == self.baseline.top[:, 0])

    @property
    def stderr(self) -> float:
        """Paired standard error of ``top1 - baseline_top1``, points."""
        return paired_stderr(*self.hits)

    def drops(self) -> list[ClassDrop]:
        """The classes the engine gets right less often than the twin, the largest loss first."""
        hits, baseline = self.hits
        found = []
        for index in np.unique(self.labels):
            mine = self.labels == index
            counts = (int(each.sum()) for each in (mine, hits & mine, baseline & mine))
            found.append(ClassDrop(int(index), *counts))
        lost = [drop for drop in found if drop.right < drop.baseline_right]
        return sorted(lost, key=lambda drop: (drop.right - drop.baseline_right, drop.index))

    def to_json(self, classes: Classes) -> dict[str, Any]:
        """The fixed keys (top1, top5, images, baseline_top1, agreement, stderr), and the rest beside them."""
        names = ["top1", "top5", "images", "baseline_top1", "baseline_top5", "agreement", "stderr", "seconds", "lanes"]
        names.append("twin_precision")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        gained, lost = discordant(*self.hits)
        low, high = paired_interval(*self.hits)
        return values | {
            "interval_95": [low, high],
            "mcnemar": {"only_engine_right": gained, "only_float_right": lost, "p": mcnemar_p(*self.hits)},
            "drops": [
                asdict(drop) | {"id": classes.ids[drop.index], "name": classes.names[drop.index]}
                for drop in self.drops()
            ],
            "images_per_second": self.images / self.seconds,
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.unreadable],
        }


def lanes_of(backend: str, threads: int, batch: int) -> tuple[int, int]:
    """(calls side by side, pictures a call) for ``batch`` pictures at a time.

    The threads of one call meet at the end of every operator; calls of one thread each do not, and give the same bits.
    They are the engine's own lanes (docs/decisions/0039-lanes.md), held open over all models and batches: no lane waits
    for another before the last picture.
    """
    count = threads if backend in CONCURRENT else 1
    return count, max(1, batch // count)


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
    ``threads`` are those of all lanes together, ``batch`` the pictures in all of them (see :func:`lanes_of`).

    Raises:
        IntvitError: unknown backend or class folder, no pictures, or more than 1 % of them unreadable.
    """
    samples = load_folder(data, bundle.classes(), limit=limit)
    used, unreadable = threads or machine.available_cores(), Unreadable()
    count, batch = lanes_of(backend, used, batch)
    engine, twin = open_pair(bundle, backend, threads=used // count, options=options)
    with contextlib.closing(engine), contextlib.closing(twin):
        rule, lanes = bundle.manifest.preprocess, [(engine.run, twin.run)] * count
        begun = time.perf_counter()
        answers = predict(lanes, samples, rule, unreadable, batch=batch)
        seconds = time.perf_counter() - begun
        twin_precision = str(twin.describe().get("float", "float32"))
    mine, baseline = answers.models
    return Accuracy(
        answers.labels, answers.paths, mine, baseline, tuple(unreadable.files), seconds, count, twin_precision
    )


def show(result: Accuracy, classes: Classes, console: Console) -> None:
    """Print the result as a table, what it means, where it was lost, and the pictures that were skipped."""
    table = Table(title=f"accuracy on {result.images} pictures")
    for column in ("", "top-1 %", "top-5 %"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("integer engine", f"{result.top1:.2f}", f"{result.top5:.2f}")
    table.add_row(f"{result.twin_precision} twin", f"{result.baseline_top1:.2f}", f"{result.baseline_top5:.2f}")
    console.print(table)
    low, high = paired_interval(*result.hits)
    gained, lost = discordant(*result.hits)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{result.top1 - result.baseline_top1:+.2f} points against {result.twin_precision} (standard error "
        f"{result.stderr:.2f}, 95 % interval {low:+.2f} to {high:+.2f}); {lost} pictures lost, {gained} won, "
        f"McNemar p = {mcnemar_p(*result.hits):.3g}; same first class for {result.agreement:.2f} % of the pictures"
    )
    drops = result.drops()
    if drops:
        worst = (
            f"{classes.names[drop.index].partition(',')[0]} ({drop.baseline_right} to {drop.right} of {drop.images})"
            for drop in drops[:SHOWN_CLASSES]
        )
        say(f"{len(drops)} classes lose: " + ", ".join(worst) + (", ..." if len(drops) > SHOWN_CLASSES else ""))
    say(f"{result.images / result.seconds:.0f} pictures a second, decoding and both models included")
    for path, reason in result.unreadable:
        say(f"skipped, unreadable: {path}: {reason}")


def main(
    bundle: cli.BundleArgument,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Pictures: DIR/<class id or index>/*.jpg|jpeg|png.")
    ],
    backend: cli.BackendOption = "ort",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="An even spread of so many pictures.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures in the engine at a time.")] = 8,
    threads: cli.ThreadsOption = None,
    option: cli.EngineOption = None,
    disagree: Annotated[
        Path | None,
        typer.Option("--disagreements", metavar="DIR", help="Write DIR/index.html: the pictures they part most on."),
    ] = None,
    json: cli.JsonOption = None,
) -> None:
    """Measure top-1 and top-5 of the integer engine and of its float32 twin on labelled pictures."""
    options = cli.parse_options(option)
    if disagree is not None:
        require_writable(disagree / disagreements.INDEX)
    opened = Bundle.open(bundle)
    classes = opened.classes()
    result = evaluate(opened, data, backend=backend, limit=limit, batch=batch, threads=threads, options=options)
    show(result, classes, Console())
    if json is not None:
        about = {"backend": backend, "options": options, "bundle": opened.sha256}
        atomic_write_json(json, {**result.to_json(classes), **about})
    if disagree is not None:
        page = disagreements.write(
            disagree,
            disagreements.worst(result.engine, result.baseline),
            result.engine,
            result.baseline,
            result.labels,
            result.paths,
            classes,
            title=opened.manifest.name,
            twin_precision=result.twin_precision,
        )
        print(f"wrote {page}")


if __name__ == "__main__":
    cli.run(main)

"""The tables of the synthesis benches."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from benches.markdown import markdown

Record = dict[str, Any]
ORDER = (
    "noise",
    "procedural",
    "psaq",
    "mimiq",
    "dfq-vit",
    "spdfq",
    "best",
    "real",
)


def _spread(values: list[float]) -> str:
    """Mean, and the standard deviation and number of seeds where there are several."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f} ({len(values)})" if len(values) > 1 else "")


def _rank(method: str) -> tuple[int, str]:
    return (ORDER.index(method) if method in ORDER else len(ORDER), method)


def _worth(rows: list[Record]) -> str:
    """Top-1 as in :func:`_spread`, and the mean divergence."""
    if not rows:
        return "–"
    return f"{_spread([row['top1'] for row in rows])}; {mean(row['divergence'] for row in rows):.3f}"


def accuracy(record: Record) -> str:
    """Engine top-1 and divergence on the photographs by method and number of images; a row a method and number of
    iterations."""
    cells: dict[tuple[str, int], dict[tuple[str, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in record["rows"]:
        cells[row["method"], row["iterations"]][row["scheme"], row["images"]].append(row)
    columns = sorted({key for values in cells.values() for key in values}, key=lambda key: (key[0], key[1]))
    head = ["method", "iterations", *(f"{scheme}, {images} images" for scheme, images in columns)]
    rows = [
        [method, str(iterations or "–"), *(_worth(cells[method, iterations].get(column, [])) for column in columns)]
        for method, iterations in sorted(cells, key=lambda key: (*_rank(key[0]), key[1]))
    ]
    note = f"Float top-1 on the same photographs: {record['float_top1']:.1f}. Calibration: budget {record['budget']}."
    return f"{note}\n\n" + markdown(head, rows, left=1)


def sets(record: Record) -> str:
    """What the float network makes of the sets, one row a set."""
    head = ["method", "iterations", "seed", "images", "agreement %", "head similarity"]
    head += ["patch entropy", "prior distance", "seconds"]
    rows = []
    for row in sorted(record["sets"], key=lambda row: (*_rank(row["method"]), row["seed"])):
        agreement = row.get("agreement")
        rows.append(
            [
                row["method"],
                str(row["iterations"] or "–"),
                str(row["seed"]),
                str(row["images"]),
                "–" if agreement is None else f"{100 * agreement:.1f}",
                f"{row['head_similarity']:.3f}",
                f"{row['patch_entropy']:.3f}",
                f"{1e3 * row['prior_distance']:.3f}e-3",
                f"{row['seconds']:.0f}",
            ]
        )
    return markdown(head, rows, left=1)


def speed(record: Record) -> str:
    """One iteration of a method beside a plain forward and backward pass."""
    head = ["device", "model", "batch", "method", "ms an iteration", "× plain", "images a minute"]
    rows = [
        [
            row["device"] + (f", {row['threads']} thread" if row["device"] == "cpu" else ""),
            row["model"],
            str(row["batch"]),
            row["method"],
            f"{row['ms']:.1f}",
            f"{row['ratio']:.2f}",
            "–" if row["images_per_minute"] is None else f"{row['images_per_minute']:.2f}",
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=2)

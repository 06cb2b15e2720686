"""The tables of the calibration benches."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from benches.markdown import markdown
from calib.scheme import parse

Record = dict[str, Any]
HEADLINE = {"best": "from the network", "real": "photographs"}
HEADLINE_IMAGES = 128
# The published recipes and their ablations, each paper's in the order in which it adds its parts.
PUBLISHED = (
    ("psaq", "own"),
    ("mimiq: no IHC", "own"),
    ("mimiq", "own"),
    ("spdfq: class and TV only", "own"),
    ("spdfq: APA", "own"),
    ("spdfq: APA + MSR", "own"),
    ("spdfq", "own"),
    ("dfq-vit: no E2H", "own"),
    ("dfq-vit", "none"),
    ("dfq-vit", "own"),
    ("dfq-vit", "diag"),
    ("dfq-vit", "full"),
)


def _over_seeds(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}" if values else "–"


def accuracy(record: Record) -> str:
    """Engine top-1 by scheme, images, budget and correction, the mean over seeds with their standard deviation.

    Rows of what is no longer done are left out: those whose method has a remark in brackets. So are the published
    recipes.
    """
    return _accuracy(record, [row for row in _now(record) if not row.get("iterations")])


def _now(record: Record) -> list[Record]:
    return [row for row in record["rows"] if "(" not in row["method"]]


def published(record: Record) -> str:
    """Engine top-1 of the published recipes by scheme, ``PUBLISHED`` first and in its order, and KL in brackets.

    Those are the rows that say for how many iterations their images were optimised.
    """
    groups: dict[tuple[str, str, int, int], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in _now(record):
        if row.get("iterations"):
            own = (row["method"], row.get("correction") or "own", row["images"], row["iterations"])
            groups[own][row["scheme"]].append(row)
    schemes = sorted({scheme for found in groups.values() for scheme in found}, key=_widest_first)
    order = sorted(groups, key=lambda own: (PUBLISHED.index(own[:2]) if own[:2] in PUBLISHED else len(PUBLISHED), own))
    lines = []
    for method, correction, images, steps in order:
        found = groups[method, correction, images, steps]
        seconds = _found([row for rows in found.values() for row in rows], "calibrate_seconds")
        cells = [method, correction, str(images), str(steps), *(_with_divergence(found.get(each)) for each in schemes)]
        lines.append([*cells, f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "–"])
    head = ["recipe", "correction", "images", "iterations", *schemes, "calibration s"]
    return f"Float top-1 on the same photographs: {record['float_top1']:.1f}.\n\n{markdown(head, lines, left=(0, 1))}"


def _with_divergence(rows: list[Record] | None) -> str:
    if not rows:
        return "–"
    apart = _found(rows, "divergence")
    return _over_seeds([row["top1"] for row in rows]) + (f" ({mean(apart):.2f})" if apart else "")


def accuracy_before(record: Record) -> str:
    """The same of the other rows."""
    return _accuracy(record, [row for row in record["rows"] if "(" in row["method"]])


def _accuracy(record: Record, chosen: list[Record]) -> str:
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for row in chosen:
        own = (row["scheme"], _images(row), row["images"], row["budget"], row.get("correction") or "own")
        groups[own].append(row)
    head = [
        "scheme",
        "images",
        "number",
        "budget",
        "correction",
        "seeds",
        "engine",
        "KL",
        "fake-quant",
        "on unseen",
        "calibration s",
        "peak GiB",
    ]
    lines = []
    for (scheme, method, images, budget, correction), rows in groups.items():
        unseen, fake, apart = (_found(rows, key) for key in ("unseen_top1", "fake_quant_top1", "divergence"))
        seconds = _found(rows, "calibrate_seconds")  # left out of a row whose run was suspended
        cells = [scheme, method, str(images), budget, correction, str(len(rows))]
        cells += [_over_seeds([row["top1"] for row in rows]), f"{mean(apart):.3f}" if apart else "–"]
        cells += [_over_seeds(fake), _over_seeds(unseen), f"{mean(seconds):.0f}" if seconds else "–"]
        lines.append([*cells, f"{max(row['peak_gib'] for row in rows):.1f}"])
    lines.sort(key=lambda cells: (*_widest_first(cells[0]), cells[1], int(cells[2]), cells[3:5]))
    table = markdown(head, lines, left=(0, 1, 3, 4))
    return f"Float top-1 on the same photographs: {record['float_top1']:.1f}.\n\n{table}"


def _found(rows: list[Record], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def headline(record: Record) -> str:
    """Engine top-1 by scheme at the default budget: images from the network alone beside as many real ones."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in record["rows"]:
        shown = row["budget"] == "default" and not row.get("correction") and not row.get("iterations")
        if shown and row["images"] == HEADLINE_IMAGES and row["method"] in HEADLINE:
            found[row["scheme"]][row["method"]].append(row["top1"])
    lines = [
        [scheme, f"{record['float_top1']:.1f}", *(_with_seeds(by.get(name, [])) for name in HEADLINE)]
        for scheme, by in sorted(found.items(), key=lambda item: _widest_first(item[0]))
    ]
    head = ["scheme", "float", *(f"{HEADLINE_IMAGES} images: {text}" for text in HEADLINE.values())]
    return markdown(head, lines, left=(0,))


def _with_seeds(values: list[float]) -> str:
    return f"{_over_seeds(values)} ({len(values)})" if values else "–"


def _images(row: Record) -> str:
    steps = row.get("iterations")
    return str(row["method"]) + (f", {steps} iterations" if steps else "")


def _widest_first(text: str) -> tuple[int, int, str]:
    scheme = parse(text)
    return -scheme.weight_bits, -scheme.act_bits, text

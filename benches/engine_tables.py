"""The table of benches/cpu_engines.py."""

from __future__ import annotations

from typing import Any

from benches.markdown import markdown

Record = dict[str, Any]


def engines(record: Record) -> str:
    """Median milliseconds of every engine, one column a network and batch size, with the floor and our ratio below."""
    rows = sorted(record["rows"], key=lambda row: (row["batch"], row["gmacs"] / row["batch"]))
    head = ["engine", *(f"{row['model']}, batch {row['batch']}" for row in rows)]
    names = list(dict.fromkeys(name for row in rows for name in (*row["median_ms"], *row["failed"])))
    lines = [[name, *(_milliseconds(row, name) for row in rows)] for name in names]
    peak = record["int8_peak_gmacs"]
    lines.append(["floor: its int8 products at the peak", *(f"{1e3 * row['gmacs'] / peak:.1f}" for row in rows)])
    lines.append(["**our best / best other**", *(_ratio(row["best_ratio_as_documented"]) for row in rows)])
    lines.append(["**the same, others in lanes too**", *(_ratio(row["best_ratio"]) for row in rows)])
    threads = sorted({row["threads"] for row in rows})
    note = f"{' or '.join(map(str, threads))} threads, {rows[0]['scheme']}; milliseconds a call, medians."
    versions = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return f"{note} Peak: {peak:.0f} G int8 multiply-accumulates a second. {versions}.\n\n" + markdown(
        head, lines, left=1
    )


def _milliseconds(row: Record, name: str) -> str:
    value = row["median_ms"].get(name)
    return "failed" if name in row["failed"] else "–" if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"**{value:.2f}**"

"""The table of benches/bench_repeat.py."""

from __future__ import annotations

from typing import Any

from benches.markdown import markdown

Record = dict[str, Any]


def quality(record: Record) -> str:
    """The repeated calls and the one beside a busy process, then overhead and memory in words."""
    runs = [(f"call {number}", row) for number, row in enumerate(record["rows"], 1)]
    runs.append(("beside a busy process", record["beside_a_hog"]))
    rivals = list(record["rows"][0]["others"])
    rows = [
        [
            name,
            f"{row['float_ms']:.2f}",
            f"{row['engine_ms']:.2f}",
            f"{row['speedup']:.3f}×",
            *(f"{row['others'][rival]:.3f}×" for rival in rivals),
            _rate(row["disturbance"]["others"], 2),
            _rate(row["disturbance"]["waited"], 3),
            _rate(row["disturbance"]["switches"], 0),
            "yes" if row["disturbed"] else "no",
        ]
        for name, row in runs
    ]
    head = ["deit_s w8a8, batch 1", "FP32 ms", "W8A8 ms", "W8A8 is", *(f"beside {rival}" for rival in rivals)]
    head += ["other processes, cores", "waited s/s", "preempted /s", "flagged"]
    costs = ", ".join(
        f"{one['overhead_percent']:+.2f} % of {one['bare_ms']:.3f} ms" for one in record["overhead"].values()
    )
    memory, table = record["memory"], markdown(head, rows, left=1)
    return (
        f"{table}\n\n{record['threads']} threads. Speedups of the {len(record['rows'])} calls lie "
        f"{record['spread_percent']:.1f} % apart. The loop adds to a call: {costs}. {memory['calls']} calls leave "
        f"{memory['grown_mb']:+.2f} MB of {memory['before_mb']:.0f} MB."
    )


def _rate(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

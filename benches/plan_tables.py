"""The table of benches/trt_plans.py."""

from __future__ import annotations

from typing import Any

from benches.markdown import markdown

Record = dict[str, Any]


def plans(record: Record) -> str:
    """Megabytes of every graph and of its plan for each compute capability, and what the linter warns of."""
    rows = record["rows"]
    capabilities = sorted({row["sm"] for row in rows}, key=float)
    head = ["model", "scheme", "compute type", "graph MB", *(f"plan MB, SM {sm}" for sm in capabilities), "warnings"]
    graphs: dict[tuple[str, str, str], Record] = {}
    sizes: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in rows:
        key = (row["model"], row["scheme"], row["precision"])
        graphs[key] = row
        sizes.setdefault(key, {})[row["sm"]] = row["plan_bytes"]
    lines = [
        [
            row["model"] + (" (random weights)" if row["weights"] == "random" else ""),
            "float twin" if row["scheme"] == "float" else row["scheme"],
            row["precision"],
            f"{row['graph_bytes'] / 1e6:.1f}",
            *(f"{sizes[key][sm] / 1e6:.1f}" if sm in sizes[key] else "–" for sm in capabilities),
            ", ".join(f"`{rule}`" for rule in row["findings"]) or "none",
        ]
        for key, row in graphs.items()
    ]
    builder = ", ".join(f"{name} {version}" for name, version in record["builder"].items())
    return f"Compiled by {builder}; nothing was run.\n\n" + markdown(head, lines, left=3)

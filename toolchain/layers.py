"""What every step of the calibration did to every layer, in decibels: ``toolchain.build --report-layers``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.files import atomic_write_json


def layer_steps(report: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a step of a layer or block: ``layer``, ``step``, ``before_db``, ``after_db``, ``kept``.

    SQNR is ``-10 log10`` of the error relative to the output's energy, token by token, on images held out from the step
    (the logits' divergence for distillation). ``before_db`` is None for plain rounding: before it the layer is float.
    """
    rows: list[dict[str, Any]] = []
    for entry in report:
        layer, rejected = entry.get("layer", "network"), entry.get("rejected", [])

        def put(step: str, before: float | None, after: float, kept: bool = True, *, name: str = layer) -> None:
            rows.append(
                {"layer": name, "step": step, "before_db": decibels(before), "after_db": decibels(after), "kept": kept}
            )

        if entry["step"] == "reparameterise":
            put("reparameterise", entry["error_off"], entry["error"], entry["strength"] is not None)
        elif entry["step"] in ("allocate", "widen"):
            continue
        elif entry["step"] == "quantize":
            put("round", None, entry["error"])
            if "error_gptq" in entry:
                put("gptq", entry["error"], entry["error_gptq"], "gptq" not in rejected)
            if "correction" in entry:
                form = entry["correction"]
                put(f"correct ({form})", entry["error_uncorrected"], entry["error_corrected"], form not in rejected)
        else:
            put(entry["step"], entry["before"], entry["after"], entry["accepted"])
    return rows


def decibels(error: float | None) -> float | None:
    """``-10 log10(error)`` to two places; None of None, and 200 dB at most."""
    return None if error is None else round(-10 * math.log10(max(error, 1e-20)), 2)


def report_layers(report: list[dict[str, Any]], path: Path, console: Console) -> None:
    """Write the rows to ``path`` as JSON and show them as a table."""
    rows = layer_steps(report)
    atomic_write_json(path, rows)
    table = Table("layer", "step", "before dB", "after dB", "kept", title="SQNR on held-out images")
    for row in rows:
        before, after = (("" if row[key] is None else f"{row[key]:.1f}") for key in ("before_db", "after_db"))
        table.add_row(row["layer"], row["step"], before, after, "yes" if row["kept"] else "put back")
    console.print(table)
    console.print(f"also in {path}", highlight=False, markup=False)

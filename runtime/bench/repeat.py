"""The same measurement in several processes, one after another: what a fresh start changes, the loop cannot see."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.bench.statistics import relative_spread, summary
from runtime.bench.verdict import hints, spoken, timing_warnings
from runtime.errors import IntvitError


def in_process(arguments: Sequence[str]) -> dict[str, Any]:
    """The record of ``python -m runtime.bench`` with these arguments, run as a process of its own.

    Raises:
        IntvitError: it failed; what it said is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="intvit-") as folder:
        out = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "runtime.bench", *arguments, "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-8:]
            raise IntvitError("a process of the bench failed", where=" ".join(command), why="\n       ".join(said))
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found


def _pooled(parts: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    made = {**parts[0], **summary([value for part in parts for value in part["raw_ms"]], batch)}
    if "phases" in parts[0]:
        made["phases"] = {
            name: [value for part in parts for value in part["phases"][name]] for name in parts[0]["phases"]
        }
    return made


def pooled(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of several of the same measurement: all times together, and what each process found.

    ``processes`` lists each one's engine and baseline medians and speedup; ``rerun_spread`` is how far apart the
    speedups lie, (largest - smallest) / median. The rest is the first's; reasons and warnings are everybody's.
    """
    first, batch = records[0], int(records[0]["batch"])
    made = _pooled(records, batch)
    made["baseline"] = _pooled([record["baseline"] for record in records], batch)
    made["speedup"] = made["baseline"]["median_ms"] / made["median_ms"]
    made["others"] = []
    for place in range(min(len(record["others"]) for record in records)):
        other = _pooled([record["others"][place] for record in records], batch)
        made["others"].append({**other, "speedup": other["median_ms"] / made["median_ms"]})
    made["processes"] = [
        {"median_ms": one["median_ms"], "baseline_median_ms": one["baseline"]["median_ms"], "speedup": one["speedup"]}
        for one in records
    ]
    made["rerun_spread"] = relative_spread([record["speedup"] for record in records])
    made["settings"] = {**first["settings"], "processes": len(records)}
    reasons = [
        f"process {number}: {reason}" for number, record in enumerate(records, 1) for reason in record["disturbed"]
    ]
    made["disturbed"] = reasons
    made["disturbances"] = [record["disturbance"] for record in records]
    figures = (made, made["baseline"], *made["others"])
    made["warnings"] = [line for one in figures for line in timing_warnings(one["name"], one)]
    made["warnings"] += hints(made)
    held = {line for record in records for line in record["warnings"] if line.startswith("clock")}
    made["warnings"] += sorted(held)
    made["verdict"] = spoken(made)
    return made

"""A record as text for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from runtime.bench import sustained
from runtime.bench.contenders import CPU_BACKENDS
from runtime.bench.loop import PHASES

COLUMNS = ("", "median", "p90", "p99", "calls", "cv %", "images/s", "ratio")


def _row(figures: Mapping[str, Any], ratio: float | None) -> list[str]:
    times = [f"{figures[key]:.3f}" for key in ("median_ms", "p90_ms", "p99_ms")]
    spread = f"{100 * figures['variation']:.1f}"
    said = "" if ratio is None else f"{ratio:.2f}x"
    return [figures["name"], *times, str(len(figures["raw_ms"])), spread, f"{figures['images_s']:.1f}", said]


def _phases(figures: Mapping[str, Any]) -> str:
    parts = figures.get("phases", {})
    return ", ".join(f"{name[:-3]} {median(parts[name]):.3f}" for name in PHASES if parts.get(name))


def _energy(found: Mapping[str, Any]) -> list[str]:
    rails = " + ".join(found["rails"])
    idle = sum(found["idle_w"][rail] for rail in found["rails"])
    lines = [f"energy on {rails}, the idle {idle:.2f} W taken off (measured for {found['idle_s']:g} s before):"]
    for role, one in found["by"].items():
        gross = 1e3 * one["gross_joules_an_image"]
        lines.append(f"  {role}: {1e3 * one['joules_an_image']:.2f} mJ an image, {gross:.2f} mJ with the idle power")
    return lines


def lines(record: Mapping[str, Any]) -> list[str]:
    """Everything there is to say beside the table, the settings first, the verdict not included."""
    settings = record["settings"]
    said = [
        f"transfers: {settings['transfers']}; CUDA graph: {settings['cuda_graph']}; "
        f"spin-wait: {settings['spin_wait']}; warm-up {settings['warm_up_s']:g} s; "
        f"turns of {settings['block']} calls; {settings['processes']} process(es)"
    ]
    figures = (record, record["baseline"], *record["others"])
    parts = [f"{one['name']}: {_phases(one)} ms (medians)" for one in figures if _phases(one)]
    clock = "times: the host's clock around each call"
    no_phases = "; a CPU engine has no copies and nothing to enqueue" if record["backend"] in CPU_BACKENDS else ""
    said += parts or [clock + no_phases]
    if record["throughput"]:
        rates = ", ".join(f"{role} {rate:.1f}" for role, rate in record["throughput"].items())
        said.append(f"{record['streams']} streams at once, images/s: {rates}")
    if "rerun_spread" in record:
        ratios = ", ".join(f"{one['speedup']:.3f}x" for one in record["processes"])
        said.append(f"speedup by process: {ratios}; spread {100 * record['rerun_spread']:.1f} %")
    if record["sustained"]:
        said.append(sustained.sentence(record["sustained"]))
    if record["telemetry"]["energy"]:
        said += _energy(record["telemetry"]["energy"])
    telemetry = record["telemetry"]
    said.append(f"telemetry: {'; '.join([', '.join(telemetry['sources']) or 'none', *telemetry['absent']])}")
    return said + [f"note: {line}" for line in (*record["absent"], *record["warnings"])]


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print the times, the settings, the verdict and every reason to doubt it."""
    heading = f"{record['model']} {record['scheme']}, batch {record['batch']}, {record['threads']} thread(s), ms a call"
    table = Table(title=heading, box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_row(*_row(record, None))
    table.add_row(*_row(record["baseline"], record["speedup"]))
    for other in record["others"]:
        table.add_row(*_row(other, other["speedup"]))
    console.print(table)
    for line in lines(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    style = "bold red" if record["disturbed"] else "bold"
    console.print(record["verdict"], style=style, markup=False, highlight=False, soft_wrap=True)
    if record.get("weights"):
        console.print(f"{record['weights']}: the times are real, the predictions mean nothing", style="bold red")


def show_sweep(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one line for each combination of batch, threads and streams."""
    table = Table(title="sweep", box=SIMPLE_HEAD)
    for column in ("batch", "threads", "streams", "engine ms", "float ms", "speedup", "images/s", "disturbed"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("batch", "threads", "streams")),
            *(f"{row[key]:.3f}" for key in ("median_ms", "baseline_median_ms")),
            f"{row['speedup']:.2f}x",
            f"{row['images_s']:.1f}",
            "yes" if row["disturbed"] else "no",
        )
    console.print(table)

"""``python -m runtime.bench BUNDLE``: how long one call takes, integer engine against float, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime import cli, machine
from runtime.bench.loop import WARM_UP_S
from runtime.bench.measure import Plan, measure
from runtime.bench.repeat import in_process, pooled
from runtime.bench.show import show, show_sweep
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.files import atomic_write_json

DAY = 86_400.0  # seconds
MOST_STREAMS = 64
SWEPT = ("batch", "threads", "streams")


def counts(text: str, most: int | None = None) -> tuple[int, ...]:
    """Whole numbers from 1 to ``most`` (None: any) with commas between them.

    Raises:
        typer.BadParameter: anything else.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number of 1 or more, nor several with commas between them")
    if most is not None and max(found) > most:
        raise typer.BadParameter(f"{max(found)} is more than {most}")
    return found


def _counts_option(name: str, text: str, most: int | None = None) -> Any:
    return typer.Option(name, metavar="N[,N...]", parser=lambda given: counts(given, most), help=text)


def _on(**flags: bool | None) -> dict[str, str]:
    return {name: "on" if value else "off" for name, value in flags.items() if value is not None}


def _arguments(bundle: Path, plan: Plan, other: Path | None) -> list[str]:
    """The command line that measures ``plan`` once, in a process of its own."""
    words = [str(bundle), "--backend", plan.backend, "--batch", plan.batch, "--streams", plan.streams]
    words += ["--threads", plan.threads or machine.available_cores(), "--seconds", plan.seconds]
    words += ["--warm-up", plan.warm_up_s, "--energy", plan.energy_s, "--sustained", plan.sustained_min]
    words += [] if plan.bf16 else ["--no-bf16"]
    words += [] if other is None else ["--compare", other]
    for name, value in plan.options.items():
        words += ["--option", f"{name}={value}"]
    for name, value in plan.timing.items():
        words.append(f"--{'' if value == 'on' else 'no-'}{name.replace('_', '-')}")
    return [str(word) for word in words]


def _plans(plan: Plan, batch: tuple[int, ...], threads: tuple[int, ...], streams: tuple[int, ...]) -> Iterator[Plan]:
    for images, cores, engines in itertools.product(batch, threads or (None,), streams):
        yield replace(plan, batch=images, threads=cores, streams=engines)


def sweep_row(record: dict[str, Any]) -> dict[str, Any]:
    """One combination: what was set, medians, every time, speedup, images a second (all streams), reasons of doubt."""
    made = {key: record[key] for key in (*SWEPT, "median_ms", "p99_ms", "raw_ms", "speedup", "disturbed", "verdict")}
    made |= {f"baseline_{key}": record["baseline"][key] for key in ("median_ms", "p99_ms", "raw_ms")}
    made["images_s"] = record["throughput"].get("engine", record["images_s"])
    return made


def main(
    bundle: cli.BundleArgument,
    backend: cli.BackendOption = "ort",
    batch: Annotated[Any, _counts_option("--batch", "Images a call; several: a sweep.")] = "1",
    threads: Annotated[
        Any, _counts_option("--threads", "Of each engine; default: physical cores.", cli.MOST_THREADS)
    ] = None,
    streams: Annotated[Any, _counts_option("--streams", "Engines at once, for throughput.", MOST_STREAMS)] = "1",
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, max=DAY, help="How long to measure.")] = 5.0,
    warm_up: Annotated[float, typer.Option("--warm-up", min=0.0, max=DAY, help="Seconds before it.")] = WARM_UP_S,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes, one after another.")] = 1,
    compare: Annotated[Path | None, typer.Option("--compare", help="Another bundle to time beside it.")] = None,
    bf16: Annotated[bool, typer.Option(help="Time a BF16 twin too, where the processor has BF16.")] = True,
    sustained: Annotated[
        float, typer.Option("--sustained", min=0.0, max=DAY / 60, help="Minutes without a pause.")
    ] = 0.0,
    energy: Annotated[
        float, typer.Option("--energy", min=0.0, max=DAY, help="Seconds each for energy; 0: none.")
    ] = 3.0,
    spin_wait: Annotated[bool | None, typer.Option("--spin-wait/--no-spin-wait", help="Wait by spinning.")] = None,
    cuda_graph: Annotated[bool | None, typer.Option("--cuda-graph/--no-cuda-graph", help="On a GPU.")] = None,
    transfers: Annotated[bool | None, typer.Option("--transfers/--no-transfers", help="Time the copies.")] = None,
    option: cli.EngineOption = None,
    json: cli.JsonOption = None,
) -> None:
    """Time the integer engine interleaved with its float twin, and say in words what that means here."""
    base = Plan(
        backend=backend,
        seconds=seconds,
        warm_up_s=warm_up,
        options=cli.parse_options(option),
        timing=_on(spin_wait=spin_wait, cuda_graph=cuda_graph, transfers=transfers),
        bf16=bf16,
        sustained_min=sustained,
        energy_s=energy,
    )
    opened, other = Bundle.open(bundle), Bundle.open(compare) if compare else None
    console, records = Console(), []
    for plan in _plans(base, batch, threads or (), streams):
        if processes > 1:
            words = _arguments(bundle, plan, compare)
            records.append(pooled([in_process(words) for _ in range(processes)]))
        else:
            records.append(measure(opened, plan, other))
        show(records[-1], console)
    record = records[0]
    if len(records) > 1:
        record = {**record, "sweep": [sweep_row(one) for one in records]}
        show_sweep(record["sweep"], console)
    if json is not None:
        atomic_write_json(json, record)

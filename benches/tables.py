"""Write the measured tables into the texts: ``python -m benches.tables``; ``--check`` only says which are stale.

In README.md and docs/**/*.md a line ``<!-- generated: NAME -->`` opens a region and ``<!-- end: NAME -->`` closes it;
what stands between them is replaced by the table NAME, made from ``benches/results``, or from the sources. NAME@MACHINE
is the same table from ``benches/results/MACHINE``, where another machine's records are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benches import calibration_tables, engine_tables, gpu_tables, plan_tables, synthesis_tables
from benches.markdown import markdown
from benches.quality_tables import quality
from benches.record import RESULTS, ROOT, read_result
from runtime.cli import run
from runtime.errors import IntvitError
from runtime.files import atomic_write_text
from toolchain.rules import RULES
from toolchain.targets.choices import TARGETS

Record = dict[str, Any]
_REGION = re.compile(r"^<!-- generated: (\S+) -->\n(.*?)^<!-- end: (\S+) -->$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"^<!-- (?:generated|end): \S+ -->$", re.MULTILINE)
NOT_MEASURED = "not measured yet"


def number(value: Any, digits: int = 1) -> str:
    """A figure with a fixed number of decimals; an absent one as a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def caption(record: Record) -> str:
    """Where and when the figures come from, as one line in italics."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    flags = [flag for flag in machine["flags"] if "vnni" in flag or flag in ("amx_int8", "asimddp", "i8mm")]
    core = f"{machine['cores']} core" + ("" if machine["cores"] == 1 else "s")
    where = ", ".join([machine["cpu"], core, *flags, f"{machine['memory_gib']} GiB"])
    return f"*Measured {record['date']} on {where}; {versions}.*"


def real_accuracy(record: Record) -> str:
    """Top-1 on the photographs by scheme and calibration method."""
    head = [
        "scheme",
        "calibrated on",
        "pictures",
        "float",
        "fake-quant",
        "engine",
        "s.e. of engine − float",
        "SQNR dB",
        "free-running dB",
        "build s",
    ]
    rows = [
        [
            row["scheme"],
            row["method"],
            str(row["images"]),
            number(row["float_top1"]),
            number(row["fake_quant_top1"]),
            number(row["engine_top1"]),
            number(row["stderr"], 2),
            number(row["sqnr_db"]),
            number(row["free_sqnr_db"]),
            number(row["seconds"], 0),
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=2)


def cpu_latency(record: Record) -> str:
    """Median latencies of the float twin and the integer engine, timed interleaved."""
    head = ["model", "scheme", "batch", "threads", "float ms", "engine ms", "speedup", "weights"]
    rows = [
        [
            row["model"],
            row["scheme"],
            str(row["batch"]),
            str(row["threads"]),
            number(row["float_ms"], 2),
            number(row["engine_ms"], 2),
            f"{row['speedup']:.2f}×",
            "RANDOM" if row["weights"] == "random" else row["weights"],
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=2)


def lowering_cost(record: Record) -> str:
    """Seconds and memory of the lowering, and the size of the graphs it writes."""
    head = ["model", "scheme", "seconds", "peak GiB", "integer graph MB", "canonical MB", "float32 twin MB"]
    sizes = ("ort_bytes", "canonical_bytes", "float_bytes")
    rows = [
        [
            row["model"],
            row["scheme"],
            number(row["seconds"]),
            number(row["peak_mib"] / 1024, 2),
            *(number(row[size] / 1e6) for size in sizes),
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=2)


def build_cost(record: Record) -> str:
    """Minutes of a build and of its stages, and their peaks of memory."""
    head = ["model", "weights", "scheme", "images", "number", "budget", "threads", "whole build, min", "images, min"]
    head += ["calibration, min", "lowering, min", "peak GiB"]
    rows = [
        [
            *(row[key] for key in ("model", "weights", "scheme", "method")),
            str(row["images"]),
            row["budget"],
            str(row["threads"]),
            *(number(row[f"{what}_seconds"] / 60) for what in ("wall", "images", "calibrate", "lower")),
            number(max(row[f"{stage}_mib"] for stage in ("images", "calibrate", "lower")) / 1024),
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=(0, 1, 2, 3, 5))


def ablate_calibration(record: Record) -> str:
    """Fake-quant top-1 with one calibration step taken away at a time."""
    head = ["scheme", "calibration", "pictures", "float", "fake-quant", "seconds"]
    rows = [
        [
            row["scheme"],
            row["variant"],
            str(row["images"]),
            number(row["float_top1"]),
            number(row["fake_quant_top1"]),
            number(row["seconds"], 0),
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=2)


def accuracy_throughput(record: Record) -> str:
    """Pictures a second of an accuracy run, decoding included, against those of its models alone."""
    head = [
        "models",
        "batch",
        "threads",
        "alone /s",
        "in lanes /s",
        "with decoding /s",
        "of alone %",
        "of lanes %",
        "of lanes at best %",
        "decoding, ms a picture on one core",
    ]
    rows = [
        [
            row["models"],
            str(row["batch"]),
            str(row["threads"]),
            number(row["own_per_second"]),
            number(row.get("lanes_per_second")),
            number(row["accuracy_per_second"]),
            number(row["part"]),
            number(row.get("part_of_lanes")),
            number(row.get("possible_of_lanes")),
            number(row["decode_ms"], 2),
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=1)


def head_similarity(record: Record) -> str:
    """The inter-head loss beside its written-out form: time and peak memory of forward and backward."""
    head = ["shapes", "batch", "threads", "naive ms", "ours ms", "speedup", "naive MiB", "ours MiB", "less memory"]
    rows = [
        [
            f"{row['network']}, {row['layers']} layers, {row['heads']} heads, {row['tokens']} tokens, {row['dtype']}",
            str(row["batch"]),
            str(row["threads"]),
            number(row["naive_ms"]),
            number(row["ours_ms"]),
            f"{row['speedup']:.1f}×",
            number(row["naive_peak_mib"]),
            number(row["ours_peak_mib"]),
            f"{row['memory_ratio']:.1f}×",
        ]
        for row in record["rows"]
    ]
    return markdown(head, rows, left=1)


def lint_rules() -> str:
    """The rules of ``toolchain.lint``: what each means on each target, then why and what to do."""
    rows = [
        [f"`{rule.id}`", rule.title, *(rule.verdicts[t].severity if t in rule.verdicts else "–" for t in TARGETS)]
        for rule in RULES
    ]
    reasons = []
    for rule in RULES:
        reasons.append(f"**{rule.id}.** " + " ".join(f"*{t}*: {_sentence(v.why)}" for t, v in rule.verdicts.items()))
        reasons.append(f"→ {_sentence(rule.next)}\n")
    return markdown(["rule", "it finds", *TARGETS], rows, left=5) + "\n\n" + "\n".join(reasons).rstrip()


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."


TABLES: dict[str, Callable[[Record], str]] = {
    "real_accuracy": real_accuracy,
    "bench_quality": quality,
    "cpu_latency": cpu_latency,
    "cpu_engines": engine_tables.engines,
    "lowering_cost": lowering_cost,
    "build_cost": build_cost,
    "accuracy_throughput": accuracy_throughput,
    "ablate_calibration": ablate_calibration,
    "calibration_accuracy": calibration_tables.accuracy,
    "calibration_before": calibration_tables.accuracy_before,
    "calibration_headline": calibration_tables.headline,
    "calibration_published": calibration_tables.published,
    "synthesis_accuracy": synthesis_tables.accuracy,
    "synthesis_sets": synthesis_tables.sets,
    "synthesis_speed": synthesis_tables.speed,
    "head_similarity": head_similarity,
    "trt_plans": plan_tables.plans,
    "gpu_kernels": gpu_tables.layers,
    "gpu_blocks": gpu_tables.blocks,
    "gpu_bench": gpu_tables.bench,
}
SOURCES: dict[str, Callable[[], str]] = {"lint_rules": lint_rules}  # tables for which nothing is measured
# tables made from the record of another name
RECORDS = {
    "calibration_before": "calibration_accuracy",
    "calibration_headline": "calibration_accuracy",
    "calibration_published": "calibration_accuracy",
    "synthesis_sets": "synthesis_accuracy",
    "gpu_blocks": "gpu_kernels",
}


def render(name: str, results: Path = RESULTS) -> str:
    """The text of the table ``name``, or ``name@machine``: caption and table, or a line that says it is not measured.

    Raises:
        IntvitError: no table of that name.
    """
    if name in SOURCES:
        return SOURCES[name]()
    table, _, machine = name.partition("@")
    if table not in TABLES:
        known = ", ".join([*TABLES, *SOURCES])
        raise IntvitError(f"no table is called {name!r}", where="benches/tables.py", next=f"known: {known}")
    record = read_result(RECORDS.get(table, table), results / machine)
    if record is None or not record.get("rows"):
        own = (
            f"python -m benches.{RECORDS.get(table, table)} --device cuda" if table.startswith("gpu_") else "make bench"
        )
        return f"*{name}: {NOT_MEASURED} (`{own}`).*"
    return f"{caption(record)}\n\n{TABLES[table](record)}"


def refresh(text: str, where: str, results: Path = RESULTS) -> str:
    """``text`` with every generated region written anew.

    Raises:
        IntvitError: a region that is not closed, is closed under another name, or names no table.
    """

    def fill(match: re.Match[str]) -> str:
        name, end = match[1], match[3]
        if name != end:
            raise IntvitError(f"the region {name!r} is closed as {end!r}", where=where)
        return f"<!-- generated: {name} -->\n{render(name, results)}\n<!-- end: {name} -->"

    if len(_MARKER.findall(text)) != 2 * len(_REGION.findall(text)):
        raise IntvitError(
            "generated regions that do not pair up",
            where=where,
            next="close each with <!-- end: NAME -->, on a line of its own",
        )
    return _REGION.sub(fill, text)


def texts(root: Path) -> Iterator[Path]:
    """README.md and every markdown file under docs, where they exist."""
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        if path.is_file():
            yield path


def update(root: Path = ROOT, results: Path = RESULTS, check: bool = False) -> list[Path]:
    """Rewrite the regions of every text; with ``check`` write nothing. Returns the texts that were stale."""
    stale = []
    for path in texts(root):
        old = path.read_text("utf-8")
        new = refresh(old, path.relative_to(root).as_posix(), results)
        if new != old:
            stale.append(path)
            if not check:
                atomic_write_text(path, new)
    return stale


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 when a table is stale.")] = False,
) -> None:
    """Regenerate the measured tables of README.md and docs."""
    stale = update(check=check)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'stale' if check else 'written'}")
    if check and stale:
        raise IntvitError("tables are stale", next="make docs")
    print(f"{len(list(texts(ROOT)))} texts read, {len(stale)} {'stale' if check else 'rewritten'}")


if __name__ == "__main__":
    run(main)

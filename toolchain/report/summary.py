"""The figures of a report's tables, as texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.manifest import Layer
from toolchain.layers import layer_steps
from toolchain.report.gather import Json, Measured, command

FLOAT = "float32"  # what a twin computes in unless its record says otherwise
TIMED = ("bench", "accuracy")  # the kinds of records that have a float twin
KINDS = ("qkv", "proj", "fc1", "fc2")
DB_LOW, DB_HIGH = 10.0, 50.0  # decibels at the ends of the heat map's colours


@dataclass(frozen=True)
class Headline:
    """One row of the headline table; ``missing`` is the command that would measure it, empty where it is measured."""

    what: str
    integer: str = ""
    floating: str = ""
    ratio: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of the heat map: decibels, and the share (0..1) of the way from the worst colour to the best."""

    db: float | None

    @property
    def part(self) -> float:
        """0 at 10 dB and below, 1 at 50 dB and above."""
        return min(1.0, max(0.0, ((self.db or 0.0) - DB_LOW) / (DB_HIGH - DB_LOW)))


@dataclass(frozen=True)
class Point:
    """A bundle in a comparison: milliseconds an image, and top-1 in percent with its data's size."""

    name: str
    ms: float
    top1: float
    how: str


def headline(found: Measured) -> list[Headline]:
    """Size, latency, accuracy, energy, parity, integer share: measured, or what to type."""
    return [
        *_size(found),
        *_latency(found),
        *_accuracy(found),
        *_energy(found),
        *_parity(found),
        *_integer(found),
    ]


def _missing(found: Measured, what: str, kind: str, more: str = "") -> Headline:
    return Headline(what, missing=command(kind, found.bundle) + more)


def _size(found: Measured) -> Iterator[Headline]:
    files = found.bundle.manifest.files
    twin = next(entry.bytes for entry in files if entry.role == "float_twin")
    for entry in files:
        if entry.role == "graph":
            ratio = f"{twin / entry.bytes:.2f}× smaller" if entry.bytes < twin else f"{entry.bytes / twin:.2f}× larger"
            yield Headline(f"size on disk, {entry.target}", megabytes(entry.bytes), megabytes(twin), ratio)


def megabytes(size: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{size / 1e6:.2f} MB"


def _latency(found: Measured) -> Iterator[Headline]:
    for record in found.by_kind["bench"]:
        mine, other = record["median_ms"], record["baseline"]["median_ms"]
        ratio = f"{other / mine:.2f}× as fast" if mine < other else f"{mine / other:.2f}× the time"
        yield Headline(f"latency, median, {how(record)}", f"{mine:.3f} ms", f"{other:.3f} ms{_unlike(record)}", ratio)
    if not found.by_kind["bench"]:
        yield _missing(found, "latency", "bench")


def how(record: Json) -> str:
    """Backend with its options, batch and threads of a bench record."""
    count = record["threads"]
    return f"{engine(record)}, batch {record['batch']}, {count} thread{'' if count == 1 else 's'}"


def engine(record: Json) -> str:
    """Backend of a bench or accuracy record, with the options that were set: another precision is another engine."""
    given = (record.get("settings") or record).get("options") or {}
    options = " ".join(f"{name}={value}" for name, value in sorted(given.items()) if name != "cache_dir")
    return f"{record['backend']} {options}".rstrip()


def twin(record: Json) -> str:
    """What the float twin of a bench or accuracy record computed in."""
    return str(record.get("baseline", {}).get("precision") or record.get("twin_precision") or FLOAT)


def floating(found: Measured) -> str:
    """What to call the float side of all records together: "float" where one of them is not float32, and says so."""
    return FLOAT if all(twin(record) == FLOAT for kind in TIMED for record in found.by_kind[kind]) else "float"


def _unlike(record: Json) -> str:
    """Says what a twin computed in that is not float32."""
    return "" if twin(record) == FLOAT else f" ({twin(record)})"


def _accuracy(found: Measured) -> Iterator[Headline]:
    records, reported = found.by_kind["accuracy"], found.bundle.manifest.reported
    for record in records:
        lost = record["top1"] - record["baseline_top1"]
        note = f"{lost:+.2f} points (s.e. {record['stderr']:.2f})"
        what = f"top-1 on {record['images']} pictures, {engine(record)}"
        yield Headline(what, f"{record['top1']:.2f} %", f"{record['baseline_top1']:.2f} %{_unlike(record)}", note)
    if not records and reported:
        lost = reported["engine_top1"] - reported["float_top1"]
        note = f"{lost:+.2f} points (s.e. {reported['stderr']:.2f})"
        what = f"top-1 on {reported['images']} pictures, at build"
        yield Headline(what, f"{reported['engine_top1']:.2f} %", f"{reported['float_top1']:.2f} %", note)
    elif not records:
        yield _missing(found, "accuracy", "accuracy")


def _energy(found: Measured) -> Iterator[Headline]:
    measured = False
    for record in found.by_kind["bench"]:
        energy = (record.get("telemetry") or {}).get("energy") or {}
        by = energy.get("by", {})
        if "engine" in by and "baseline" in by:
            mine, other = (1e3 * by[role]["joules_an_image"] for role in ("engine", "baseline"))
            ratio = f"{other / mine:.2f}× less" if 0 < mine < other else f"{mine / other:.2f}×" if other > 0 else ""
            rails = " + ".join(energy.get("rails", []))
            what = f"energy an image over idle, {rails}, {how(record)}"
            yield Headline(what, f"{mine:.2f} mJ", f"{other:.2f} mJ{_unlike(record)}", ratio)
            measured = True
    if not measured and found.by_kind["bench"]:
        yield Headline("energy an image", "–", "–", _no_energy(found.by_kind["bench"]))
    elif not measured:
        yield _missing(found, "energy an image", "bench")


def _no_energy(records: list[Json]) -> str:
    samples = [sample for record in records for sample in (record.get("telemetry") or {}).get("samples", [])]
    if any(sample.get("power_w") for sample in samples):
        return "not measured: it was left out (--energy 0), or no sensor stands for the whole machine"
    return "no power sensor was found on the machine that was timed"


def _parity(found: Measured) -> Iterator[Headline]:
    for record in found.by_kind["ladder"]:
        state = "the same integers" if record["ok"] else "FAILED"
        yield Headline(f"parity with the calibrated model, {record['backend']}", state, "", record["verdict"])
    if not found.by_kind["ladder"]:
        yield _missing(found, "parity with the calibrated model", "ladder")


def _integer(found: Measured) -> Iterator[Headline]:
    for record in found.by_kind["inspect"]:
        share = f"{100 * record['integer_mac_fraction']:.1f} %"
        what = f"layer MACs run as integers, {record['backend']}"
        yield Headline(what, share, "0 %", "; ".join(record["warnings"]))
    if not found.by_kind["inspect"]:
        yield _missing(found, "layer MACs run as integers", "inspect")


def heat_map(found: Measured) -> tuple[list[tuple[str, list[Cell]]], list[tuple[str, Cell]]]:
    """Rows of (block, cells in the order of :data:`KINDS` and after the block), and the layers outside of blocks.

    A layer's figure is its own error on held-out images after the last step of the calibration that was kept; the last
    cell is the residual stream after the block, both networks running freely.
    """
    own: dict[str, float] = {}
    for row in layer_steps(found.bundle.manifest.provenance.get("calibration", [])):
        if row["step"] in ("round", "gptq") or row["step"].startswith("correct"):
            value = row["after_db"] if row["kept"] else row["before_db"]
            if value is not None:
                own[row["layer"]] = value
    blocks = (found.network or {}).get("blocks", [])
    stream = {block["name"]: block["sqnr_db"] for block in blocks}
    rows: dict[str, dict[str, Layer]] = {}
    outside = []
    for layer in found.bundle.manifest.layers:
        block = layer.name.rpartition(".")[0].rpartition(".")[0]
        if layer.kind in KINDS:
            rows.setdefault(block, {})[layer.kind] = layer
        elif layer.name in own:
            outside.append((layer.name, Cell(own[layer.name])))
    table = []
    for block, layers in rows.items():
        cells = [Cell(own.get(layers[kind].name)) if kind in layers else Cell(None) for kind in KINDS]
        table.append((block, [*cells, Cell(stream.get(block))]))
    return table, outside


def points(all_found: list[Measured]) -> list[Point]:
    """Every pair of a bench record and the accuracy of its engine (or the one at build), bundle by bundle."""
    found = []
    for one in all_found:
        top1 = {engine(record): record["top1"] for record in one.by_kind["accuracy"]}
        built = one.bundle.manifest.reported.get("engine_top1")
        for record in one.by_kind["bench"]:
            value = top1.get(engine(record), built)
            if value is not None:
                ms = record["median_ms"] / record["batch"]
                found.append(Point(one.bundle.manifest.name, ms, value, how(record)))
    return found


def made(found: Measured) -> list[tuple[str, str]]:
    """How the bundle was made, as pairs of name and text."""
    manifest = found.bundle.manifest
    provenance: dict[str, Any] = manifest.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    rows = [
        ("model", f"{manifest.model}, timm {manifest.timm_tag}"),
        ("scheme", manifest.scheme),
        ("weights", f"{manifest.weights}, sha256 {provenance.get('weights_sha256', '')}"),
        ("calibration images", f"{manifest.images}, method {manifest.method}, seed {manifest.seed}"),
        ("data-free", "yes: no real image was read" if manifest.data_free else "NO: real images were read"),
        ("versions", versions),
        ("bundle sha256", found.bundle.sha256),
    ]
    if found.cost:
        spent = ", ".join(
            f"{stage} {one['seconds']:.0f} s, {one['peak_mib'] / 1024:.1f} GiB"
            for stage, one in found.cost.items()
            if one
        )
        rows.append(("what the build took", spent))
    if provenance.get("command"):
        rows.append(("again", provenance["command"]))
    return rows

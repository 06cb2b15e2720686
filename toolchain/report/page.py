"""The page itself: what was gathered, put into the template. Whatever a file said is escaped (jinja2 autoescape)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calib.preview import MOST
from runtime.machine import version_of
from toolchain.report import figures, summary
from toolchain.report.gather import REPORTS, Json, Measured, command


def render(found: Sequence[Measured]) -> str:
    """One HTML page of the bundles, in order; with two or more also a comparison of them."""
    environment = Environment(
        loader=PackageLoader("toolchain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    points = summary.points(list(found)) if len(found) > 1 else []
    parts = [section(one, f"b{place}") for place, one in enumerate(found, 1)]
    return environment.get_template("page.html.j2").render(
        title=", ".join(part["name"] for part in parts),
        parts=parts,
        pareto=Markup(figures.pareto(points, "pareto")) if points else "",
        comparison=comparison(found),
        kinds=summary.KINDS,
        intvit=version_of("intvit"),
    )


def comparison(found: Sequence[Measured]) -> list[tuple[str, list[summary.Headline | None]]]:
    """Rows of (what, one headline a bundle or None), in the order they are first met; none for a single bundle."""
    if len(found) < 2:
        return []
    columns = [{row.what: row for row in summary.headline(one)} for one in found]
    return [(what, [column.get(what) for column in columns]) for what in dict.fromkeys(w for c in columns for w in c)]


def section(found: Measured, prefix: str) -> dict[str, Any]:
    """What the template shows of one bundle; ``prefix`` begins its ids."""
    bundle, manifest = found.bundle, found.bundle.manifest
    rows, outside = summary.heat_map(found)
    return {
        "id": prefix,
        "name": manifest.name,
        "random": manifest.weights == "random",
        "data_free": manifest.data_free,
        "headline": summary.headline(found),
        "verdicts": [text for record in found.by_kind["bench"] if (text := verdict(record))],
        "preview": figures.preview(bundle.file("preview")),
        "method": manifest.method,
        "images": manifest.images,
        "shown": min(manifest.images, MOST),
        "synthesis": Markup(figures.synthesis(found.synthesis, f"{prefix}-synthesis")) if found.synthesis else "",
        "attention": attention(found),
        "noted": found.network is not None,
        "notes": f"{REPORTS}/network.json",
        "heat": rows,
        "heat_outside": outside,
        "inspect": [executed(record) for record in found.by_kind["inspect"]],
        "ladder": [
            record | {"figure": Markup(figures.ladder(record, f"{prefix}-ladder{place}"))}
            for place, record in enumerate(found.by_kind["ladder"])
        ],
        "bench": [timing(record, f"{prefix}-bench{place}") for place, record in enumerate(found.by_kind["bench"])],
        "floating": summary.floating(found),
        "accuracy": [
            record | {"engine": summary.engine(record), "twin": summary.twin(record)}
            for record in found.by_kind["accuracy"]
        ],
        "made": summary.made(found),
        "files": manifest.files,
        "ignored": found.ignored,
        "command": {kind: command(kind, bundle) for kind in found.by_kind},
    }


def attention(found: Measured) -> dict[str, Any] | None:
    """The first golden image and its maps, block by block; None where the build noted none."""
    if not found.network or not found.network.get("attention"):
        return None
    rule = found.bundle.manifest.preprocess
    return {
        "image": figures.first_image(found.bundle.golden().images, rule.mean, rule.std),
        "blocks": [
            {
                "number": entry["block"] + 1,
                "rows": [
                    (name, [figures.attention_map(values, entry["grid"]) for values in entry[key]])
                    for name, key in (("float", "float"), ("integer", "integer"))
                ],
            }
            for entry in found.network["attention"]
        ],
    }


def executed(record: Json) -> dict[str, Any]:
    """Layers of one inspection by kernel, and row by row."""
    macs: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for row in record["layers"]:
        macs[row["executed_as"]] += row["macs"]
        count[row["executed_as"]] += 1
    total = max(sum(macs.values()), 1)
    kernels = [(name, count[name], 100 * value / total) for name, value in macs.most_common()]
    return {
        "backend": record["backend"],
        "share": 100 * record["integer_mac_fraction"],
        "kernels": kernels,
        "layers": record["layers"],
        "warnings": record["warnings"],
    }


def verdict(record: Json) -> str:
    """What the bench said in words; an empty text where it said nothing."""
    said = record.get("verdict", "")
    return said if isinstance(said, str) else " ".join(map(str, said))


def timing(record: Json, prefix: str) -> dict[str, Any]:
    """One bench record: its table, the distribution, the sensors, and every reason to doubt it."""
    parts = [("integer engine", record), (summary.twin(record), record["baseline"])]
    parts += [(other.get("name", "other"), other) for other in record.get("others", [])]
    telemetry = record.get("telemetry") or {}
    return {
        "how": summary.how(record),
        "rows": [(name, part) for name, part in parts],
        "figure": Markup(figures.latency(record, prefix)),
        "timeline": Markup(figures.timeline(telemetry.get("samples", []), f"{prefix}-sensors")),
        "absent": record.get("absent", []),
        "doubts": [*record.get("disturbed", []), *record.get("warnings", [])],
        "machine": (record.get("machine") or {}).get("cpu", ""),
        "date": record.get("date", ""),
    }

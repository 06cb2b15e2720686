"""Everything a report is made from: the bundle, and the JSON files other verbs have left in its ``reports/``.

A file counts by how its name begins: ``reports/bench*.json``, ``accuracy*.json``, ``ladder*.json``,
``inspect*.json``. The manifest does not list them, so each says which bundle it was measured on, and one of another
bundle is left out by name (docs/decisions/0019).
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import IntvitError
from toolchain.targets.choices import backend_option

Json = dict[str, Any]
REPORTS = "reports"
# What a file of each kind must hold to be read at all.
KINDS = {
    "bench": ("backend", "batch", "threads", "median_ms", "raw_ms", "baseline", "speedup"),
    "accuracy": ("backend", "top1", "top5", "images", "baseline_top1", "agreement", "stderr"),
    "ladder": ("backend", "ok", "verdict", "rungs"),
    "inspect": ("backend", "integer_mac_fraction", "layers", "warnings"),
}


@dataclass(frozen=True)
class Measured:
    """One bundle and what has been measured of it.

    Attributes:
        by_kind: the records of each kind of :data:`KINDS`, by file name; empty where there are none.
        network, synthesis: what the build noted of the network and of the synthesis (:mod:`toolchain.traces`).
        cost: what the stages of the build took. ignored: a line for each file that was left out.
    """

    bundle: Bundle
    by_kind: dict[str, list[Json]]
    network: Json | None
    synthesis: Json | None
    cost: Json | None
    ignored: tuple[str, ...]


def gather(path: Path) -> Measured:
    """Open the bundle at ``path`` and read what lies in its ``reports/``.

    Raises:
        IntvitError: the bundle does not verify, or a file there, or its ``cost.json``, is no JSON object of its kind.
    """
    bundle = Bundle.open(path)
    by_kind: dict[str, list[Json]] = {}
    ignored = []
    for kind, keys in KINDS.items():
        by_kind[kind] = []
        for file in sorted((path / REPORTS).glob(f"{kind}*.json")):
            record = _read(file)
            if record is None:
                continue
            if record.get("bundle") != bundle.sha256:
                ignored.append(f"{REPORTS}/{file.name} was measured on another bundle, or before this one was rebuilt")
            elif lacking := [key for key in keys if key not in record]:
                raise IntvitError(
                    f"{kind} file without {', '.join(lacking)}",
                    where=str(file),
                    next=f"write it again: {command(kind, bundle)}, or remove it",
                )
            else:
                by_kind[kind].append(record)
    return Measured(
        bundle=bundle,
        by_kind=by_kind,
        network=_read(path / REPORTS / "network.json"),
        synthesis=_read(path / REPORTS / "synthesis.json"),
        cost=_cost(path / "cost.json"),
        ignored=tuple(ignored),
    )


def command(kind: str, bundle: Bundle) -> str:
    """What to type for a file of that kind."""
    verb, option = {
        "bench": ("runtime.bench", ""),
        "accuracy": ("runtime.accuracy", " --data DIR"),
        "ladder": ("runtime.parity", " --ladder"),
        "inspect": ("toolchain.inspect", ""),
    }[kind]
    path, out = (shlex.quote(str(one)) for one in (bundle.root, bundle.root / REPORTS / f"{kind}.json"))
    return f"python -m {verb} {path}{backend_option(bundle.targets)}{option} --json {out}"


def _cost(path: Path) -> Json | None:
    """What each stage of the build took: for each that has any, ``seconds`` and ``peak_mib`` are numbers.

    Raises:
        IntvitError: they are not.
    """
    cost = _read(path)
    for stage, one in (cost or {}).items():
        figures = [one.get(key) if isinstance(one, dict) else None for key in ("seconds", "peak_mib")]
        if one and not all(isinstance(value, int | float) and 0 <= value < 1e12 for value in figures):
            why = f"{stage!r} has no sound seconds and peak_mib"
            raise IntvitError("cannot read what the build took", where=str(path), why=why, next="remove it")
    return cost


def _read(path: Path) -> Json | None:
    """The JSON object in a file; None where there is no file.

    Raises:
        IntvitError: it holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe might never end
            why = "it is a folder, a pipe or a device"
            raise IntvitError("cannot read a measurement", where=str(path), why=why, next="remove it")
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise IntvitError("cannot read a measurement", where=str(path), why=str(error), next="remove it") from error
    if not isinstance(record, dict):
        why = f"it holds a {type(record).__name__}, not an object"
        raise IntvitError("cannot read a measurement", where=str(path), why=why, next="remove it")
    return record

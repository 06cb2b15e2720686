"""How a measurement is kept: with the machine, the versions, the commit, the date and the seeds it belongs to.

A record is ``benches/results/<name>.json``, or ``benches/results/<machine>/<name>.json`` of another machine than most:
``INTVIT_RESULTS=benches/results/<machine>`` has a bench write there. A script that measures rows one after another
saves each at once with :func:`write_result` and finds the earlier ones with :func:`kept_rows`; rows of another machine
or of other versions are never mixed into one record.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.schema import check_record
from runtime import machine
from runtime.errors import IntvitError
from runtime.files import atomic_write_json

ROOT = Path(__file__).resolve().parent.parent
# Where records are read and written; another folder lets a bench be repeated beside the committed ones.
RESULTS = Path(os.environ.get("INTVIT_RESULTS") or ROOT / "benches" / "results")
PACKAGES = ("torch", "timm", "onnx", "onnx-ir", "onnxruntime", "numpy", "pillow")


def describe_machine() -> dict[str, Any]:
    """CPU model, physical cores this process may use, the integer instruction sets, memory in GiB, system."""
    return {
        "cpu": machine.cpu_model(),
        "cores": machine.available_cores(),
        "flags": machine.integer_flags(),
        "memory_gib": round(machine.memory_bytes()[0] / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages a figure may depend on; a package that is not installed is left out."""
    found = {name: machine.version_of(name) for name in PACKAGES}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}


def git_commit(root: Path = ROOT) -> str:
    """The commit of the checkout, with ``-dirty`` when something but the results differs; empty outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":!benches/results")
    except OSError:
        return ""
    return commit + ("-dirty" if changed else "")


def today() -> str:
    """The date in UTC, year-month-day."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def write_result(
    name: str,
    payload: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (),
    hashes: Mapping[str, str] | None = None,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Save ``payload`` with everything that dates it as ``results/<name>.json``, whole or not at all.

    Args:
        name: of the record, without extension. payload: the figures, under keys of its own.
        seeds: every seed the figures depend on. hashes: sha256 of what was measured, by name. results: the folder.

    Returns:
        What was written.

    Raises:
        IntvitError: the record does not follow :mod:`benches.schema`, or cannot be written.
    """
    record = {
        "name": name,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "commit": git_commit(),
        "date": today(),
        "seeds": list(seeds),
        "hashes": dict(hashes or {}),
        **payload,
    }
    path = results / f"{name}.json"
    atomic_write_json(path, check_record(record, path))
    return record


def read_result(name: str, results: Path = RESULTS) -> dict[str, Any] | None:
    """The record of that name, or None when it has not been measured.

    Raises:
        IntvitError: the file is there but does not follow :mod:`benches.schema`.
    """
    path = results / f"{name}.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise IntvitError("not a record", where=str(path), why=str(error), next="measure it again") from error
    return check_record(record, path)


def kept_rows(
    name: str, key: Sequence[str], force: bool, results: Path = RESULTS
) -> tuple[list[dict[str, Any]], set[tuple[Any, ...]]]:
    """The rows measured earlier that a new run may stand beside, and of those not to be measured again the ``key``.

    Args:
        key: the fields that tell rows apart.
        force: measure everything again, and start anew rather than complain when the machine or a version has changed.

    Raises:
        IntvitError: the earlier rows belong to another machine or to other versions, and ``force`` is off.
    """
    record = read_result(name, results)
    if record is None:
        return [], set()
    here = {"machine": describe_machine(), "versions": describe_versions()}
    other = [key for key, value in here.items() if record.get(key) != value]
    if not other:
        rows = list(record.get("rows", []))
        return rows, set() if force else {tuple(row.get(field) for field in key) for row in rows}
    if force:
        return [], set()
    raise IntvitError(
        f"the rows of {name} were measured on another machine or with other versions",
        where=str(results / f"{name}.json"),
        why=f"recorded {record.get(other[0])}, here {here[other[0]]}",
        next="measure all of them here: add --force",
    )


def put_row(rows: list[dict[str, Any]], row: Mapping[str, Any], key: Sequence[str]) -> list[dict[str, Any]]:
    """``rows`` with ``row`` in place of the one that agrees with it in the fields ``key``, or at the end."""
    same = [all(old.get(field) == row.get(field) for field in key) for old in rows]
    stamped = {**row, "commit": git_commit(), "date": today()}
    if True in same:
        return [stamped if match else old for match, old in zip(same, rows, strict=True)]
    return [*rows, stamped]

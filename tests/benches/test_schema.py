"""One form for every committed record, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benches import record, tables
from benches.schema import check_record
from runtime.errors import IntvitError

COMMITTED = sorted(record.RESULTS.rglob("*.json"))
GOOD: dict[str, Any] = {
    "name": "x",
    "machine": {"cpu": "c", "cores": 2, "flags": [], "memory_gib": 4.0, "system": "Linux", "gpu": "may stand here"},
    "versions": {"python": "3.11.7"},
    "commit": "a" * 40 + "-dirty",
    "date": "2026-11-21",
    "seeds": [0],
    "hashes": {"bundle": "b" * 64},
    "rows": [{"ms": 1.5, "date": "2026-11-20", "commit": "a" * 40}],
    "model": "of the bench's own",
}


@pytest.mark.parametrize("path", COMMITTED, ids=[path.relative_to(record.RESULTS).as_posix() for path in COMMITTED])
def test_every_committed_record_fits_and_has_a_table(path: Path) -> None:
    found = check_record(json.loads(path.read_text("utf-8")), path)
    assert found["rows"]
    shown = {tables.RECORDS.get(name, name) for name in tables.TABLES}
    assert path.stem in shown, "a record that no table shows: add one to benches/tables.py"


def test_there_are_records() -> None:
    assert len(COMMITTED) >= 8


def test_a_good_one_is_given_back() -> None:
    assert check_record(GOOD, Path("x.json")) is GOOD


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"machine": {"cpu": "c"}}, "machine.cores"),
        ({"versions": {"torch": "2"}}, "python"),
        ({"versions": {"python": "3", "torch": ""}}, "version"),
        ({"commit": "deadbeef"}, "commit"),
        ({"date": "21.11.2026"}, "date"),
        ({"date": 20261121}, "date"),
        ({"seeds": ["0"]}, "seeds.0"),
        ({"hashes": {"bundle": "short"}}, "hashes.bundle"),
        ({"rows": {}}, "rows"),
        ({"rows": [{"date": "2026-11-22"}]}, "younger"),
        ({"rows": [{"ms": float("nan")}]}, "ms is nan"),
        ({"name": "y"}, "calls itself 'y'"),
    ],
)
def test_a_bad_one_is_refused_by_the_fault(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(IntvitError) as caught:
        check_record({**GOOD, **change}, Path("x.json"))
    assert fault in caught.value.why


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(IntvitError, match="not a record"):
        check_record([], Path("x.json"))


def test_a_record_is_checked_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="not a record"):
        record.write_result("x", {"rows": [{"ms": float("inf")}]}, results=tmp_path)
    assert not list(tmp_path.iterdir())
    record.write_result("x", {"rows": []}, hashes={"weights": "c" * 64}, results=tmp_path)
    assert record.read_result("x", tmp_path)["hashes"] == {"weights": "c" * 64}  # type: ignore[index]

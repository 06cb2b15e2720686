"""The one form of every record in ``benches/results``: what was measured, on what, with what, from what, and when."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from runtime.errors import IntvitError

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}(-dirty)?)?$")]
Row = dict[str, Any]


class Machine(BaseModel):
    """Where it was measured; what a bench adds (a GPU) may stand beside. ``cores`` are those the process could use."""

    model_config = ConfigDict(extra="allow", strict=True)
    cpu: str = Field(min_length=1)
    cores: int = Field(ge=1)
    flags: list[str]
    memory_gib: float = Field(gt=0)
    system: str = Field(min_length=1)


class ResultRecord(BaseModel):
    """A record: the fixed keys below, and the bench's own beside them.

    Attributes:
        name: the file's, without extension. versions: of Python and every package the figures may depend on.
        commit: of the checkout, ``-dirty`` where it was changed; empty outside git.
        date: UTC, year-month-day. seeds: every seed the figures depend on.
        hashes: sha256 of what was measured (a bundle, weights, a data set), by name.
        rows: the figures; a row measured at another time than the record has a ``commit`` and ``date`` of its own.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    name: str = Field(min_length=1)
    machine: Machine
    versions: dict[str, str]
    commit: Commit
    date: str
    seeds: list[int]
    hashes: dict[str, Sha256] = Field(default_factory=dict)
    rows: list[Row]

    @field_validator("versions")
    @classmethod
    def _python_is_named(cls, versions: dict[str, str]) -> dict[str, str]:
        if "python" not in versions or not all(versions.values()):
            raise ValueError("python and every package needs a version")
        return versions

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, date: str) -> str:
        return _day(date)

    @model_validator(mode="after")
    def _rows_are_dated_and_finite(self) -> ResultRecord:
        for place, row in enumerate(self.rows):
            if "date" in row and _day(row["date"]) > self.date:
                raise ValueError(f"row {place} is younger than the record")
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"row {place}: {key} is {value}")
        return self


def _day(text: Any) -> str:
    """``text``, if it is a day as ``datetime.date`` writes it."""
    if not isinstance(text, str) or datetime.date.fromisoformat(text).isoformat() != text:
        raise ValueError(f"{text!r} is no year-month-day")
    return text


def check_record(raw: Any, where: Path) -> dict[str, Any]:
    """``raw``, a parsed JSON file, once it is found to be a record named as its file.

    Raises:
        IntvitError: it is not; every fault is named.
    """
    try:
        name = ResultRecord.model_validate(raw).name
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}" for one in error.errors()]
        why = "; ".join(faults[:5]) + ("; ..." if len(faults) > 5 else "")
        raise IntvitError("not a record", where=str(where), why=why, next="measure it again") from error
    if name != where.stem:
        raise IntvitError("a record under another name", where=str(where), why=f"it calls itself {name!r}")
    found: dict[str, Any] = raw
    return found

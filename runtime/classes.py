"""The class list of a bundle: what each logit means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import IntvitError


@dataclass(frozen=True)
class Classes:
    """Class ids (WordNet id, or the class index as text) and readable names, both in logit order."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def index_of(self, folder: str) -> int | None:
        """The logit index of a folder named by class id or by class index, or None when it is neither.

        An id that is listed wins over reading the name as a number.
        """
        if folder in self.ids:
            return self.ids.index(folder)
        if folder.isascii() and folder.isdigit() and int(folder) < len(self.ids):
            return int(folder)
        return None


def _texts(value: object, count: int) -> tuple[str, ...] | None:
    if isinstance(value, list) and len(value) == count and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None


def load_classes(path: Path, count: int) -> Classes:
    """Read ``{"ids": [...], "names": [...]}`` with ``count`` texts in each, ids all different.

    Raises:
        IntvitError: the file is not that.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IntvitError("cannot read the class list", where=str(path), why=str(error)) from error
    ids = _texts(raw.get("ids"), count) if isinstance(raw, dict) else None
    names = _texts(raw.get("names"), count) if isinstance(raw, dict) else None
    if ids is None or names is None or len(set(ids)) != count:
        why = f"it must hold ids (all different) and names, {count} texts each"
        raise IntvitError("the class list is malformed", where=str(path), why=why, next="build the bundle again")
    return Classes(ids, names)

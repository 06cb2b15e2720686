"""The one error a person is meant to read: what happened, where, why, and what to do next.

The same text stands in ``calib/errors.py`` and ``runtime/errors.py``, because neither package may import the other;
a test holds the two files equal (docs/decisions/0001-one-error-two-homes.md).
"""

from __future__ import annotations


class IntvitError(Exception):
    """An error with enough in it to act on.

    Args:
        what: one sentence, what went wrong.
        where: the file, module, layer or option it went wrong at; empty when there is no such place.
        why: the likely cause, with the value received.
        next: the command or change that mends it.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.next = next

    def render(self) -> str:
        """The message as plain text, a line a part; parts that are empty are left out."""
        parts = [("error", self.what), ("where", self.where), ("why", self.why), ("next", self.next)]
        return "\n".join(f"{name:>5}: {text}" for name, text in parts if text)

    def __str__(self) -> str:
        return self.render()

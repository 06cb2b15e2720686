"""Markdown tables, for every bench."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int | Collection[int]) -> str:
    """A markdown table: the first ``left`` columns, or those of these numbers, are aligned left, the others right."""
    chosen = range(left) if isinstance(left, int) else left
    ruler = [":--" if column in chosen else "--:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))

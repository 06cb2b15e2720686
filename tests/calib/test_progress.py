"""The progress bar stands in two packages that may not import each other (docs/decisions/0001)."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent


def test_both_copies_are_the_same() -> None:
    assert (REPO / "calib/progress.py").read_bytes() == (REPO / "runtime/progress.py").read_bytes()

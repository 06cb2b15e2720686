"""The one error: what it says, and that its two homes hold the same text."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import IntvitError

ROOT = Path(__file__).resolve().parents[2]


def test_parts_in_order_and_empty_ones_left_out() -> None:
    error = IntvitError("it broke", where="here", next="do that")
    assert error.render() == str(error) == "error: it broke\nwhere: here\n next: do that"


def test_both_homes_hold_the_same_class() -> None:
    assert (ROOT / "calib/errors.py").read_bytes() == (ROOT / "runtime/errors.py").read_bytes()

"""Varints and fields against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import wire
from runtime.errors import IntvitError


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (-1, b"\xff" * 9 + b"\x01")],
)
def test_varint_by_hand(value: int, encoded: bytes) -> None:
    assert wire.varint(value) == encoded
    read, at = wire.read_varint(memoryview(encoded), 0)
    assert (wire.signed(read), at) == (value, len(encoded))


@given(st.integers(-(2**63), 2**63 - 1))
def test_varint_round_trip(value: int) -> None:
    read, _ = wire.read_varint(memoryview(wire.varint(value)), 0)
    assert wire.signed(read) == value


def test_fields_round_trip() -> None:
    data = wire.number_field(1, 5) + wire.text_field(2, "abc") + wire.varint(3 << 3 | 5) + b"\1\2\3\4"
    found = list(wire.fields(memoryview(data)))
    assert [(number, kind, value, bytes(payload)) for number, kind, value, payload in found] == [
        (1, 0, 5, b""),
        (2, 2, 0, b"abc"),
        (3, 5, 0, b"\1\2\3\4"),
    ]
    assert b"".join(wire.copy_field(*field) for field in found) == data


@pytest.mark.parametrize("data", [b"\x80", b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x0d\x01", b"\xff" * 11])
def test_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(IntvitError, match="well-formed"):
        list(wire.fields(memoryview(data)))

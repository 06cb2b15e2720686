"""The protobuf wire format: fields in, fields out. No schema, no copies of large payloads."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.errors import IntvitError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def malformed(why: str) -> IntvitError:
    """The error for bytes that are no ONNX file."""
    return IntvitError("the graph is not a well-formed ONNX file", why=why, next="build the bundle again")


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at offset ``at`` and the offset after it.

    Raises:
        IntvitError: it is cut short or longer than ten bytes.
    """
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise malformed(f"a number is cut short at byte {at}")


def signed(value: int) -> int:
    """A varint's value read as a signed 64-bit integer."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Every field of a message: number, wire type, value (varints only, else 0), payload (length-delimited only).

    The payload is a view into ``data``.

    Raises:
        IntvitError: the bytes are not a message.
    """
    at, empty = 0, data[:0]
    while at < len(data):
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:  # of a larger one protobuf's own reader drops the upper bits
            raise malformed(f"field number {number} at byte {at}")
        if kind == VARINT:
            value, at = read_varint(data, at)
            yield number, kind, value, empty
            continue
        if kind == BYTES:
            length, at = read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise malformed(f"wire type {kind} at byte {at}")
        if length > len(data) - at:
            raise malformed(f"a field of {length} bytes at byte {at} runs past the end")
        yield number, kind, 0, data[at : at + length]
        at += length


def text(payload: memoryview) -> str:
    """A string field.

    Raises:
        IntvitError: it is not UTF-8.
    """
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise malformed(f"a name is not UTF-8: {error}") from error


def varint(value: int) -> bytes:
    """``value`` (negative: as 64-bit two's complement) as a varint."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, payload: bytes | memoryview) -> bytes:
    """A length-delimited field."""
    return b"".join((varint(number << 3 | BYTES), varint(len(payload)), payload))


def text_field(number: int, value: str) -> bytes:
    """A string field."""
    return bytes_field(number, value.encode("utf-8"))


def copy_field(number: int, kind: int, value: int, payload: memoryview) -> bytes:
    """A field as :func:`fields` gave it, in bytes again."""
    if kind == VARINT:
        return number_field(number, value)
    if kind == BYTES:
        return bytes_field(number, payload)
    return varint(number << 3 | kind) + bytes(payload)

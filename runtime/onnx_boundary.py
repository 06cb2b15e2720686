"""The inputs and outputs of an ONNX file: read and write their types and shapes, without the onnx package.

Field numbers are those of onnx.proto3 (ValueInfoProto.type = 2, TypeProto.tensor_type = 1, and so on).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from runtime.onnx_wire import typed_input
from runtime.wire import BYTES, VARINT, bytes_field, copy_field, fields, number_field, text

_MODEL_GRAPH = 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _ELEM_TYPE = 1, 2, 1, 1


def boundary_types(model: bytes) -> dict[str, int]:
    """TensorProto's number of the type of each graph input and output that has one written, by name.

    Raises:
        IntvitError: the bytes are malformed.
    """
    found: dict[str, int] = {}
    for number, kind, _, payload in fields(memoryview(model)):
        if number == _MODEL_GRAPH and kind == BYTES:
            for part in fields(payload):
                if part[0] in (_GRAPH_INPUT, _GRAPH_OUTPUT) and part[1] == BYTES:
                    name, elem_type = _value(part[3])
                    found |= {name: elem_type} if elem_type else {}
    return found


def with_typed_outputs(model: bytes, elem_types: Mapping[str, int]) -> bytes:
    """``model`` with a type for each output that has none; ``elem_types``: TensorProto's number by name.

    TensorRT's parser refuses an output without a type; ONNX Runtime infers it.

    Raises:
        IntvitError: the bytes are malformed.
    """

    def typed(data: memoryview) -> bytes:
        name, elem_type = _value(data)
        if elem_type or name not in elem_types:
            return bytes_field(_GRAPH_OUTPUT, data)
        tensor = bytes_field(_TYPE_TENSOR, number_field(_ELEM_TYPE, elem_types[name]))
        return bytes_field(_GRAPH_OUTPUT, bytes(data) + bytes_field(_VALUE_TYPE, tensor))

    return _rewritten(model, _GRAPH_OUTPUT, typed)


def with_fixed_inputs(model: bytes, shapes: Mapping[str, Sequence[int]]) -> bytes:
    """``model`` with those shapes for those of its inputs, whatever shapes they had.

    Raises:
        IntvitError: the bytes are malformed.
    """

    def fixed(data: memoryview) -> bytes:
        name, elem_type = _value(data)
        return typed_input(name, elem_type, shapes[name]) if name in shapes else bytes_field(_GRAPH_INPUT, data)

    return _rewritten(model, _GRAPH_INPUT, fixed)


def _rewritten(model: bytes, field: int, change: Callable[[memoryview], bytes]) -> bytes:
    out = []
    for number, kind, value, payload in fields(memoryview(model)):
        if number == _MODEL_GRAPH and kind == BYTES:
            parts = [
                change(part[3]) if part[0] == field and part[1] == BYTES else copy_field(*part)
                for part in fields(payload)
            ]
            out.append(bytes_field(_MODEL_GRAPH, b"".join(parts)))
        else:
            out.append(copy_field(number, kind, value, payload))
    return b"".join(out)


def _value(data: memoryview) -> tuple[str, int]:
    """The name and the element type (0: none written) of a ValueInfoProto."""
    name, elem_type = "", 0
    for number, kind, _, payload in fields(data):
        if number == _VALUE_NAME and kind == BYTES:
            name = text(payload)
        elif number == _VALUE_TYPE and kind == BYTES:
            for tag, wire, _, tensor in fields(payload):
                if tag == _TYPE_TENSOR and wire == BYTES:
                    values = [v for number, kind, v, _ in fields(tensor) if number == _ELEM_TYPE and kind == VARINT]
                    elem_type = values[-1] if values else 0
    return name, elem_type

"""Put other nodes in place of some of an ONNX file's, without the onnx package. Read it with :mod:`runtime.onnx_wire`.

Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.wire import BYTES, FIXED32, VARINT, bytes_field, copy_field, fields, number_field, text, text_field, varint

_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_INPUT, _OUTPUT, _NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTR_NAME, _ATTR_FLOAT, _ATTR_INT, _ATTR_INTS, _ATTR_TYPE = 1, 2, 3, 8, 20
_TYPE_FLOAT, _TYPE_INT, _TYPE_INTS = 1, 2, 7


@dataclass(frozen=True)
class NewNode:
    """A node to write. ``attributes``: an int, a float or several ints by name; a missing optional input is an empty
    name.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    attributes: Mapping[str, int | float | tuple[int, ...]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The NodeProto message."""
        parts = [text_field(_INPUT, name) for name in self.inputs] + [
            text_field(_OUTPUT, name) for name in self.outputs
        ]
        parts += [text_field(_NAME, self.name), text_field(_OP_TYPE, self.op_type)]
        parts += [bytes_field(_ATTRIBUTE, _attribute(name, value)) for name, value in self.attributes.items()]
        return b"".join([*parts, text_field(_DOMAIN, self.domain)])


@dataclass(frozen=True)
class NewTensor:
    """An initializer to write: TensorProto's number of its type, and its values' little-endian bytes."""

    name: str
    dims: tuple[int, ...]
    data_type: int
    raw: bytes

    def encode(self) -> bytes:
        """The TensorProto message."""
        dims = [number_field(_TENSOR_DIMS, dim) for dim in self.dims]
        head = [number_field(_TENSOR_TYPE, self.data_type), text_field(_TENSOR_NAME, self.name)]
        return b"".join([*dims, *head, bytes_field(_TENSOR_RAW, self.raw)])


def _attribute(name: str, value: int | float | tuple[int, ...]) -> bytes:
    if isinstance(value, tuple):
        held, kind = b"".join(number_field(_ATTR_INTS, one) for one in value), _TYPE_INTS
    elif isinstance(value, int):
        held, kind = number_field(_ATTR_INT, value), _TYPE_INT
    else:
        held, kind = varint(_ATTR_FLOAT << 3 | FIXED32) + struct.pack("<f", value), _TYPE_FLOAT
    return text_field(_ATTR_NAME, name) + held + number_field(_ATTR_TYPE, kind)


def replace_nodes(
    model: bytes,
    places: Mapping[int, Sequence[NewNode]],
    *,
    flatten: Collection[str] = (),
    drop: Collection[str] = (),
    add: Sequence[NewTensor] = (),
    least_opset: int = 0,
) -> bytes:
    """The model with some nodes replaced, and initializers with them.

    Args:
        model: an ONNX file's bytes.
        places: number of a node, in file order -> the nodes that stand there instead (none: it is only removed).
        flatten: initializers that become vectors of as many elements. drop: initializers that are removed.
        add: initializers that come after the others.
        least_opset: the standard operators' version is raised to this one where it is lower.

    Raises:
        IntvitError: the bytes are malformed.
    """
    out, number = [], 0
    for field_number, kind, value, payload in fields(memoryview(model)):
        if field_number == _MODEL_OPSET and kind == BYTES:
            out.append(bytes_field(_MODEL_OPSET, _raised(payload, least_opset)))
        elif field_number == _MODEL_GRAPH and kind == BYTES:
            parts = []
            for part in fields(payload):
                if part[0] == _GRAPH_NODE and part[1] == BYTES:
                    new = places.get(number)
                    kept = [bytes(part[3])] if new is None else [node.encode() for node in new]
                    parts += [bytes_field(_GRAPH_NODE, node) for node in kept]
                    number += 1
                elif part[0] == _GRAPH_INITIALIZER and part[1] == BYTES:
                    if not _named(part[3], drop):
                        parts.append(bytes_field(_GRAPH_INITIALIZER, _flattened(part[3], flatten)))
                else:
                    parts.append(copy_field(*part))
            parts += [bytes_field(_GRAPH_INITIALIZER, tensor.encode()) for tensor in add]
            out.append(bytes_field(_MODEL_GRAPH, b"".join(parts)))
        else:
            out.append(copy_field(field_number, kind, value, payload))
    return b"".join(out)


def _raised(opset: memoryview, least: int) -> bytes | memoryview:
    domain, version = "", 0
    for number, kind, value, payload in fields(opset):
        if number == _OPSET_DOMAIN and kind == BYTES:
            domain = text(payload)
        elif number == _OPSET_VERSION and kind == VARINT:
            version = value
    if domain not in ("", "ai.onnx") or version >= least:
        return opset
    return text_field(_OPSET_DOMAIN, domain) + number_field(_OPSET_VERSION, least)


def _named(tensor: memoryview, names: Collection[str]) -> bool:
    """Whether an initializer has one of those names."""
    return any(number == _TENSOR_NAME and text(payload) in names for number, _, _, payload in fields(tensor))


def _flattened(tensor: memoryview, names: Collection[str]) -> bytes | memoryview:
    if not _named(tensor, names):
        return tensor
    parts = list(fields(tensor))
    dims = [value for number, kind, value, _ in parts if number == _TENSOR_DIMS and kind == VARINT]
    rest = [copy_field(*part) for part in parts if part[0] != _TENSOR_DIMS]
    return b"".join([number_field(_TENSOR_DIMS, math.prod(dims)), *rest])

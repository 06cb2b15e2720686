"""Another type for the float parts of an ONNX file: float32, float16 or bfloat16, without the onnx package.

A strongly typed network computes in the types its graph names, so the way to a half precision engine is a half
precision graph: every float constant is rounded (to the nearest, ties to even), every Cast to a float type goes to the
new one, and one Cast stands after each float32 input and before each float32 output, where there is none. Integers stay
what they are.
Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import IntvitError
from runtime.kernels.nodes import uses_kernels
from runtime.onnx_boundary import boundary_types
from runtime.onnx_edit import NewNode
from runtime.onnx_wire import FLOAT, Graph, read_graph
from runtime.wire import BYTES, FIXED32, VARINT, bytes_field, copy_field, fields, number_field, text, text_field

VERSION = 1  # of what this file writes; part of the key of every engine built from it
FLOAT16, BFLOAT16 = 10, 16
FLOATS = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16}
_WIDTH = {FLOAT: "<f4", FLOAT16: "<f2", BFLOAT16: "<u2"}
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_VALUE_INFO = 1, 5, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTR_NAME, _ATTR_INT, _ATTR_TENSOR = 1, 3, 5
_TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 2, 4, 8, 9
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class _Names:
    """How tensors are called in the new graph: readers of an input and the producer of an output use other names."""

    read: dict[str, str]
    made: dict[str, str]


def retype(model: bytes, precision: str, *, where: str = "") -> bytes:
    """``model``, an ONNX file's bytes, with its float parts in ``precision`` (a key of :data:`FLOATS`).

    Graph inputs and outputs keep their types.

    Raises:
        IntvitError: the bytes are malformed, a constant does not fit the new type (a scale: rounds to 0 in it), a node
            holds a float constant in an attribute (graphs of a bundle have none), or a kernel's node writes float16.
    """
    elem_type, graph = FLOATS[precision], read_graph(model)
    if uses_kernels(graph):
        raise IntvitError(
            "the graph's float type cannot be changed",
            where=where,
            why="it holds our kernels' nodes, which read float32 scales and write float16",
            next="leave precision=graph, or build the bundle with --option kernels=off",
        )
    boundary = {name for name, kind in boundary_types(model).items() if kind == FLOAT}
    casts_in, casts_out = list[str](), list[str]()
    if elem_type != FLOAT:
        read_as_is = {name for node in graph.nodes if node.op_type != "Cast" for name in node.inputs}
        casts_in = [name for name in graph.inputs if name in boundary and name in read_as_is]
        casts_out = [name for name in graph.outputs if name in boundary and name not in _cast_made(graph)]
    made = {name: f"{name}/in_{precision}" for name in casts_out}
    names = _Names({**{name: f"{name}/{precision}" for name in casts_in}, **made}, made)
    first = [_cast(name, names.read[name], elem_type, name) for name in casts_in]
    last = [_cast(names.made[name], name, FLOAT, name) for name in casts_out]
    out = []
    for number, kind, value, payload in fields(memoryview(model)):
        if number == _MODEL_GRAPH and kind == BYTES:
            parts = [*first, *_graph(payload, graph, elem_type, names, where), *last]
            out.append(bytes_field(_MODEL_GRAPH, b"".join(parts)))
        else:
            out.append(copy_field(number, kind, value, payload))
    return b"".join(out)


def float_type(graph: Graph) -> str:
    """What a graph computes in, by numpy's name: "float16" or "bfloat16" where it has constants of that type.

    Float32 constants beside them are operands of kernels, which sum and scale in float32 and write float16.
    """
    kinds = {one.data_type for one in graph.initializers}
    return "float16" if FLOAT16 in kinds else "bfloat16" if BFLOAT16 in kinds else "float32"


def _cast_made(graph: Graph) -> set[str]:
    """The graph outputs that a Cast makes."""
    return {name for name in graph.outputs if name in graph.producer and graph.producer[name].op_type == "Cast"}


def _cast(source: str, target: str, elem_type: int, name: str) -> bytes:
    node = NewNode("Cast", f"{name}/Cast", (source,), (target,), attributes={"to": elem_type})
    return bytes_field(_GRAPH_NODE, node.encode())


def _graph(data: memoryview, graph: Graph, elem_type: int, names: _Names, where: str) -> list[bytes]:
    parts, number = [], 0
    scales = {node.inputs[1] for node in graph.nodes if node.op_type in _QUANTIZERS and len(node.inputs) > 1}
    for field_number, kind, value, payload in fields(data):
        if field_number == _GRAPH_NODE and kind == BYTES:
            node = graph.nodes[number]
            number += 1
            if any(_is_float_tensor(part) for part in node.attributes):
                why = f"{node.op_type} {node.name!r} holds a float constant in an attribute"
                raise IntvitError("the graph's float type cannot be changed", where=where, why=why)
            boundary = FLOAT if any(name in _cast_made(graph) for name in node.outputs) else elem_type
            parts.append(bytes_field(_GRAPH_NODE, _node(payload, node.op_type, boundary, names)))
        elif field_number == _GRAPH_INITIALIZER and kind == BYTES:
            parts.append(bytes_field(_GRAPH_INITIALIZER, _tensor(payload, elem_type, scales, where)))
        elif field_number != _GRAPH_VALUE_INFO:  # they name the old types; every engine infers its own
            parts.append(copy_field(field_number, kind, value, payload))
    return parts


def _node(data: memoryview, op_type: str, elem_type: int, names: _Names) -> bytes:
    parts = []
    for number, kind, value, payload in fields(data):
        if number == _NODE_INPUT and kind == BYTES:
            name = text(payload)
            renamed = names.made if op_type == "Cast" else names.read  # a Cast goes on reading the input itself
            parts.append(text_field(_NODE_INPUT, renamed.get(name, name)))
        elif number == _NODE_OUTPUT and kind == BYTES:
            parts.append(text_field(_NODE_OUTPUT, names.made.get(text(payload), text(payload))))
        elif number == _NODE_ATTRIBUTE and kind == BYTES and op_type == "Cast":
            parts.append(bytes_field(_NODE_ATTRIBUTE, _cast_attribute(payload, elem_type)))
        else:
            parts.append(copy_field(number, kind, value, payload))
    return b"".join(parts)


def _cast_attribute(data: memoryview, elem_type: int) -> bytes:
    parts = list(fields(data))
    if not any(number == _ATTR_NAME and text(payload) == "to" for number, kind, _, payload in parts if kind == BYTES):
        return bytes(data)
    return b"".join(
        number_field(_ATTR_INT, elem_type)
        if number == _ATTR_INT and value in FLOATS.values()
        else copy_field(number, kind, value, payload)
        for number, kind, value, payload in parts
    )


def _is_float_tensor(attribute: bytes) -> bool:
    return any(
        number == _ATTR_TENSOR
        and kind == BYTES
        and any(tag == _TENSOR_TYPE and value in FLOATS.values() for tag, _, value, _ in fields(payload))
        for number, kind, _, payload in fields(memoryview(attribute))
    )


def _tensor(data: memoryview, elem_type: int, scales: set[str], where: str) -> bytes:
    parts = list(fields(data))
    stored = next((value for number, kind, value, _ in parts if number == _TENSOR_TYPE and kind == VARINT), 0)
    if stored not in FLOATS.values() or stored == elem_type:
        return bytes(data)
    name = next((text(payload) for number, kind, _, payload in parts if number == _TENSOR_NAME and kind == BYTES), "")
    raw = b"".join(bytes(payload) for number, kind, _, payload in parts if number == _TENSOR_RAW and kind == BYTES)
    packed = [(kind, payload) for number, kind, _, payload in parts if number == _TENSOR_FLOATS]
    if any(kind == FIXED32 for kind, _ in packed) or (not raw and packed and stored != FLOAT):
        raise IntvitError("the graph's float type cannot be changed", where=where, why=f"{name!r} is stored unpacked")
    values = _read(raw or b"".join(bytes(payload) for _, payload in packed), stored)
    written = _written(values, elem_type, name, where)
    if name in scales and not _read(written, elem_type).all():
        why = f"{name!r} holds {float(np.abs(values).min()):g}, which rounds to 0"
        raise IntvitError("a scale does not fit float16", where=where, why=why, next="--option precision=bf16")
    kept = [copy_field(*part) for part in parts if part[0] not in (_TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_RAW)]
    return b"".join([*kept, number_field(_TENSOR_TYPE, elem_type), bytes_field(_TENSOR_RAW, written)])


def _read(raw: bytes, elem_type: int) -> npt.NDArray[np.float32]:
    values = np.frombuffer(raw, _WIDTH[elem_type])
    if elem_type == BFLOAT16:
        widened: npt.NDArray[np.float32] = (values.astype(np.uint32) << 16).view(np.float32)
        return widened
    return values.astype(np.float32)


def _written(values: npt.NDArray[np.float32], elem_type: int, name: str, where: str) -> bytes:
    if elem_type == FLOAT:
        return values.astype("<f4").tobytes()
    if elem_type == BFLOAT16:
        bits = values.view(np.uint32)
        nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        rounded: bytes = np.where(np.isnan(values), np.uint32(0x7FC0), nearest).astype("<u2").tobytes()
        return rounded
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    lost = np.isinf(half) & np.isfinite(values)
    if lost.any():
        worst = float(np.abs(values[lost]).max())
        why = f"{name!r} holds {worst:g}; the largest float16 is 65504"
        raise IntvitError("a constant does not fit float16", where=where, why=why, next="--option precision=bf16")
    return half.tobytes()

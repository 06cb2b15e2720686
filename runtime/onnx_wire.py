"""Read and rewire an ONNX file without the onnx package: nodes, initializers, inputs, outputs of the top-level graph.

Field numbers are those of onnx.proto3 (ModelProto.graph = 7, GraphProto.node = 1, and so on). Bodies of If, Loop and
Scan are not looked into, except by :func:`external_tensor`; the graphs of a bundle have none.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from runtime.wire import (
    BYTES,
    FIXED32,
    VARINT,
    bytes_field,
    copy_field,
    fields,
    malformed,
    number_field,
    read_varint,
    signed,
    text,
    text_field,
)

FLOAT, UINT8, INT8, INT64, INT4 = 1, 2, 3, 7, 22
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTR_NAME, _ATTR_FLOAT, _ATTR_INT, _ATTR_INTS = 1, 2, 3, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT32, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 5, 8, 9
_TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 13, 14

# Where a tensor may lie: kind of message -> field number -> kind of message in it.
_HOLDS: dict[str, dict[int, str]] = {
    "model": {_MODEL_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_DEEPEST = 100  # messages in one another; protobuf itself reads no more

CutTo: TypeAlias = tuple[str, int, Sequence["int | str"]]


@dataclass(frozen=True)
class Node:
    """One operator: ``domain`` is empty for the standard operators; missing optional inputs are empty names.

    ``attributes`` are the serialised AttributeProto messages, sorted, so that equal attributes compare equal;
    ``integers`` are the integer ones among them, single ones as one number, by name; ``floats`` the single floats.
    """

    op_type: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[bytes, ...] = ()
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    floats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Initializer:
    """One constant tensor, its values not copied. ``data_type`` is TensorProto's number (1 float32, 2 uint8, 3 int8).

    ``raw`` is a view of the little-endian values where they are stored so, else empty; ``int32_data`` holds small
    integers stored the other way. ``external`` says that the values lie in another file.
    """

    name: str
    dims: tuple[int, ...]
    data_type: int
    raw: memoryview
    int32_data: tuple[int, ...]
    external: bool

    def integers(self) -> tuple[int, ...]:
        """The values of an int64 tensor stored raw; empty for any other."""
        if self.data_type != INT64:
            return ()
        return struct.unpack(f"<{len(self.raw) // 8}q", self.raw)

    def scalar(self) -> int | None:
        """The first value of an int8 or uint8 tensor, None for any other tensor or an empty one."""
        if self.data_type not in (INT8, UINT8):
            return None
        if len(self.raw):
            value = self.raw[0]
        elif self.int32_data:
            value = self.int32_data[0] & 0xFF
        else:
            return None
        return value - 256 if self.data_type == INT8 and value > 127 else value


@dataclass(frozen=True)
class Graph:
    """The top-level graph in file order; ``inputs`` and ``outputs`` are names."""

    nodes: tuple[Node, ...]
    initializers: tuple[Initializer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def producer(self) -> dict[str, Node]:
        """The node that makes each tensor, by the tensor's name."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def constant(self) -> dict[str, Initializer]:
        """The initializers by name."""
        return {initializer.name: initializer for initializer in self.initializers}

    def op_histogram(self) -> dict[str, int]:
        """How many nodes of each operator type there are, by falling count, then name."""
        counts = Counter(node.op_type for node in self.nodes)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _numbers(kind: int, value: int, payload: memoryview) -> list[int]:
    if kind == VARINT:
        return [signed(value)]
    found, at = [], 0
    while kind == BYTES and at < len(payload):
        value, at = read_varint(payload, at)
        found.append(signed(value))
    return found


def _node(data: memoryview) -> Node:
    inputs, outputs, attributes, name, op_type, domain = [], [], [], "", "", ""
    integers: dict[str, tuple[int, ...]] = {}
    floats: dict[str, float] = {}
    for number, kind, _, payload in fields(data):
        if kind != BYTES:
            continue
        if number == _NODE_INPUT:
            inputs.append(text(payload))
        elif number == _NODE_OUTPUT:
            outputs.append(text(payload))
        elif number == _NODE_NAME:
            name = text(payload)
        elif number == _NODE_OP_TYPE:
            op_type = text(payload)
        elif number == _NODE_DOMAIN:
            domain = text(payload)
        elif number == _NODE_ATTRIBUTE:
            attributes.append(bytes(payload))
            key, whole, broken = _attribute(payload)
            integers.update({key: whole} if whole else {})
            floats.update({key: broken} if broken is not None else {})
    domain = "" if domain == "ai.onnx" else domain
    return Node(op_type, name, domain, tuple(inputs), tuple(outputs), tuple(sorted(attributes)), integers, floats)


def _attribute(data: memoryview) -> tuple[str, tuple[int, ...], float | None]:
    """Name, integers and single float of an attribute, whichever of the two it has."""
    name, values, single = "", list[int](), None
    for number, kind, value, payload in fields(data):
        if number == _ATTR_NAME:
            name = text(payload)
        elif number in (_ATTR_INT, _ATTR_INTS) and kind in (VARINT, BYTES):
            values += _numbers(kind, value, payload)
        elif number == _ATTR_FLOAT and kind == FIXED32:
            (single,) = struct.unpack("<f", payload)
    return name, tuple(values), single


def _initializer(data: memoryview) -> Initializer:
    dims: list[int] = []
    int32_data: list[int] = []
    name, data_type, raw, external = "", 0, data[:0], False
    for number, kind, value, payload in fields(data):
        if number == _TENSOR_DIMS:
            dims += _numbers(kind, value, payload)
        elif number == _TENSOR_TYPE:
            data_type = value
        elif number == _TENSOR_INT32 and kind != FIXED32 and len(int32_data) < 1:
            int32_data += _numbers(kind, value, payload)[:1]
        elif number == _TENSOR_NAME:
            name = text(payload)
        elif number == _TENSOR_RAW:
            raw = payload
        elif number == _TENSOR_LOCATION:
            external = value == 1
    return Initializer(name, tuple(dims), data_type, raw, tuple(int32_data), external)


def _value_name(data: memoryview) -> str:
    name = ""
    for number, kind, _, payload in fields(data):
        if number == 1 and kind == BYTES:
            name = text(payload)
    return name


def _graph_parts(model: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """The graph's fields; several graph fields in one model are one graph, as protobuf merges them."""
    for number, kind, _, payload in fields(memoryview(model)):
        if number == _MODEL_GRAPH and kind == BYTES:
            yield from fields(payload)


def read_graph(model: bytes) -> Graph:
    """The graph of an ONNX file's bytes. The bytes must outlive the result, which holds views of them.

    Raises:
        IntvitError: the bytes are not a protobuf message of ONNX's shape.
    """
    nodes: list[Node] = []
    initializers: list[Initializer] = []
    inputs: list[str] = []
    outputs: list[str] = []
    for number, kind, _, payload in _graph_parts(model):
        if kind != BYTES:
            continue
        if number == _GRAPH_NODE:
            nodes.append(_node(payload))
        elif number == _GRAPH_INITIALIZER:
            initializers.append(_initializer(payload))
        elif number == _GRAPH_INPUT:
            inputs.append(_value_name(payload))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_value_name(payload))
    return Graph(tuple(nodes), tuple(initializers), tuple(inputs), tuple(outputs))


def external_tensor(model: bytes) -> str | None:
    """The name of the first tensor whose values lie in another file, wherever it is in an ONNX file's bytes.

    That is: among initializers, dense or sparse, and attributes, in bodies of If, Loop and Scan, functions and training
    graphs too. None where there is no such tensor.

    Raises:
        IntvitError: the bytes are malformed, or nested deeper than any reader of ONNX takes.
    """
    return _external_in("model", memoryview(model), 0)


def _external_in(message: str, data: memoryview, depth: int) -> str | None:
    if depth > _DEEPEST:
        raise malformed(f"messages are nested more than {_DEEPEST} deep")
    name, external = "", False
    for number, kind, value, payload in fields(data):
        inner = _HOLDS[message].get(number) if kind == BYTES else None
        if inner is not None:
            found = _external_in(inner, payload, depth + 1)
            if found is not None:
                return found
        elif message == "tensor":
            name = text(payload) if number == _TENSOR_NAME else name
            external |= number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value != 0)
    return name if external else None


def standard_opset(model: bytes) -> int:
    """The version of the standard operators that an ONNX file's bytes ask for; 0 where they ask for none.

    Raises:
        IntvitError: the bytes are malformed.
    """
    for number, kind, _, payload in fields(memoryview(model)):
        if number == _MODEL_OPSET and kind == BYTES:
            parts = {part[0]: part for part in fields(payload)}
            domain = text(parts[_OPSET_DOMAIN][3]) if _OPSET_DOMAIN in parts else ""
            if domain in ("", "ai.onnx") and _OPSET_VERSION in parts:
                return parts[_OPSET_VERSION][2]
    return 0


def op_histogram(model: bytes) -> dict[str, int]:
    """:meth:`Graph.op_histogram` of an ONNX file's bytes.

    Raises:
        IntvitError: the bytes are malformed.
    """
    return read_graph(model).op_histogram()


def _rewrite(model: bytes, node: Callable[[memoryview], bytes] | None, extra: bytes) -> bytes:
    """The model with each node's bytes passed through ``node`` and ``extra`` fields added at the end of the graph."""
    graph: list[bytes] = []
    head: list[bytes] = []
    for number, kind, value, payload in fields(memoryview(model)):
        if number != _MODEL_GRAPH or kind != BYTES:
            head.append(copy_field(number, kind, value, payload))
        elif node is None:
            graph.append(bytes(payload))
        else:
            for part in fields(payload):
                is_node = part[0] == _GRAPH_NODE and part[1] == BYTES
                graph.append(bytes_field(_GRAPH_NODE, node(part[3])) if is_node else copy_field(*part))
    return b"".join((*head, bytes_field(_MODEL_GRAPH, b"".join((*graph, extra)))))


def with_extra_outputs(model: bytes, names: Collection[str]) -> bytes:
    """The model with the tensors ``names`` as graph outputs after those it has; those already there are not repeated.

    Only names are written: ONNX Runtime infers the types when it loads the model.

    Raises:
        IntvitError: the bytes are malformed.
    """
    present = set(read_graph(model).outputs)
    new = [name for name in dict.fromkeys(names) if name not in present]
    return _rewrite(model, None, b"".join(bytes_field(_GRAPH_OUTPUT, text_field(1, name)) for name in new))


def typed_input(name: str, elem_type: int, dims: Sequence[int | str]) -> bytes:
    """The graph's field for an input of that name, TensorProto element type and shape; a text dim is symbolic."""
    shape = b"".join(
        bytes_field(1, text_field(2, dim) if isinstance(dim, str) else number_field(1, dim)) for dim in dims
    )
    tensor = number_field(1, elem_type) + bytes_field(2, shape)
    return bytes_field(_GRAPH_INPUT, text_field(1, name) + bytes_field(2, bytes_field(1, tensor)))


def cut(model: bytes, tensors: Mapping[str, CutTo]) -> bytes:
    """The model with tensors cut: whoever read one now reads a new graph input, and its producer stays in place.

    Args:
        model: an ONNX file's bytes.
        tensors: tensor name -> (name of the new input, TensorProto element type, dims); a text dim is symbolic.

    Raises:
        IntvitError: the bytes are malformed.
    """

    def rewired(data: memoryview) -> bytes:
        parts = []
        for number, kind, value, payload in fields(data):
            target = tensors.get(text(payload)) if number == _NODE_INPUT and kind == BYTES else None
            parts.append(text_field(_NODE_INPUT, target[0]) if target else copy_field(number, kind, value, payload))
        return b"".join(parts)

    return _rewrite(model, rewired, b"".join(typed_input(*target) for target in tensors.values()))

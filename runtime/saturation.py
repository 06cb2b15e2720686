"""Integer products on processors whose u8 x s8 kernels saturate, written so that they do not: the same numbers.

x86 without VNNI or AMX multiplies bytes with ``vpmaddubsw``, which adds two products u8 x s8 in 16 bits and stays at
the ends of that range. 255 (w1 + w2) passes them as soon as two weights beside each other are large enough. u8 x u8 has
kernels of its own, which widen before they add. So where products saturate, their right operands become unsigned:
every level and its zero point are 128 more. Weights from -64 to 64, all of 4 bits among them, stay: 255 (64 + 64) fits.

ONNX Runtime has an option for this, ``session.x64quantprecision``. It is not used. Version 1.32.0 with it, on x86
without VNNI, cannot load a graph in which two products share a zero point, gives ``DequantizeLinear`` by channel a
scalar zero point, which its kernel refuses, and leaves right operands that are no constants as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.errors import IntvitError
from runtime.onnx_edit import NewNode, NewTensor, replace_nodes
from runtime.onnx_wire import INT8, UINT8, Graph, Initializer, Node, read_graph
from runtime.quantizers import OPERANDS

VERSION = 1  # part of a compiled engine's key: raise it when the result of this rewrite changes
_SAFE = 64  # the largest magnitude of a weight for which 255 (w1 + w2) fits into 16 bits
_BITWISE = 18  # the opset that brings BitwiseXor: https://onnx.ai/onnx/operators/onnx__BitwiseXor.html
_FLIP = "unsigned/128"


def exact_products(model: bytes) -> bytes:
    """The graph, optimized before, with no product u8 x s8 left that could saturate; ``model`` itself if there is none.

    Constants become uint8 constants, other tensors pass through a Cast and an exclusive or with 128. What is no
    constant is known as signed by its zero point; it stays where it has none, or where that is no constant either.

    Raises:
        IntvitError: the bytes are malformed, or an int8 constant's values are not in the file.
    """
    graph = read_graph(model)
    places: dict[int, list[NewNode]] = {}
    tensors: dict[str, NewTensor] = {}
    gone: set[str] = set()
    turned: set[str] = set()
    for number, node in enumerate(graph.nodes):
        right = _signed_right(graph, node)
        if right is None:
            continue
        at, zero_at = right
        name, nodes = node.inputs[at], list[NewNode]()
        inputs = [*node.inputs, *[""] * (zero_at + 1 - len(node.inputs))]
        if name in graph.constant:
            if np.abs(_levels(graph.constant[name]).astype(np.int16)).max(initial=0) <= _SAFE:
                continue
            inputs[at] = _unsigned(tensors, graph.constant[name])
        else:
            inputs[at], byte = f"{name}/unsigned", f"{name}/byte"
            if name not in turned:
                nodes.append(NewNode("Cast", f"{byte}/Cast", (name,), (byte,), attributes={"to": UINT8}))
                nodes.append(NewNode("BitwiseXor", f"{name}/BitwiseXor", (byte, _FLIP), (inputs[at],)))
            turned.add(name)
        zero = graph.constant.get(inputs[zero_at])
        inputs[zero_at] = _unsigned(tensors, zero) if zero is not None else _FLIP
        nodes.append(NewNode(node.op_type, node.name, tuple(inputs), node.outputs, node.domain, _attributes(node)))
        places[number] = nodes
        gone |= set(node.inputs) & set(graph.constant)
    if not places:
        return model
    kept = {name for number, node in enumerate(graph.nodes) if number not in places for name in node.inputs}
    read = {name for nodes in places.values() for node in nodes for name in node.inputs}
    if _FLIP in read:
        tensors[_FLIP] = NewTensor(_FLIP, (), UINT8, b"\x80")
    return replace_nodes(model, places, drop=gone - kept - read, add=list(tensors.values()), least_opset=_BITWISE)


def _attributes(node: Node) -> dict[str, int | float]:
    """A product's attributes: single numbers, in all of :data:`runtime.quantizers.OPERANDS` that have two operands."""
    return {name: value for name, (value,) in node.integers.items()} | dict(node.floats)


def _signed_right(graph: Graph, node: Node) -> tuple[int, int] | None:
    """Which inputs of an integer product hold its right operand and that one's zero point, where it is int8."""
    if node.op_type not in OPERANDS or len(OPERANDS[node.op_type]) < 2:
        return None
    at, zero_at = OPERANDS[node.op_type][1]
    named = node.inputs[zero_at] if zero_at < len(node.inputs) else ""
    zero = graph.constant.get(named)
    told = graph.constant.get(node.inputs[at]) or zero
    known = not named or zero is not None
    return (at, zero_at) if known and told is not None and told.data_type == INT8 else None


def _levels(constant: Initializer) -> npt.NDArray[np.int8]:
    """The values of an int8 constant, flat."""
    count = int(np.prod(constant.dims))
    if len(constant.raw) == count:
        return np.frombuffer(constant.raw, np.int8)
    only = constant.scalar()
    if count != 1 or only is None or constant.external:
        why = f"{len(constant.raw)} bytes for {count} values"
        hint = "build the bundle again"
        raise IntvitError("an int8 constant cannot be read", where=constant.name, why=why, next=hint)
    return np.array([only], np.int8)


def _unsigned(tensors: dict[str, NewTensor], constant: Initializer) -> str:
    """The name of the same constant counted from 128 on, among ``tensors`` from now on."""
    name = f"{constant.name}/unsigned"
    if name not in tensors:
        raw = (_levels(constant).view(np.uint8) ^ 0x80).tobytes()
        tensors[name] = NewTensor(name, constant.dims, UINT8, raw)
    return name

"""The plugin nodes written out in ONNX's own operators, so that any ONNX runtime can execute a graph that holds them.

What comes out is for comparison, not for speed: the operations of :mod:`runtime.kernels.reference` in the same order,
each a node of its own, so every bit is the same where the runtime leaves the nodes as they are written (ONNX Runtime:
optimizer off). Sums are formed in double, which is exact far beyond int32.
"""

from __future__ import annotations

from runtime.errors import IntvitError
from runtime.kernels.nodes import LINEAR_I8, is_kernel, uses_kernels
from runtime.kernels.reference import PHI_ABOVE, PHI_BELOW, PHI_EDGE
from runtime.onnx_edit import NewNode, replace_nodes
from runtime.onnx_wire import FLOAT, INT8, Graph, Node, read_graph

_INT32, _FLOAT16, _DOUBLE = 6, 10, 11  # TensorProto's numbers
_GROUP = 16  # bytes that hold 32 neighbouring levels: runtime/kernels/packing.py


def written_out(model: bytes) -> bytes:
    """``model``, an ONNX file's bytes, with every plugin node in ONNX's own operators; without any, as it is.

    Raises:
        IntvitError: the bytes are malformed, or a plugin node has other inputs than here or no stored weights.
    """
    graph = read_graph(model)
    if not uses_kernels(graph):
        return model
    return replace_nodes(
        model, {index: _layer(node, graph) for index, node in enumerate(graph.nodes) if is_kernel(node)}
    )


class _Writer:
    """Nodes in order, each with one output; names start with the layer's."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.nodes: list[NewNode] = []

    def op(self, op_type: str, *inputs: str, out: str = "", **attributes: int | float | tuple[int, ...]) -> str:
        """Append a node; the name of its output."""
        name = f"{self.scope}/{op_type}_{len(self.nodes)}"
        self.nodes.append(NewNode(op_type, name, inputs, (out or f"{name}:0",), attributes=attributes))
        return self.nodes[-1].outputs[0]

    def number(self, value: float) -> str:
        """A float32 constant."""
        return self.op("Constant", value_float=value)

    def whole(self, value: int, to: int) -> str:
        """An integer constant of that type."""
        return self.op("Cast", self.op("Constant", value_int=value), to=to)


def _layer(node: Node, graph: Graph) -> list[NewNode]:
    at = _Writer(node.name or node.outputs[0])
    a, w, scale, bias, *after = node.inputs
    if w not in graph.constant:
        raise IntvitError("a plugin node has no stored weights", where=node.name, why=f"{w!r} is no initializer")
    rows = graph.constant[w].dims[0]
    levels = _unpacked(at, w, rows) if node.integers["bits"] == (4,) else w
    wide = at.op("Cast", levels, to=_DOUBLE)
    inner = at.op("Shape", a, start=-1)  # the packed rows are padded with zeros beyond k
    first, axis = at.op("Constant", value_ints=(0,)), at.op("Constant", value_ints=(1,))
    factor = at.op("Transpose", at.op("Slice", wide, first, inner, axis))
    sums = at.op("Cast", at.op("MatMul", at.op("Cast", a, to=_DOUBLE), factor), to=FLOAT)
    y = at.op("Add", at.op("Mul", sums, scale), bias)
    if node.integers["gelu"] == (1,):
        y = _gelu(at, y)
    if node.op_type == LINEAR_I8:
        factor, quantizer = after
        step, shift, low, high = (at.op("Gather", quantizer, at.op("Constant", value_int=index)) for index in range(4))
        if node.integers["affine"] == (1,):
            y = at.op("Sub", at.op("Mul", y, factor), shift)
        level = at.op("Round", at.op("Div", y, step))
        at.op("Cast", at.op("Clip", level, low, high), to=INT8, out=node.outputs[0])
    else:
        at.op("Cast", y, to=_FLOAT16, out=node.outputs[0])
    return at.nodes


def _unpacked(at: _Writer, w: str, rows: int) -> str:
    """The levels, int32 (n, k'), of ``pack_int4``'s bytes seen as int8 (n, k' / 2)."""
    byte = at.op("Cast", w, to=_INT32)
    low = at.op("BitwiseAnd", byte, at.whole(15, _INT32))
    high = at.op("Div", at.op("Sub", byte, low), at.whole(16, _INT32))
    eight = at.whole(8, _INT32)
    low = at.op("Sub", at.op("BitwiseXor", low, eight), eight)  # two's complement of four bits
    groups = at.op("Constant", value_ints=(rows, -1, 1, _GROUP))
    both = at.op("Concat", at.op("Reshape", low, groups), at.op("Reshape", high, groups), axis=2)
    return at.op("Reshape", both, at.op("Constant", value_ints=(rows, -1)))


def _gelu(at: _Writer, x: str) -> str:
    """:func:`runtime.kernels.reference.gelu`, operation for operation."""
    from_edge = at.op("Max", x, at.number(-PHI_EDGE))
    t = at.op("Min", from_edge, at.number(PHI_EDGE))
    z = at.op("Mul", t, t)
    ratio = at.op("Div", at.op("Mul", t, _horner(at, PHI_ABOVE, z)), _horner(at, PHI_BELOW, z))
    return at.op("Mul", from_edge, at.op("Add", at.number(0.5), ratio))


def _horner(at: _Writer, coefficients: tuple[float, ...], z: str) -> str:
    value = at.number(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = at.op("Add", at.op("Mul", value, z), at.number(coefficient))
    return value

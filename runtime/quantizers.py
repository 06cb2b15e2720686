"""Where each tap of the manifest is in the graph that ONNX Runtime really executes.

The optimizer renames the integer tensors it turns from int8 into uint8, and it moves a QuantizeLinear up through the
Reshape and Transpose before it, under a new name. So a tap is found by the first of these that is there: its
tensor's own name, where a QuantizeLinear makes it or a Reshape or Transpose of what one made; its QuantizeLinear node's
name; the operand of the product that reads it. That product keeps the name of its output, and its operand has the shape
the tap had. Taps that the optimizer merged share a tensor. In graphs without float (``+int``) a tap is what a Cast to
int8 makes, and behind a kernel of ours that quantizes what that makes: the manifest's levels as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import IntvitError
from runtime.kernels.nodes import LINEAR_I8, is_kernel
from runtime.manifest import Tap
from runtime.onnx_wire import INT8, UINT8, Graph, Node

_QUANTIZE, _DEQUANTIZE, _CAST = "QuantizeLinear", "DequantizeLinear", "Cast"
MOVES = frozenset({"Reshape", "Transpose"})
# Integer products: for each operand, which input holds its integers and which its zero point.
OPERANDS: dict[str, tuple[tuple[int, int], ...]] = {
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
    "QAttention": ((0, 6), (1, 7)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "QLinearMatMul": ((0, 2), (3, 5)),
    "QGemm": ((0, 2), (3, 5)),
    "QLinearConv": ((0, 2),),
    "ConvInteger": ((0, 2),),
}


@dataclass(frozen=True)
class Quantizer:
    """A tap in the executed graph.

    Attributes:
        tap: the manifest's entry.
        tensor: the name of the integer tensor there.
        elem_type: TensorProto's number of its type, int8 or uint8.
        offset: the engine's zero point minus the manifest's: 128 where int8 became uint8.
    """

    tap: Tap
    tensor: str
    elem_type: int
    offset: int

    def to_reference(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int16]:
        """The engine's integers counted from the manifest's zero point: int16, same shape."""
        shifted: npt.NDArray[np.int16] = values.astype(np.int16) - np.int16(self.offset)
        return shifted

    def from_reference(self, golden: npt.NDArray[np.int8]) -> npt.NDArray[np.generic]:
        """Golden integers as the engine's type and zero point, same shape.

        Raises:
            IntvitError: they do not fit the engine's type.
        """
        dtype = np.dtype(np.uint8 if self.elem_type == UINT8 else np.int8)
        values = golden.astype(np.int16) + np.int16(self.offset)
        if values.size and (values.min() < np.iinfo(dtype).min or values.max() > np.iinfo(dtype).max):
            why = f"levels {values.min()}..{values.max()} in {dtype}"
            raise IntvitError("the engine's zero point does not fit the golden values", where=self.tap.name, why=why)
        fitting: npt.NDArray[np.generic] = values.astype(dtype)
        return fitting


@dataclass(frozen=True)
class _Place:
    """An integer tensor and the name of its zero point (empty: none)."""

    tensor: str
    zero_point: str


def _input(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def _bare(node: Node) -> bool:
    """Whether a node makes int8 levels as the manifest counts them, without a zero point of its own."""
    return node.op_type == _CAST or (is_kernel(node) and node.op_type == LINEAR_I8)


def _maker(tensor: str, graph: Graph) -> Node | None:
    """The node that makes the values of ``tensor``: what only moves them is passed over."""
    node = graph.producer.get(tensor)
    while node is not None and node.op_type in MOVES:
        node = graph.producer.get(node.inputs[0])
    return node


def _by_quantizer(tap: Tap, source: Node | None, executed: Graph) -> _Place | None:
    node = executed.producer.get(tap.tensor)
    if node is not None and _bare(node):
        return _Place(tap.tensor, "")
    node = _maker(tap.tensor, executed)
    if node is not None and node.op_type == _QUANTIZE:
        return _Place(tap.tensor, _input(node, 2))
    named = [node for node in executed.nodes if source and source.name == node.name != "" and node.op_type == _QUANTIZE]
    return _Place(named[0].outputs[0], _input(named[0], 2)) if len(named) == 1 else None


def _products(tap: Tap, plain: Graph) -> Iterator[tuple[str, int]]:
    """The products that read a tap in the stored graph: names their output may carry, and which operand the tap is."""
    values = {
        name
        for node in plain.nodes
        if node.op_type == _DEQUANTIZE and tap.tensor in node.inputs[:1]
        for name in node.outputs
    }
    for node in plain.nodes:
        for index in (0, 1):
            if node.op_type in ("MatMul", "Gemm", "Conv") and _input(node, index) in values:
                yield node.outputs[0], index
                for after in plain.nodes:  # the optimizer may have put the bias into the product
                    if after.op_type == "Add" and node.outputs[0] in after.inputs:
                        yield after.outputs[0], index


def _by_product(tap: Tap, plain: Graph, executed: Graph) -> _Place | None:
    for output, index in _products(tap, plain):
        node = executed.producer.get(output)
        if node is None:
            continue
        if node.op_type in OPERANDS and index < len(OPERANDS[node.op_type]):
            tensor, zero_point = OPERANDS[node.op_type][index]
            return _Place(_input(node, tensor), _input(node, zero_point))
        source = executed.producer.get(_input(node, index))
        if source is not None and source.op_type == _DEQUANTIZE:
            return _Place(source.inputs[0], _input(source, 2))
    return None


def locate(taps: Sequence[Tap], plain: Graph, executed: Graph, *, where: str) -> list[Quantizer]:
    """Find every tap of the manifest in the executed graph.

    Args:
        taps: the manifest's, in execution order.
        plain: the bundle's graph, as stored.
        executed: the same graph after ONNX Runtime's optimizer.
        where: the graph's file, for messages.

    Raises:
        IntvitError: a tap is not there, or its zero point is no int8 or uint8 constant.
    """
    found = []
    for tap in taps:
        place = _by_quantizer(tap, plain.producer.get(tap.tensor), executed) or _by_product(tap, plain, executed)
        if place is None:
            raise IntvitError(
                f"tap {tap.name!r} is not in the graph ONNX Runtime executes",
                where=where,
                why=f"neither {tap.tensor!r}, nor its QuantizeLinear, nor the product that reads it is left there",
                next="build the bundle again; every node of its graph needs a name of its own",
            )
        if not place.zero_point and _bare(executed.producer[place.tensor]):
            found.append(Quantizer(tap, place.tensor, INT8, 0))
            continue
        constant = executed.constant.get(place.zero_point)
        zero_point = constant.scalar() if constant else None
        if constant is None or zero_point is None:
            why = f"{place.tensor!r} has no int8 or uint8 zero point among the constants"
            raise IntvitError(f"cannot read the integers of tap {tap.name!r}", where=where, why=why)
        found.append(Quantizer(tap, place.tensor, constant.data_type, zero_point - tap.zero_point))
    return found


def symmetric(taps: Sequence[Tap], graph: Graph, *, where: str) -> list[Quantizer]:
    """The taps in a graph that runs as it is stored: each its own int8 QuantizeLinear, zero point 0, moved or not,
    or the output of a kernel that quantizes.

    Raises:
        IntvitError: a tap is not in the graph, or is no such quantizer.
    """
    for tap in taps:
        node = _maker(tap.tensor, graph)
        if node is not None and node.op_type != _CAST and _bare(node):
            continue
        zero = graph.constant.get(node.inputs[2]) if node is not None and len(node.inputs) > 2 else None
        if node is None or node.op_type != _QUANTIZE or zero is None or zero.data_type != INT8 or zero.scalar():
            why = f"no QuantizeLinear with an int8 zero point of 0 makes {tap.tensor!r}"
            raise IntvitError("a tap is not in the graph", where=where, why=why, next="build the bundle again")
    return [Quantizer(tap, tap.tensor, INT8, 0) for tap in taps]

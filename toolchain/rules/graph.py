"""Questions about quantized graphs that several rules ask. They hold for any exporter's form, not only for ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = ("MatMul", "Gemm", "Conv")
# What may stand between two nodes without changing the numbers.
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")
FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_DEPTH = 16


def nodes(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """Every node of those types, whatever their domain (all when none is given), nested graphs included."""
    return (node for node in model.graph.all_nodes() if not op_types or node.op_type in op_types)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``, or None where the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes ``value``, if it is of one of those types."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def readers(node: ir.Node) -> list[ir.Node]:
    """Every node that reads the first output, once for each time it does."""
    return [use.node for use in node.outputs[0].uses()]


def foldable(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Whether ``value`` is known before the model runs: a constant, or computed from constants only."""
    if value is None or depth == 0:
        return False
    if value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and bool(node.inputs) and all(foldable(v, depth - 1) for v in node.inputs if v is not None)


def stored(value: ir.Value | None, depth: int = _DEPTH) -> np.ndarray | None:
    """The array ``value`` holds, through Identity and Cast as exporters write constants; None where it is computed."""
    held = constant(value)
    node = producer(value, "Identity", "Cast")
    if held is not None or node is None or value is None or depth == 0:
        return held
    source = stored(node.inputs[0], depth - 1)
    if source is None or node.op_type == "Identity":
        return source
    with np.errstate(invalid="ignore"):
        return None if value.dtype is None else source.astype(value.dtype.numpy())


def vector(value: ir.Value | None) -> bool:
    """Whether ``value`` has more than one element, as far as the graph tells."""
    if value is None or value.shape is None:
        return False
    return any(not isinstance(size, int) or size > 1 for size in value.shape)


def integer_type(node: ir.Node) -> ir.DataType | None:
    """The type on the integer side of a QuantizeLinear or DequantizeLinear; UINT8 where ONNX's default applies."""
    zero = given(node, 2)
    if node.op_type == DEQUANTIZE:
        source = node.inputs[0]
        if source is not None and source.dtype is not None:
            return source.dtype
        made = producer(source, QUANTIZE)
        return integer_type(made) if made is not None else (zero.dtype if zero is not None else None)
    if zero is not None:
        return zero.dtype
    chosen = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(chosen) if chosen else ir.DataType.UINT8


def block_size(dequantize: ir.Node) -> int:
    """Elements that share a scale along the axis; 0 where scales are per tensor or per axis."""
    return dequantize.attributes.get_int("block_size", 0)


def integers(dequantize: ir.Node) -> np.ndarray | None:
    """The stored integers that a DequantizeLinear reads, through a Cast; None where they are not stored."""
    return stored(dequantize.inputs[0])


@dataclass(frozen=True)
class Operand:
    """One factor of a product.

    Attributes:
        value: what the product reads.
        dequantize: the DequantizeLinear behind it, through layout nodes and casts; None for a float operand.
        summed: the axes of the dequantized tensor that the product sums over; None where a reshape hides them.
        stored: whether its integers are known before the model runs, as weights are.
        cast: whether a Cast stands between.
    """

    value: ir.Value
    dequantize: ir.Node | None
    summed: frozenset[int] | None
    stored: bool
    cast: bool


@dataclass(frozen=True)
class Product:
    """A MatMul, Gemm or Conv and its two factors."""

    node: ir.Node
    left: Operand
    right: Operand

    @property
    def weight(self) -> Operand | None:
        """The dequantized factor whose integers are stored."""
        return next((side for side in (self.right, self.left) if side.dequantize is not None and side.stored), None)

    @property
    def activation(self) -> Operand | None:
        """The dequantized factor that is computed, where there is one and the other is a weight or another such."""
        return next((side for side in (self.left, self.right) if side.dequantize is not None and not side.stored), None)

    @property
    def integer(self) -> bool:
        """Whether both factors are dequantized: what a target may run as an integer product."""
        return self.left.dequantize is not None and self.right.dequantize is not None


def products(model: ir.Model) -> Iterator[Product]:
    """Every MatMul, Gemm and Conv of the graph."""
    for node in nodes(model, *PRODUCTS):
        left, right = given(node, 0), given(node, 1)
        if left is not None and right is not None:
            yield Product(node, _operand(node, left, 0), _operand(node, right, 1))


def weights(model: ir.Model) -> Iterator[tuple[Product, Operand, ir.Node]]:
    """Every product with a stored weight, that factor, and the DequantizeLinear it comes from."""
    for product in products(model):
        weight = product.weight
        if weight is not None and weight.dequantize is not None:
            yield product, weight, weight.dequantize


def _operand(product: ir.Node, value: ir.Value, side: int) -> Operand:
    summed, current, cast = _summed(product, value, side), value, False
    for _ in range(_DEPTH):
        node = current.producer()
        if node is None or node.op_type not in (*LAYOUT, DEQUANTIZE):
            break
        source = node.inputs[0]
        if source is None:
            break
        if node.op_type == DEQUANTIZE:
            return Operand(value, node, summed, foldable(source), cast)
        if node.op_type == "Transpose":
            summed = _before_transpose(node, summed, source)
        elif node.op_type == "Cast":
            cast = True
        elif node.op_type != "Identity":
            summed = None
        current = source
    return Operand(value, None, None, False, cast)


def _summed(product: ir.Node, value: ir.Value, side: int) -> frozenset[int] | None:
    if product.op_type == "Gemm":
        transposed = bool(product.attributes.get_int("transB" if side else "transA", 0))
        return frozenset([int(transposed) if side else 1 - int(transposed)])
    if value.shape is None:
        return None
    rank = len(value.shape)
    if product.op_type == "Conv":
        return frozenset(range(1, rank)) if side else frozenset([1])
    return frozenset([max(rank - 2, 0) if side else rank - 1])


def _before_transpose(node: ir.Node, summed: frozenset[int] | None, source: ir.Value) -> frozenset[int] | None:
    if summed is None:
        return None
    order = node.attributes.get_ints("perm", ())
    if not order and source.shape is not None:
        order = list(range(len(source.shape)))[::-1]
    return frozenset(order[axis] for axis in summed) if max(summed) < len(order) else None


def axis_of(node: ir.Node, value: ir.Value | None) -> int | None:
    """The axis of a QuantizeLinear's or DequantizeLinear's scales, counted from the front; ONNX's default is 1."""
    axis = node.attributes.get_int("axis", 1)
    if axis >= 0:
        return axis
    return None if value is None or value.shape is None else axis + len(value.shape)

"""The left operand of every integer product becomes unsigned: the same sums, on x86's fast kernels.

``MatMulInteger(a int8, b int8)`` becomes ``MatMulInteger(a + 128 as uint8, b, 128, 0)``. ONNX Runtime's product of
signed with signed is many times slower there (``toolchain.lint``'s rule s8s8-operator has the figures). The int8 tensor
stays, and stays the tap.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OFFSET = 128


class UnsignedLeft(ir.passes.InPlacePass):
    """For the hand-written products of graphs without float (``+int``)."""

    def requires(self, model: ir.Model) -> None:
        """No product has zero points of its own."""
        for node in _signed(model):
            if any(value is not None for value in node.inputs[2:]):
                raise ir.passes.PreconditionError(f"{node.name} has a zero point already")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put three nodes before each product, and give it zero points."""
        found = _signed(model)
        for node in found:
            left = node.inputs[0]
            assert left is not None
            wide = _before(node, "Cast", [left], ir.DataType.INT32, to=ir.DataType.INT32.value)
            offset = _constant(model, "unsigned_offset", np.int32(OFFSET))
            raised = _before(node, "Add", [wide, offset], ir.DataType.INT32)
            unsigned = _before(node, "Cast", [raised], ir.DataType.UINT8, to=ir.DataType.UINT8.value)
            node.replace_input_with(0, unsigned)
            zeros = (
                _constant(model, "unsigned_zero", np.uint8(OFFSET)),
                _constant(model, "signed_zero", np.int8(0)),
            )
            node.resize_inputs(4)
            for index, zero in enumerate(zeros, 2):
                node.replace_input_with(index, zero)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No product of signed with signed is left."""
        if _signed(model):
            raise ir.passes.PostconditionError("a product of signed with signed integers is left")


def _signed(model: ir.Model) -> list[ir.Node]:
    def signed(value: ir.Value | None) -> bool:
        return value is not None and value.dtype == ir.DataType.INT8

    nodes = (node for node in model.graph if node.op_type == "MatMulInteger")
    return [node for node in nodes if signed(node.inputs[0]) and signed(node.inputs[1])]


def _before(node: ir.Node, op_type: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
    """A new node right before ``node``, named after it; its output."""
    name = f"{node.name}/{op_type}{dtype.name}"
    value = ir.Value(name=f"{name}:0", shape=inputs[0].shape, type=ir.TensorType(dtype))
    made = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node.prepend(ir.Node("", op_type, inputs, made, outputs=[value], name=name))
    return value


def _constant(model: ir.Model, name: str, value: np.generic) -> ir.Value:
    """An initializer of the graph, made once."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.asarray(value), name=name)
        made = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.initializers[name] = made
    return model.graph.initializers[name]

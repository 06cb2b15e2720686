"""INT4 weights stay 4-bit in the file and become INT8 when the model is loaded.

ONNX Runtime has no integer kernel for INT4 weights with INT8 activations: DequantizeLinear on INT4 runs at every call,
followed by a float MatMul. With a Cast to INT8 in between, both fold at load and the 8-bit kernel runs, exactly.
"""

from __future__ import annotations

import onnx_ir as ir


class ExpandInt4(ir.passes.InPlacePass):
    """DequantizeLinear(INT4 initializer) becomes DequantizeLinear(Cast(INT4 initializer -> INT8)), but for blocks.

    Weights in blocks meet float activations, and stay packed in the engine too.
    """

    def requires(self, model: ir.Model) -> None:
        """INT4 initializers feed DequantizeLinear and nothing else."""
        for value in _int4(model):
            for user, _ in value.uses():
                if user.op_type != "DequantizeLinear":
                    raise ir.passes.PreconditionError(f"INT4 tensor {value.name} feeds {user.op_type} {user.name}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert one Cast per INT4 initializer."""
        found = _int4(model)
        for value in found:
            users = [use.node for use in value.uses()]
            wide = ir.Value(name=f"{value.name}.int8", shape=value.shape, type=ir.TensorType(ir.DataType.INT8))
            to = ir.AttrInt64("to", ir.DataType.INT8.value)
            cast = ir.Node("", "Cast", [value], [to], outputs=[wide], name=f"{value.name}/Cast")
            next(node for node in model.graph if node in users).prepend(cast)
            for user in users:
                user.replace_input_with(0, wide)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """INT4 initializers feed Cast and nothing else."""
        for value in _int4(model):
            if not all(_settled(use.node) for use in value.uses()):
                raise ir.passes.PostconditionError(f"INT4 tensor {value.name} is still dequantized directly")


def _int4(model: ir.Model) -> list[ir.Value]:
    """INT4 initializers that are read, but for those in blocks and those that a Cast widens to INT8 already."""
    values = (value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT4)
    return [value for value in values if not all(_settled(use.node) for use in value.uses())]


def _settled(node: ir.Node) -> bool:
    if node.op_type == "DequantizeLinear":
        return node.attributes.get_int("block_size", 0) > 0
    return node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.INT8.value

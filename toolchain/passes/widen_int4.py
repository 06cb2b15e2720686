"""INT4 weights beside a quantized activation are stored as INT8, with the same values.

TensorRT multiplies INT4 with nothing but floats, and takes no Cast between INT4 and DequantizeLinear
(docs/tensorrt.md). The weights keep their 4-bit values and take a byte each.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import Linear, constant, linears, set_constant


class WidenInt4(ir.passes.InPlacePass):
    """DequantizeLinear(INT4 initializer) in an integer product becomes DequantizeLinear(INT8 initializer)."""

    def requires(self, model: ir.Model) -> None:
        """INT4 initializers are the weights of linear layers and nothing else."""
        weights = {id(linear.weight) for linear in linears(model)}
        for value in model.graph.initializers.values():
            if value.dtype == ir.DataType.INT4 and any(id(use.node) not in weights for use in value.uses()):
                raise ir.passes.PreconditionError(f"the INT4 tensor {value.name} is more than the weights of a layer")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Store the weights of every such layer anew."""
        found = _int4_products(model)
        for linear in found:
            value = linear.weight.inputs[0]
            levels = constant(value)
            assert value is not None and levels is not None
            if levels.dtype != np.int8:  # another layer may have shared them
                set_constant(value, levels.astype(np.int8))
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No product with a quantized activation has INT4 weights."""
        if left := _int4_products(model):
            raise ir.passes.PostconditionError(f"{left[0].matmul.name} still has INT4 weights")


def _int4_products(model: ir.Model) -> list[Linear]:
    return [
        linear
        for linear in linears(model)
        if linear.activation is not None
        and linear.weight.inputs[0] is not None
        and linear.weight.inputs[0].dtype == ir.DataType.INT4
    ]

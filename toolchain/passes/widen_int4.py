"""INT4 weights that an engine cannot take are stored as INT8, with the same values.

TensorRT multiplies INT4 with nothing but floats, and takes no Cast between INT4 and DequantizeLinear
(docs/tensorrt.md). OpenVINO 2026.4.1 reads INT4 of an odd number of input channels wrongly. The weights keep their
4-bit values and take a byte each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import Linear, constant, linears, set_constant


def integer_product(linear: Linear) -> bool:
    """Whether the activation is quantized too."""
    return linear.activation is not None


class WidenInt4(ir.passes.InPlacePass):
    """DequantizeLinear(INT4 initializer) becomes DequantizeLinear(INT8 initializer).

    Args:
        which: of which layers; by default of integer products.
    """

    def __init__(self, which: Callable[[Linear], bool] = integer_product) -> None:
        self.which = which

    def requires(self, model: ir.Model) -> None:
        """INT4 initializers are the weights of linear layers and nothing else."""
        weights = {id(linear.weight) for linear in linears(model)}
        for value in model.graph.initializers.values():
            if value.dtype == ir.DataType.INT4 and any(id(use.node) not in weights for use in value.uses()):
                raise ir.passes.PreconditionError(f"the INT4 tensor {value.name} is more than the weights of a layer")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Store the weights of every such layer anew."""
        found = self._found(model)
        for linear in found:
            value = linear.weight.inputs[0]
            levels = constant(value)
            assert value is not None and levels is not None
            if levels.dtype != np.int8:  # another layer may have shared them
                set_constant(value, levels.astype(np.int8))
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No such layer has INT4 weights."""
        if left := self._found(model):
            raise ir.passes.PostconditionError(f"{left[0].matmul.name} still has INT4 weights")

    def _found(self, model: ir.Model) -> list[Linear]:
        """What ``call`` changes."""
        return [
            linear
            for linear in linears(model)
            if linear.weight.inputs[0] is not None
            and linear.weight.inputs[0].dtype == ir.DataType.INT4
            and self.which(linear)
        ]

"""Weight scales below FP16's normal range borrow a power of two from the activation they meet.

A product's scale is s_x s_w, channel by channel. 2^-14 is the smallest FP16 with all its 11 bits (IEEE 754 binary16); a
channel of small weights has a scale below it, which would lose bits or become 0. ``Q(s_x) -> DQ(s_x 2^-k)`` and
``DQ(w, s_w 2^k)`` give the same product with the same integers, exactly.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, linears, new_constant, set_constant


class BalanceScales(ir.passes.InPlacePass):
    """Raise the weight scales of a layer by the power of two that its smallest one lacks, as far as s_x allows.

    Args:
        smallest: the least number that the compute type holds at full precision.
    """

    def __init__(self, smallest: float = 2.0**-14) -> None:
        self.smallest = smallest

    def requires(self, model: ir.Model) -> None:
        """An activation's scale is a normal number of the compute type."""
        for node in model.graph:
            scale = constant(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
            if scale is not None and float(scale.min()) < self.smallest:
                raise ir.passes.PreconditionError(f"{node.name}: a step of {float(scale.min()):g} is too small")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move what can be moved; what then is still too small stays so, and is dealt with by the type's rounding."""
        changed = False
        for linear in linears(model):
            weight = linear.weight.inputs[1]
            if linear.activation is None or weight is None:
                continue
            scales, step = constant(weight), constant(linear.activation.inputs[1])
            assert scales is not None and step is not None
            lacking = math.ceil(math.log2(self.smallest / max(float(scales.min()), 1e-38)))
            power = min(lacking, math.floor(math.log2(float(step) / self.smallest)))
            if power <= 0:
                continue
            set_constant(weight, np.ldexp(scales, power))
            self._set_step(model.graph, linear.activation, np.ldexp(step, -power))
            changed = True
        return ir.passes.PassResult(model, changed)

    def ensures(self, model: ir.Model) -> None:
        """No activation's scale has become too small instead."""
        for linear in linears(model):
            step = constant(linear.activation.inputs[1]) if linear.activation is not None else None
            if step is not None and float(step) < self.smallest:
                raise ir.passes.PostconditionError(f"{linear.matmul.name}: the activation's scale is {float(step):g}")

    def _set_step(self, graph: ir.Graph, dequantize: ir.Node, step: np.ndarray) -> None:
        """The DequantizeLinear gets a scale of its own; its QuantizeLinear keeps the old one."""
        shared = dequantize.inputs[1]
        assert shared is not None
        dequantize.replace_input_with(1, new_constant(graph, f"{shared.name}.balanced", step))

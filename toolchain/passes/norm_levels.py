"""LayerNorm of dequantized integers reads the integers themselves: the same function, with epsilon in squared steps.

    Q(s) -> DQ(s) -> LayerNormalization(eps)
    Q(s) -> DQ(1) -> LayerNormalization(eps / s^2)

OpenVINO's CPU plugin takes the step out of the norm by itself, so that the norm reads one byte an element, and leaves
epsilon as it was (2026.4.1): where a token varies little, that moves roundings. Where a multiplication by channel comes
between, it does not, and nor does this pass.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, drop, new_constant


class NormLevels(ir.passes.InPlacePass):
    """For the residual stream in integers (``+res8``). Each such norm gets a DequantizeLinear of its own."""

    def requires(self, model: ir.Model) -> None:
        """The integers have one step a tensor and zero point 0."""
        for norm, dequantize in _norms(model):
            step, zero = constant(dequantize.inputs[1]), constant(dequantize.inputs[2])
            if step is None or step.size != 1 or zero is None or zero.any():
                raise ir.passes.PreconditionError(f"{norm.name} reads integers without a single step or zero point 0")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match."""
        found = _norms(model)
        for norm, dequantize in found:
            _rewrite(model.graph, norm, dequantize)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No norm reads integers times a step."""
        if left := _norms(model):
            raise ir.passes.PostconditionError(f"{left[0][0].name} still reads integers times their step")


def _norms(model: ir.Model) -> list[tuple[ir.Node, ir.Node]]:
    """Every LayerNormalization of integers times a step that is not 1, and the DequantizeLinear that it reads."""
    found = []
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "LayerNormalization" else None
        dequantize = value.producer() if value is not None else None
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            step = constant(dequantize.inputs[1])
            if step is None or (step != 1).any():
                found.append((node, dequantize))
    return found


def _rewrite(graph: ir.Graph, norm: ir.Node, dequantize: ir.Node) -> None:
    levels, scale, zero = dequantize.inputs[:3]
    step = constant(scale)
    assert step is not None
    one = new_constant(graph, f"{norm.name}.unit", np.ones_like(step))
    out = ir.Value(name=f"{norm.name}/levels:0", type=dequantize.outputs[0].type)
    norm.prepend(ir.Node("", "DequantizeLinear", [levels, one, zero], outputs=[out], name=f"{norm.name}/levels"))
    norm.replace_input_with(0, out)
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon / float(step.item()) ** 2)
    if not dequantize.outputs[0].uses():
        drop(graph, dequantize)

"""A shift before a quantizer becomes its zero point: one float operation less, the same integers.

Canonical: ``Sub c -> [Clip] -> Q(s, 0) -> DQ(s, 0) -> MatMul W -> Add (b + W c)``, with c a whole multiple of s.
Afterwards: ``[Clip] -> Q(s, -c/s) -> DQ(s, -c/s) -> MatMul W -> Add b``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, drop, set_constant
from toolchain.passes.shift import Shift, shifts


class ShiftToZeroPoint(ir.passes.InPlacePass):
    """For targets whose quantizers take an int8 zero point."""

    def requires(self, model: ir.Model) -> None:
        """Every shift before a quantizer is a whole multiple of its step, within int8."""
        for match in shifts(model):
            steps = match.shift / match.scale
            if abs(steps - round(steps)) > 1e-3 or abs(round(steps)) > 128:
                raise ir.passes.PreconditionError(f"{match.sub.name}: a shift of {steps} steps is no int8 zero point")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match."""
        found = shifts(model)
        for match in found:
            self._rewrite(model.graph, match)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No shift is left before a quantizer."""
        if shifts(model):
            raise ir.passes.PostconditionError("a shift is left before a quantizer")

    def _rewrite(self, graph: ir.Graph, match: Shift) -> None:
        source = match.sub.inputs[0]
        zero = match.quantize.inputs[2]
        assert source is not None and zero is not None
        set_constant(zero, np.asarray(-round(match.shift / match.scale), dtype=np.int8))
        bias_value = match.add.inputs[1]
        assert bias_value is not None
        bias = constant(bias_value)
        assert bias is not None
        restored = bias.astype(np.float64) - np.float64(np.float32(match.shift)) * match.column_sums()
        set_constant(bias_value, restored.astype(np.float32))
        first = match.clip or match.quantize
        if match.clip is not None:
            for bound in match.clip.inputs[1:]:
                assert bound is not None
                values = constant(bound)
                assert values is not None
                set_constant(bound, (values + np.float32(match.shift)).astype(np.float32))
        first.replace_input_with(0, source)
        drop(graph, match.sub)

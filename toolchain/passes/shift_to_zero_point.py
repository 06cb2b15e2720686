"""A shift before a quantizer becomes its zero point: one float operation less, the same integers.

Canonical: ``Sub c -> [Clip] -> Q(s, 0) -> DQ(s, 0) -> MatMul W -> Add (b + W c)``, with c a whole multiple of s.
Afterwards: ``[Clip] -> Q(s, -c/s) -> DQ(s, -c/s) -> MatMul W -> Add b``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, drop, only_consumer, set_constant


@dataclass(frozen=True)
class _Match:
    sub: ir.Node
    clip: ir.Node | None
    quantize: ir.Node
    dequantize: ir.Node
    matmul: ir.Node
    add: ir.Node
    shift: float
    scale: float


class ShiftToZeroPoint(ir.passes.InPlacePass):
    """For targets whose quantizers take an int8 zero point."""

    def requires(self, model: ir.Model) -> None:
        """Every shift before a quantizer is a whole multiple of its step, within int8."""
        for match in _matches(model):
            steps = match.shift / match.scale
            if abs(steps - round(steps)) > 1e-3 or abs(round(steps)) > 128:
                raise ir.passes.PreconditionError(f"{match.sub.name}: a shift of {steps} steps is no int8 zero point")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match."""
        found = _matches(model)
        for match in found:
            self._rewrite(model.graph, match)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No shift is left before a quantizer."""
        if _matches(model):
            raise ir.passes.PostconditionError("a shift is left before a quantizer")

    def _rewrite(self, graph: ir.Graph, match: _Match) -> None:
        source = match.sub.inputs[0]
        zero = match.quantize.inputs[2]
        assert source is not None and zero is not None
        set_constant(zero, np.asarray(-round(match.shift / match.scale), dtype=np.int8))
        bias_value = match.add.inputs[1]
        weight = match.matmul.inputs[1]
        assert bias_value is not None and weight is not None
        bias = constant(bias_value)
        assert bias is not None
        columns = _column_sums(weight)
        restored = bias.astype(np.float64) - np.float64(np.float32(match.shift)) * columns
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


def _column_sums(weight: ir.Value) -> np.ndarray:
    """Sum over input channels of the dequantized weights [K, N], float64 (N,)."""
    dequantize = weight.producer()
    assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
    source = dequantize.inputs[0]
    assert source is not None
    producer = source.producer()
    if producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
    levels, scale = constant(source), constant(dequantize.inputs[1])
    assert levels is not None and scale is not None
    return levels.astype(np.float64).sum(0) * scale.astype(np.float64)


def _matches(model: ir.Model) -> list[_Match]:
    return [match for node in model.graph if node.op_type == "Sub" and (match := _match(node)) is not None]


def _match(sub: ir.Node) -> _Match | None:
    shift = constant(sub.inputs[1])
    if shift is None or shift.size != 1:
        return None
    clip = only_consumer(sub.outputs[0], "Clip")
    quantize = only_consumer((clip or sub).outputs[0], "QuantizeLinear")
    dequantize = only_consumer(quantize.outputs[0], "DequantizeLinear") if quantize else None
    matmul = only_consumer(dequantize.outputs[0], "MatMul") if dequantize else None
    add = only_consumer(matmul.outputs[0], "Add") if matmul else None
    scale = constant(quantize.inputs[1]) if quantize else None
    if quantize is None or dequantize is None or matmul is None or add is None or scale is None:
        return None
    return _Match(sub, clip, quantize, dequantize, matmul, add, float(shift), float(scale))

"""The step of a scaled and shifted quantizer goes into the numbers before it: round, and nothing to divide.

    Mul r    -> Sub c  -> [Clip low, high]   -> Q(s) -> DQ(s)
    Mul r/s  -> Sub k  -> [Clip of levels]   -> Q(1) -> DQ(s)        k = c/s, a whole number, by channel

The two differ in how float32 rounds (r x - c) / s, no more. For OpenVINO, whose product writes int8 itself: a
multiplication and a subtraction by channel are then all that follows GELU. A shift that is the same in every channel it
would merge with the quantizer into a scalar operation that takes longer, so the first channel's is the next float32
away from 0, at most 2^-16 of a level (docs/decisions/0022-openvino-epilogue.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, forget, new_constant, only_consumer
from toolchain.passes.shift import Shift, shifts


@dataclass(frozen=True)
class _Scaled:
    """A shift and the multiplication by channel before it."""

    mul: ir.Node
    shift: Shift


class UnitStep(ir.passes.InPlacePass):
    """For fc2's input, behind GELU. The DequantizeLinear keeps the step, in a constant of its own."""

    def requires(self, model: ir.Model) -> None:
        """The shift is a whole number of steps, below 256."""
        for match in _scaled(model):
            steps = match.shift.shift / match.shift.scale
            if abs(steps - round(steps)) > 1e-3 or abs(round(steps)) > 255:
                raise ir.passes.PreconditionError(f"{match.shift.sub.name}: a shift of {steps} steps is no level")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match."""
        found = _scaled(model)
        for match in found:
            _rewrite(model.graph, match)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No shift behind a multiplication is left before a quantizer that divides."""
        if left := _scaled(model):
            raise ir.passes.PostconditionError(f"{left[0].shift.quantize.name} still divides by its step")


def _scaled(model: ir.Model) -> list[_Scaled]:
    """Every ``Mul vector -> Sub scalar -> [Clip] -> Q(s)`` of which nothing else reads a part, s not 1."""
    found = []
    for shift in shifts(model):
        value = shift.sub.inputs[0]
        mul = value.producer() if value is not None else None
        factors = constant(mul.inputs[1]) if mul is not None and mul.op_type == "Mul" else None
        if value is None or mul is None or factors is None or factors.ndim != 1 or factors.size < 2:
            continue
        if only_consumer(value, "Sub") is not None and shift.scale != 1.0:
            found.append(_Scaled(mul, shift))
    return found


def _rewrite(graph: ir.Graph, match: _Scaled) -> None:
    shift, step = match.shift, np.float32(match.shift.scale)
    factors = constant(match.mul.inputs[1])
    assert factors is not None
    _own(graph, match.mul, 1, factors / step)
    levels = np.full(factors.shape, round(shift.shift / shift.scale), np.float32)
    levels[0] = np.nextafter(levels[0], np.float32(np.copysign(np.inf, levels[0])))
    _own(graph, shift.sub, 1, levels)
    for index in (1, 2) if shift.clip is not None else ():
        assert shift.clip is not None
        bound = constant(shift.clip.inputs[index])
        assert bound is not None
        _own(graph, shift.clip, index, np.round(bound / step))
    _own(graph, shift.quantize, 1, np.ones_like(step))
    for node in (match.mul, shift.sub, shift.clip):
        if node is not None:  # a name of its own: these are levels now, and no longer what the canonical graph calls so
            node.outputs[0].name = f"{node.outputs[0].name}.levels"


def _own(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give ``node`` a constant of its own as input ``index``; what nobody reads then, goes."""
    old = node.inputs[index]
    assert old is not None and old.name is not None
    node.replace_input_with(index, new_constant(graph, f"{old.name}.unit", np.asarray(array, dtype=np.float32)))
    forget(graph, [old])

"""INT8 quantizers become E4M3 ones over the same ranges: the FP8 sibling of an integer graph.

E4M3 has four significant bits at every magnitude up to 448 and is finest near 0 (the OCP 8-bit floating point
specification). So a range is taken as it is; a shift after GELU is undone, since it would put the bulk of the values at
the coarse end; and integers of up to 16 in magnitude, 4-bit weights, are exact.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from runtime.quantizers import MOVES
from toolchain.passes.match import constant, drop, linears, set_constant
from toolchain.passes.shift import Shift, shifts

LARGEST = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
EXACT = 16  # every integer up to here has at most four significant bits
_INTEGERS = (ir.DataType.INT8, ir.DataType.INT4)


class Float8(ir.passes.InPlacePass):
    """QuantizeLinear to INT8 becomes QuantizeLinear to FLOAT8E4M3FN; the weights it meets follow."""

    def requires(self, model: ir.Model) -> None:
        """Quantizers have zero point 0 and use all of INT8; integers are dequantized where they are made; weights meet
        quantized activations."""
        for node in model.graph:
            if node.op_type == "QuantizeLinear":
                zero, source = constant(node.inputs[2]), node.inputs[0]
                if zero is None or zero.dtype != np.int8 or zero.any():
                    raise ir.passes.PreconditionError(f"{node.name}: its zero point is not INT8 0")
                made_by = source.producer() if source is not None else None
                if made_by is not None and made_by.op_type == "Clip":
                    raise ir.passes.PreconditionError(f"{node.name}: activations of fewer than 8 bits have no FP8 form")
            made = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
            if made is not None and made.op_type in ("Slice", *MOVES):
                raise ir.passes.PreconditionError(
                    f"{node.name}: integers of the residual stream (+res8) are moved first, and ONNX slices no FP8"
                )
        if any(linear.activation is None for linear in linears(model)):
            raise ir.passes.PreconditionError("float activations (a16) have no quantizers to make FP8")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Undo the shifts, then give every quantizer and every weight its new type and scale."""
        peaks = {id(shift.quantize): self._unshift(model.graph, shift) for shift in shifts(model)}
        for linear in linears(model):
            self._weights(linear.weight)
        found = [node for node in model.graph if node.op_type == "QuantizeLinear"]
        for node in found:
            step, zero = node.inputs[1], node.inputs[2]
            old = constant(step)
            assert step is not None and zero is not None and old is not None
            peak = peaks.get(id(node), 127 * float(old))
            set_constant(step, np.asarray(peak / LARGEST, dtype=np.float32))
            set_constant(zero, np.asarray(0, dtype=ml_dtypes.float8_e4m3fn))
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Nothing is dequantized from integers."""
        for node in model.graph:
            if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype in _INTEGERS:
                raise ir.passes.PostconditionError(f"{node.name} still dequantizes {node.inputs[0].dtype.name}")

    def _unshift(self, graph: ir.Graph, shift: Shift) -> float:
        """Quantize x rather than x - c; returns the largest magnitude of x that the quantizer's levels reach."""
        bias, source = shift.add.inputs[1], shift.sub.inputs[0]
        old = constant(bias)
        assert bias is not None and source is not None and old is not None
        set_constant(bias, (old.astype(np.float64) - shift.shift * shift.column_sums()).astype(np.float32))
        shift.quantize.replace_input_with(0, source)
        drop(graph, shift.sub)
        return max(abs(shift.shift - 128 * shift.scale), abs(shift.shift + 127 * shift.scale))

    def _weights(self, dequantize: ir.Node) -> None:
        weight, scale = dequantize.inputs[0], dequantize.inputs[1]
        levels, old = constant(weight), constant(scale)
        assert weight is not None and scale is not None and levels is not None and old is not None
        if levels.dtype == ml_dtypes.float8_e4m3fn:
            return
        values = levels.astype(np.float32)
        if float(np.abs(values).max()) > EXACT:
            values = values * np.float32(LARGEST / 127)
            set_constant(scale, (old.astype(np.float64) * (127 / LARGEST)).astype(np.float32))
        set_constant(weight, values.astype(ml_dtypes.float8_e4m3fn))

"""Everything that is float32 between input and output becomes FP16 or BF16, scales of quantizers included.

The integers stay, and so do the operands of our kernels' nodes, which scale in float32. Once both are rounded, a shift
c is no whole multiple of its quantizer's step any more, which would move every value by the same part of a level and
turn as many of their roundings. So the step may be a neighbour of the nearest number, and c follows it. The bias that
undoes c is then made from c and the scales as they are, so that ``W Q(x - c) + W c`` still cancels.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, set_constant
from toolchain.passes.shift import Shift, shifts

_SCALED = ("QuantizeLinear", "DequantizeLinear")
SPREAD = 20.0  # levels from zero that a value after GELU lies, typically: a step off by r moves it by r times as many


class ComputeDtype(ir.passes.InPlacePass):
    """Float32 inside the graph becomes ``dtype``; one Cast after each input and before each output.

    Args:
        dtype: FLOAT16 or BFLOAT16.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.numpy = dtype.numpy()

    def requires(self, model: ir.Model) -> None:
        """Every float constant is FLOAT and within the range of ``dtype``."""
        largest = float(ml_dtypes.finfo(self.numpy).max)
        for value in _ours(model):
            if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                raise ir.passes.PreconditionError(f"{value.name} is {value.dtype.name} already")
            array = constant(value) if value.dtype == ir.DataType.FLOAT else None
            if array is not None and array.size and not float(np.abs(array).max()) <= largest:
                peak = float(np.abs(array).max())
                raise ir.passes.PreconditionError(f"{value.name} reaches {peak:g}, {self.dtype.name} {largest:g}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cast the constants, retype the values, put Cast at both ends."""
        moved = shifts(model)
        before = [_undoing(shift) for shift in moved]
        scales = {id(node.inputs[1]) for node in model.graph if node.op_type in _SCALED}
        exact = {id(shift.add.inputs[1]): constant(shift.add.inputs[1]) for shift in moved}
        for shift in moved:
            self._land(shift)
        for value in _ours(model):
            array = constant(value) if value.dtype == ir.DataType.FLOAT else None
            if array is not None:
                set_constant(value, self._rounded(array, id(value) in scales))
        for was, now in zip(before, shifts(model), strict=True):
            bias = now.add.inputs[1]
            assert bias is not None
            old = exact[id(bias)]
            assert old is not None
            set_constant(bias, (old.astype(np.float64) - was + _undoing(now)).astype(self.numpy))
        for node in model.graph:
            for made in node.outputs:
                if made.dtype == ir.DataType.FLOAT:
                    made.type = ir.TensorType(self.dtype)
        self._cast_inputs(model.graph)
        self._cast_outputs(model.graph)
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """FLOAT is what enters the first Casts and leaves the last ones, and nothing else."""
        ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
        made = [value for node in model.graph for value in node.outputs]
        for value in (*made, *_ours(model)):
            if value.dtype == ir.DataType.FLOAT and id(value) not in ends:
                raise ir.passes.PostconditionError(f"{value.name} is still FLOAT")

    def _rounded(self, array: np.ndarray, scale: bool) -> np.ndarray:
        """``array`` in the compute type; a scale never becomes 0, which no engine takes."""
        rounded: np.ndarray = array.astype(self.numpy)
        if scale:
            rounded = np.maximum(rounded, ml_dtypes.finfo(self.numpy).smallest_subnormal)
        return rounded.astype(self.numpy)

    def _land(self, shift: Shift) -> None:
        """Give a shifted quantizer the step and the shift, numbers of the compute type, that move its levels least."""
        by, steps = shift.sub.inputs[1], {shift.quantize.inputs[1], shift.dequantize.inputs[1]}
        step, c = self._landing(shift.scale, round(shift.shift / shift.scale))
        for value in (by, *steps):
            array = constant(value)
            assert value is not None and array is not None
            # a DequantizeLinear's own step is the quantizer's times a power of two (toolchain/passes/balance_scales.py)
            landed = c if value is by else step * (float(array) / shift.scale)
            set_constant(value, np.full_like(array, landed))

    def _landing(self, scale: float, steps: int) -> tuple[float, float]:
        """``scale`` and ``steps`` times it, in the compute type.

        Of the number nearest to ``scale`` and its two neighbours: the one whose multiple is nearest to a number of the
        type, with what the step itself is off.
        """
        nearest = self._rounded(np.array(scale), scale=True)
        ends = (self.numpy.type(end) for end in (-np.inf, np.inf))
        found = []
        for step in map(float, (nearest, *(np.nextafter(nearest, end) for end in ends))):
            c = float(self.numpy.type(steps * step))
            if step > 0 and np.isfinite(step) and np.isfinite(c):
                found.append((abs(c / step - steps) + SPREAD * abs(step / scale - 1), step, c))
        _, step, c = min(found)
        return step, c

    def _cast_inputs(self, graph: ir.Graph) -> None:
        for source in graph.inputs:
            if source.dtype != ir.DataType.FLOAT:
                continue
            uses = list(source.uses())
            inside = ir.Value(name=f"{source.name}.compute", shape=source.shape, type=ir.TensorType(self.dtype))
            for use in uses:
                use.node.replace_input_with(use.idx, inside)
            cast = ir.Node("", "Cast", [source], [_to(self.dtype)], outputs=[inside], name=f"{source.name}/Cast")
            graph.insert_before(graph[0], cast)

    def _cast_outputs(self, graph: ir.Graph) -> None:
        for index, made in enumerate(graph.outputs):
            if made.dtype != self.dtype:
                continue
            name, shape = made.name, made.shape
            made.name = f"{name}.compute"
            out = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
            graph.append(
                ir.Node("", "Cast", [made], [_to(ir.DataType.FLOAT)], outputs=[out], name=f"{name}/Cast"),
            )
            graph.outputs[index] = out


def _ours(model: ir.Model) -> list[ir.Value]:
    """The initializers that this pass is for: all but those that nodes of other domains than ONNX's read."""
    foreign = {id(value) for node in model.graph if node.domain for value in node.inputs}
    return [value for value in model.graph.initializers.values() if id(value) not in foreign]


def _undoing(shift: Shift) -> np.ndarray:
    """``W c`` as the graph computes it, (N,) float64; the activation's DequantizeLinear may have a scale of its own."""
    step = constant(shift.dequantize.inputs[1])
    assert step is not None
    sums: np.ndarray = shift.shift * shift.column_sums() * (float(step) / shift.scale)
    return sums


def _to(dtype: ir.DataType) -> ir.Attr:
    return ir.AttrInt64("to", dtype.value)

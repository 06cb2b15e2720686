"""A shift before a quantizer and the layer that undoes it: ``Sub c -> [Clip] -> Q -> DQ -> MatMul W -> Add (b + W c)``.

c is one number a tensor and a whole multiple of the quantizer's step (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, only_consumer


@dataclass(frozen=True)
class Shift:
    """The nodes of one shifted quantizer; ``shift`` is c and ``scale`` the quantizer's step."""

    sub: ir.Node
    clip: ir.Node | None
    quantize: ir.Node
    dequantize: ir.Node
    matmul: ir.Node
    add: ir.Node
    shift: float
    scale: float

    def column_sums(self) -> np.ndarray:
        """Sum over input channels of the dequantized weights [K, N], float64 (N,)."""
        weight = self.matmul.inputs[1]
        dequantize = weight.producer() if weight is not None else None
        assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
        source = dequantize.inputs[0]
        assert source is not None
        producer = source.producer()
        if producer is not None and producer.op_type == "Cast":
            source = producer.inputs[0]
        levels, scale = constant(source), constant(dequantize.inputs[1])
        assert levels is not None and scale is not None
        sums: np.ndarray = levels.astype(np.float64).sum(0) * scale.astype(np.float64)
        return sums


def shifts(model: ir.Model) -> list[Shift]:
    """Every shift before a quantizer, in the order of the graph."""
    return [found for node in model.graph if node.op_type == "Sub" and (found := _match(node)) is not None]


def _match(sub: ir.Node) -> Shift | None:
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
    return Shift(sub, clip, quantize, dequantize, matmul, add, float(shift), float(scale))

"""INT4 weights of float products in blocks, the only form in which TensorRT keeps them 4-bit.

TensorRT documents INT4 as weight-only, in blocks along the summed axis. TensorRT-RTX 1.7.1 stores blocks of 16 to 128
two a byte, and expands some weights with one scale a channel to floats. Every block gets its channel's scale, so the
numbers stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, linears, set_constant

BLOCKS = (128, 64, 32, 16)


class BlockInt4(ir.passes.InPlacePass):
    """DequantizeLinear of INT4 [K, N] with N scales gets K/B x N of them; INT8 where no block size divides K."""

    def requires(self, model: ir.Model) -> None:
        """INT4 weights meet float activations and have one scale per output channel."""
        for linear in _int4(model):
            scale = constant(linear.inputs[1])
            if scale is None or scale.ndim != 1 or linear.attributes.get_int("axis", 1) != 1:
                raise ir.passes.PreconditionError(f"{linear.name}: not one scale per output channel")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the weights of every layer that has INT4 ones."""
        found = _int4(model)
        for dequantize in found:
            weight, scale = dequantize.inputs[0], dequantize.inputs[1]
            levels, per_channel = constant(weight), constant(scale)
            assert weight is not None and scale is not None and levels is not None and per_channel is not None
            block = next((size for size in BLOCKS if levels.shape[0] % size == 0), None)
            if block is None:
                set_constant(weight, levels.astype(np.int8))
                continue
            set_constant(scale, np.tile(per_channel, (levels.shape[0] // block, 1)))
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
            dequantize.attributes["block_size"] = ir.AttrInt64("block_size", block)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Whatever is INT4 is in blocks."""
        if left := _int4(model):
            raise ir.passes.PostconditionError(f"{left[0].name} dequantizes INT4 without blocks")


def _int4(model: ir.Model) -> list[ir.Node]:
    """The DequantizeLinear of every INT4 weight without blocks."""
    return [
        linear.weight
        for linear in linears(model)
        if linear.weight.inputs[0] is not None
        and linear.weight.inputs[0].dtype == ir.DataType.INT4
        and not linear.weight.attributes.get_int("block_size", 0)
    ]

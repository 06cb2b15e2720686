"""INT4 weights of float products in blocks, the form in which TensorRT and ONNX Runtime keep them 4-bit.

TensorRT documents INT4 as weight-only, in blocks of 64 or 128 along the summed axis; TensorRT-RTX 1.7.1 stores them two
a byte, and expands some weights with one scale a channel to floats. ONNX Runtime makes 4-bit MatMulNBits of blocks from
1.22 on; weights with one scale a channel it dequantizes at every call up to 1.24: docs/decisions/0024-weight-groups.md.
Every block gets its channel's scale, so the numbers stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.passes.match import constant, linears, set_constant
from toolchain.targets.choices import TENSORRT_BLOCKS


class BlockInt4(ir.passes.InPlacePass):
    """DequantizeLinear of INT4 [K, N] with N scales gets K/B x N of them; blocks that are there stay.

    Args:
        sizes: what B may be; the first that divides K is taken. widen: whether weights that none divides become INT8,
            or stay as they are.
    """

    def __init__(self, sizes: Sequence[int] = TENSORRT_BLOCKS, widen: bool = True) -> None:
        self.sizes = sizes
        self.widen = widen

    def requires(self, model: ir.Model) -> None:
        """INT4 weights meet float activations and have one scale per output channel."""
        for linear in _int4(model):
            scale = constant(linear.inputs[1])
            if scale is None or scale.ndim != 1 or linear.attributes.get_int("axis", 1) != 1:
                raise ir.passes.PreconditionError(f"{linear.name}: not one scale per output channel")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the weights of every layer that has INT4 ones."""
        found = self._found(model)
        for dequantize in found:
            weight, scale = dequantize.inputs[0], dequantize.inputs[1]
            levels, per_channel = constant(weight), constant(scale)
            assert weight is not None and scale is not None and levels is not None and per_channel is not None
            block = self._block(levels)
            if not block:
                set_constant(weight, levels.astype(np.int8))
                continue
            set_constant(scale, np.tile(per_channel, (levels.shape[0] // block, 1)))
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
            dequantize.attributes["block_size"] = ir.AttrInt64("block_size", block)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Whatever is INT4 beside floats is in blocks, where it can be."""
        if left := self._found(model):
            raise ir.passes.PostconditionError(f"{left[0].name} dequantizes INT4 without blocks")

    def _found(self, model: ir.Model) -> list[ir.Node]:
        """What ``call`` changes."""
        return [node for node in _int4(model) if self.widen or self._block(constant(node.inputs[0]))]

    def _block(self, levels: np.ndarray | None) -> int:
        """The block size for weights [K, N]; 0 where none divides K."""
        return 0 if levels is None else next((size for size in self.sizes if levels.shape[0] % size == 0), 0)


def _int4(model: ir.Model) -> list[ir.Node]:
    """The DequantizeLinear of every INT4 weight without blocks whose product has a float activation."""
    return [
        linear.weight
        for linear in linears(model)
        if linear.activation is None
        and linear.weight.inputs[0] is not None
        and linear.weight.inputs[0].dtype == ir.DataType.INT4
        and not linear.weight.attributes.get_int("block_size", 0)
    ]

"""Graph passes: one a file, each with what it requires, what it does and what it ensures."""

from toolchain.passes.balance_scales import BalanceScales
from toolchain.passes.block_int4 import BlockInt4
from toolchain.passes.compute_dtype import ComputeDtype
from toolchain.passes.expand_int4 import ExpandInt4
from toolchain.passes.float8 import Float8
from toolchain.passes.linear_kernels import LinearKernels
from toolchain.passes.norm_levels import NormLevels
from toolchain.passes.quantize_first import QuantizeFirst
from toolchain.passes.shift_to_zero_point import ShiftToZeroPoint
from toolchain.passes.unit_step import UnitStep
from toolchain.passes.unsigned_left import UnsignedLeft
from toolchain.passes.widen_int4 import WidenInt4

__all__ = [
    "BalanceScales",
    "BlockInt4",
    "ComputeDtype",
    "ExpandInt4",
    "Float8",
    "LinearKernels",
    "NormLevels",
    "QuantizeFirst",
    "ShiftToZeroPoint",
    "UnitStep",
    "UnsignedLeft",
    "WidenInt4",
]

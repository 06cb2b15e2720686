"""Graph passes: one a file, each with what it requires, what it does and what it ensures."""

from toolchain.passes.expand_int4 import ExpandInt4
from toolchain.passes.shift_to_zero_point import ShiftToZeroPoint
from toolchain.passes.unsigned_left import UnsignedLeft

__all__ = ["ExpandInt4", "ShiftToZeroPoint", "UnsignedLeft"]

"""The nodes of a network without float (``+int``): what ``calib.quant.integers`` computes, operation by operation.

Tensors between the nodes are int64: products need it, and every value that stays fits int32. An int8 tensor is made by
a Cast right before each product, ``MatMulInteger``, and is the tap. A shift by e bits is an exact division by 2^e;
where the number may be negative, 2^62 is added before and taken off after, since ONNX's integer Div truncates towards
zero and a shift does not. Float are the image's QuantizeLinear, and the scale and bias of the head's sums.

On x86 ONNX Runtime 1.31.1 compares only the lower halves of some int64 in Min, Max, Clip and ReduceMax
(microsoft/onnxruntime#25280), and its ReduceSum is no longer exact from 2^53 on: so Less and Where, int32 under
ReduceMax, and MatMul with a column of ones for the sum of squares.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from calib.quant import integers
from calib.quant.integer_only import IntAttention, IntLayerNorm, IntMean, ShiftGelu
from calib.quant.linear import QuantLinear
from calib.quant.quantizer import ActQuantizer
from calib.quant.rescale import Rescale
from toolchain.graph.builder import Builder

INT64, INT8, FLOAT = ir.DataType.INT64, ir.DataType.INT8, ir.DataType.FLOAT
LIFT = 62  # 2^62 is above every number that is shifted, and twice of it still fits int64


def number(b: Builder, value: int) -> ir.Value:
    """An int64 constant, shared by all who need that number."""
    return b.const(f"int_{value}".replace("-", "m"), np.int64(value))


def vector(b: Builder, name: str, values: Tensor | np.ndarray) -> ir.Value:
    """int64 constants of one node; a single one is shared."""
    array = np.asarray(values, dtype=np.int64)
    return number(b, int(array.reshape(-1)[0])) if array.size == 1 else b.const(name, array)


def cast(b: Builder, x: ir.Value, to: ir.DataType, output: str | None = None) -> ir.Value:
    """``x`` as type ``to``."""
    made: ir.Value = b.op("Cast", [x], {"to": to.value}, output=output, dtype=to)
    return made


def binary(b: Builder, op_type: str, x: ir.Value, other: ir.Value | int) -> ir.Value:
    """Add, Sub, Mul or Div of int64 tensors; ``other`` may be a number."""
    made: ir.Value = b.op(op_type, [x, number(b, other) if isinstance(other, int) else other])
    return made


def shifted(b: Builder, x: ir.Value, shift: int, lifted: bool = False) -> ir.Value:
    """``floor(x / 2^shift)`` of |x| < 2^62; ``lifted`` says that 2^62 has been added to ``x``."""
    x = x if lifted else binary(b, "Add", x, 1 << LIFT)
    return binary(b, "Sub", binary(b, "Div", x, 1 << shift), 1 << LIFT - shift)


def rescaled(b: Builder, name: str, x: ir.Value, rescale: Rescale, correction: np.ndarray | int = 0) -> ir.Value:
    """:class:`Rescale` on int64 sums (..., N), less ``correction``, an int64 (N,) in their unit."""
    multiplier = rescale.multiplier.numpy()
    offset = rescale.offset.numpy() - np.asarray(correction, dtype=np.int64) * multiplier
    x = b.op("Mul", [x, vector(b, f"{name}.multiplier", multiplier)])
    x = b.op("Add", [x, vector(b, f"{name}.offset", offset + (1 << LIFT))])
    x = shifted(b, x, int(rescale.shift), lifted=True)
    return smaller(b, larger(b, x, number(b, int(rescale.low))), number(b, int(rescale.high)))


def smaller(b: Builder, x: ir.Value, other: ir.Value) -> ir.Value:
    """The minimum of two int64 tensors."""
    made: ir.Value = b.op("Where", [b.op("Less", [x, other], dtype=ir.DataType.BOOL), x, other], dtype=INT64)
    return made


def larger(b: Builder, x: ir.Value, other: ir.Value) -> ir.Value:
    """The maximum of two int64 tensors."""
    made: ir.Value = b.op("Where", [b.op("Greater", [x, other], dtype=ir.DataType.BOOL), x, other], dtype=INT64)
    return made


def product(b: Builder, left: ir.Value, right: ir.Value) -> ir.Value:
    """MatMulInteger of int8 tensors, as int64."""
    return cast(b, b.op("MatMulInteger", [left, right], dtype=ir.DataType.INT32), INT64)


def quantized(b: Builder, site: str, quantizer: ActQuantizer, x: ir.Value) -> ir.Value:
    """The float32 input of the network as int64 levels of 8 bits."""
    assert quantizer.bits == 8
    step, zero = b.const(f"{site}.input_scale", quantizer.scale.numpy()), b.const(f"{site}.input_zero", np.int8(0))
    return cast(b, b.op("QuantizeLinear", [x, step, zero], dtype=INT8), INT64)


def sums(b: Builder, layer: QuantLinear, tap: ir.Value, weight: ir.Value, site: str) -> ir.Value:
    """A layer on its int8 input: int64 levels, or, where nothing rescales it (the head), float32 (..., N)."""
    total = product(b, tap, weight)
    assert layer.in_quant is not None
    columns = int(layer.in_quant.zero_point) * layer.weight_q.long().sum(1).numpy()
    if layer.rescale is not None:
        return rescaled(b, site, total, layer.rescale, columns)
    assert not columns.any()
    scale = (layer.in_quant.scale * layer.weight_scale).numpy()
    made = b.op("Mul", [cast(b, total, FLOAT), b.const(f"{site}.scale", scale)])
    out: ir.Value = b.op("Add", [made, b.const(f"{site}.bias", layer.bias.numpy()[None, None, :])])
    return out


def power(b: Builder, distance: ir.Value, exponent: tuple[int, int]) -> ir.Value:
    """``integers.power(integers.exponent(...))`` of distances >= 0."""
    multiplier, shift = exponent
    t = binary(b, "Add", binary(b, "Mul", distance, multiplier), integers.half(shift))
    t = smaller(b, binary(b, "Div", t, 1 << shift), number(b, integers.OCTAVES << integers.FRACTION))
    octave = 1 << integers.FRACTION
    whole = binary(b, "Div", t, octave)
    fraction = b.op("Sub", [t, binary(b, "Mul", whole, octave)])
    powers = b.const("powers_of_two", np.int64(1) << np.arange(integers.OCTAVES + 1, dtype=np.int64))
    straight = b.op("Sub", [number(b, integers.ONE), fraction])
    made: ir.Value = b.op("Div", [straight, b.op("Gather", [powers, whole], {"axis": 0})])
    return made


def shiftmax(b: Builder, scores: ir.Value, exponent: tuple[int, int]) -> tuple[ir.Value, ir.Value]:
    """``integers.shiftmax``: levels and sums."""
    peak = b.op("ReduceMax", [cast(b, scores, ir.DataType.INT32), b.ints([-1])], {"keepdims": 1})
    e = power(b, b.op("Sub", [cast(b, peak, INT64), scores]), exponent)
    levels = binary(b, "Mul", e, integers.PROBABILITY)
    levels = binary(b, "Div", binary(b, "Add", levels, integers.ONE // 2), integers.ONE)
    return levels, b.op("ReduceSum", [e, b.ints([-1])], {"keepdims": 1})


def mixed(b: Builder, name: str, attn: IntAttention, products: ir.Value, total: ir.Value) -> ir.Value:
    """``attn.mix(integers.mixed(...))``."""
    factor = b.op("Div", [number(b, 1 << integers.RECIPROCAL), total])
    x = shifted(b, b.op("Mul", [products, factor]), integers.RECIPROCAL_SHIFT)
    return rescaled(b, name, x, attn.mix)


def gelu(b: Builder, name: str, act: ShiftGelu, hidden: ir.Value) -> ir.Value:
    """``act`` on 16-bit levels: the next layer's."""
    e = power(b, b.op("Abs", [hidden]), act.exponent)
    positive = b.op("GreaterOrEqual", [hidden, number(b, 0)], dtype=ir.DataType.BOOL)
    upper = b.op("Where", [positive, number(b, integers.ONE), e], dtype=INT64)
    logistic = b.op("Div", [binary(b, "Mul", upper, 1 << integers.SIGMOID), binary(b, "Add", e, integers.ONE)])
    return rescaled(b, name, b.op("Mul", [hidden, logistic]), act.rescale)


def layer_norm(b: Builder, name: str, norm: IntLayerNorm, x: ir.Value) -> ir.Value:
    """``norm`` on levels of the residual stream: the next quantizer's."""
    b.scope = name
    channels = norm.normalized_shape[0]
    lift = 1 << 40  # times C it is above the sum of C levels
    total = b.op("ReduceSum", [x, b.ints([-1])], {"keepdims": 1})
    total = binary(b, "Add", total, channels // 2 + channels * lift)
    d = b.op("Sub", [x, binary(b, "Sub", binary(b, "Div", total, channels), lift)])
    ones = b.const(f"ones_{channels}", np.ones((channels, 1), dtype=np.int64))
    squares = binary(b, "Add", b.op("MatMul", [b.op("Mul", [d, d]), ones]), norm.epsilon)
    factor = b.op("Div", [number(b, 1 << integers.NORM), _root(b, squares)])
    y = shifted(b, b.op("Mul", [d, factor]), integers.NORM_SHIFT)
    return rescaled(b, name, y, norm.rescale)


def _root(b: Builder, values: ir.Value) -> ir.Value:
    """``integers.root`` of (..., 1)."""
    fours = b.const("powers_of_four", np.int64(1) << np.arange(0, LIFT, 2, dtype=np.int64))
    starts = b.const("root_starts", np.int64(1) << np.arange(LIFT // 2 + 1, dtype=np.int64))
    above = cast(b, b.op("GreaterOrEqual", [values, fours], dtype=ir.DataType.BOOL), INT64)
    k: ir.Value = b.op("Gather", [starts, b.op("ReduceSum", [above, b.ints([-1])], {"keepdims": 1})], {"axis": 0})
    for _ in range(integers.NORM_STEPS):
        step = binary(b, "Div", b.op("Add", [k, b.op("Div", [values, k])]), 2)
        k = smaller(b, k, step)
    return k


def mean(b: Builder, module: IntMean, x: ir.Value) -> ir.Value:
    """``module`` on levels (batch, T, C): (batch, 1, C)."""
    total = b.op("ReduceSum", [x, b.ints([1])], {"keepdims": 1})
    return rescaled(b, b.scope, total, module.rescale)


def stream_levels(values: np.ndarray, step: Tensor) -> np.ndarray:
    """Float32 constants of the residual stream, whole multiples of its step, as int64."""
    found: np.ndarray = np.rint(values.astype(np.float64) / float(step)).astype(np.int64)
    return found

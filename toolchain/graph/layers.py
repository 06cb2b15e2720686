"""Linear layers, LayerNorm and attention as graph nodes; the quantized form is canonical QDQ.

Canonical means: opset 21, one float dtype, QuantizeLinear and DequantizeLinear with zero point 0, weights [K, N] with
one scale per output channel (axis 1) or, with groups, per block along axis 0, 4-bit weights as INT4 initializers, bias
as (1, 1, N). A zero point that
calibration chose is a shift here: ``Sub`` before the quantizer and ``W c`` in the bias (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from calib.network import Network
from calib.quant.attention import QuantAttention, QuantProduct
from calib.quant.integer_only import IntAttention, IntLayerNorm, ShiftGelu
from calib.quant.linear import QuantLinear, QuantPatchConv
from calib.quant.quantizer import ActQuantizer, levels
from calib.quant.residual import QuantResidual
from calib.quant.surgery import operands
from toolchain.graph import integer
from toolchain.graph.builder import Builder


def array(tensor: Tensor) -> np.ndarray:
    """A float32 numpy copy."""
    return tensor.detach().cpu().float().numpy()


def tap_tensor(site: str) -> str:
    """Name of the integer tensor that the quantizer ``site``, of a layer, operand or point of the stream, makes."""
    return f"{site}.input_q"


def linear(
    b: Builder, site: str, layer: QuantLinear, x: ir.Value, quantized: bool, unit: np.ndarray | None = None
) -> ir.Value:
    """(batch, T, K) to (batch, T, N): MatMul and Add, with Q/DQ on both operands where ``quantized``.

    Args:
        unit: (N,) powers of two that the result is in; None = 1. Scales and bias are divided by it, integers are not.
    """
    b.scope = site
    if x.dtype == ir.DataType.INT64:
        return _integer_linear(b, site, layer, x)
    if layer.premul is not None:
        x = b.op("Mul", [x, b.const(f"{site}.premul", array(layer.premul))])
    bias = array(layer.bias)
    if not quantized:
        weight = b.const(f"{site}.weight", array(layer.weight).T)
        return b.op("Add", [b.op("MatMul", [x, weight]), b.const(f"{site}.bias", bias)])
    if layer.in_quant is not None:
        x, bias = _quantize_input(b, site, layer, x, bias)
    scale = array(layer.weight_scale).T
    if unit is not None:
        bias, scale = bias / unit, scale / unit
    weight = _weight(b, site, layer, scale)
    return b.op("Add", [b.op("MatMul", [x, weight]), b.const(f"{site}.bias", bias[None, None, :])])


def _quantize_input(
    b: Builder, site: str, layer: QuantLinear, x: ir.Value, bias: np.ndarray
) -> tuple[ir.Value, np.ndarray]:
    assert layer.in_quant is not None
    scale = np.float32(layer.in_quant.scale.item())
    zero_point = int(layer.in_quant.zero_point)
    if zero_point:
        shift = np.float32(-zero_point * scale)
        x = b.op("Sub", [x, b.const(f"{site}.shift", shift)])
        columns = layer.weight_q.double().sum(1) * layer.weight_scale.double()
        bias = (layer.bias.double() + float(shift) * columns).float().numpy()
    return _quantize(b, site, layer.in_quant, x), bias


def _quantize(b: Builder, site: str, quantizer: ActQuantizer, x: ir.Value) -> ir.Value:
    """Q and DQ with zero point 0, clipped before where the quantizer has fewer than 8 bits."""
    scale = np.float32(quantizer.scale.item())
    if quantizer.bits < 8:
        bounds = zip(("low", "high"), levels(quantizer.bits), strict=True)
        x = b.op("Clip", [x, *(b.const(f"{site}.clip_{end}", np.float32(level * scale)) for end, level in bounds)])
    step, zero = b.const(f"{site}.input_scale", scale), b.const(f"{site}.input_zero", np.int8(0))
    q = b.op("QuantizeLinear", [x, step, zero], output=tap_tensor(site), dtype=ir.DataType.INT8)
    return b.op("DequantizeLinear", [q, step, zero], dtype=ir.DataType.FLOAT)


def _weight(b: Builder, site: str, layer: QuantLinear, scale: np.ndarray) -> ir.Value:
    along = {"axis": 1} if layer.group is None else {"axis": 0, "block_size": layer.group}
    inputs = [_stored(b, site, layer), b.const(f"{site}.weight_scale", scale)]
    return b.op("DequantizeLinear", inputs, along, dtype=ir.DataType.FLOAT)


def _stored(b: Builder, site: str, layer: QuantLinear) -> ir.Value:
    """The integer weights [K, N]: INT4 where they have 4 bits or fewer."""
    values = layer.weight_q.cpu().numpy().T
    return b.const(f"{site}.weight_q", values.astype(ml_dtypes.int4) if layer.weight_bits <= 4 else values)


def _integer_linear(b: Builder, site: str, layer: QuantLinear, x: ir.Value) -> ir.Value:
    """A layer of a network without float: from int64 levels to int64 levels; the head's to float32."""
    tap = integer.cast(b, x, ir.DataType.INT8, tap_tensor(site))
    weight = _stored(b, site, layer)
    if weight.dtype == ir.DataType.INT4:
        weight = integer.cast(b, weight, ir.DataType.INT8)
    return integer.sums(b, layer, tap, weight, site)


def layer_norm(
    b: Builder,
    name: str,
    norm: Network,
    x: ir.Value,
    reads: np.ndarray | None = None,
    writes: np.ndarray | None = None,
) -> ir.Value:
    """LayerNormalization over the last axis; Identity passes through.

    Args:
        reads, writes: (C,) powers of two that ``x`` and the result are in; None = 1. Identity writes what it reads.
    """
    b.scope = name
    if reads is not None:
        x = b.op("Mul", [x, b.const(f"{name}.unit", reads)])
    if isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, IntLayerNorm):
        return integer.layer_norm(b, name, norm, x)
    gain, shift = (array(part) if writes is None else array(part) / writes for part in (norm.weight, norm.bias))
    inputs = [x, b.const(f"{name}.weight", gain), b.const(f"{name}.bias", shift)]
    return b.op("LayerNormalization", inputs, {"axis": -1, "epsilon": float(norm.eps)})


def reshape(b: Builder, x: ir.Value, shape: list[int]) -> ir.Value:
    """Reshape; -1 stands for the batch axis (or batch times windows)."""
    return b.op("Reshape", [x, b.ints(shape)])


def transpose(b: Builder, x: ir.Value, perm: list[int]) -> ir.Value:
    """Transpose by ``perm``."""
    return b.op("Transpose", [x], {"perm": perm})


def first(b: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The first element along an axis, which stays, with length 1."""
    return b.op("Slice", [x, b.ints([0]), b.ints([1]), b.ints([axis])])


def attention(
    b: Builder,
    name: str,
    attn: Network,
    x: ir.Value,
    tokens: int,
    quantized: bool,
    bias: tuple[np.ndarray, int] | None = None,
    first_only: bool = False,
    unit: np.ndarray | None = None,
) -> ir.Value:
    """Multi-head attention on (R, tokens, C): fused qkv, both products, projection.

    Args:
        bias: what is added to the scores: ((1, H, T, T), 1), or ((1, W, H, T, T), W) where it differs by window.
        first_only: True for the first token's row alone: every token is a key and a value, one is a query.
        unit: see ``linear``.
    """
    heads, width = attn.num_heads, attn.qkv.out_features // 3
    dim = width // heads
    qkv = linear(b, f"{name}.qkv", attn.qkv, x, quantized)
    b.scope = name
    parts = transpose(b, reshape(b, qkv, [-1, tokens, 3, heads, dim]), [2, 0, 3, 1, 4])
    split = b.op("Split", [parts], {"axis": 0, "num_outputs": 3}, outputs=3)
    query, key, value = (b.op("Squeeze", [part, b.ints([0])]) for part in split)
    if first_only:
        query = first(b, query, axis=2)
    if isinstance(attn, IntAttention):
        mixed = _integer_mixed(b, name, attn, query, key, value, bias)
    else:
        qk, pv = (attn.qk, attn.pv) if quantized and isinstance(attn, QuantAttention) else (None, None)
        scores = _product(b, f"{name}.qk", qk, query, transpose(b, key, [0, 1, 3, 2]))
        b.scope = name
        if bias is not None:
            scores = _biased(b, name, scores, *bias)
        mixed = _product(b, f"{name}.pv", pv, b.op("Softmax", [scores], {"axis": -1}), value)
    b.scope = name
    merged = reshape(b, transpose(b, mixed, [0, 2, 1, 3]), [-1, 1 if first_only else tokens, width])
    return linear(b, f"{name}.proj", attn.proj, merged, quantized, unit)


def _biased(b: Builder, name: str, scores: ir.Value, table: np.ndarray, windows: int) -> ir.Value:
    """``scores`` (R, H, T, T) plus a table, ((1, H, T, T), 1), or ((1, W, H, T, T), W) where it differs by window."""
    constant = b.const(f"{name}.score_bias", table)
    if windows == 1:
        return b.op("Add", [scores, constant])
    heads, tokens, _ = table.shape[2:]
    scores = b.op("Add", [reshape(b, scores, [-1, windows, heads, tokens, tokens]), constant])
    return reshape(b, scores, [-1, heads, tokens, tokens])


def _integer_mixed(
    b: Builder,
    name: str,
    attn: IntAttention,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    bias: tuple[np.ndarray, int] | None,
) -> ir.Value:
    """``attn.mixed`` on int64 levels."""

    def tap(operand: str, x: ir.Value) -> ir.Value:
        return integer.cast(b, x, ir.DataType.INT8, tap_tensor(f"{name}.{operand}"))

    b.scope = f"{name}.qk"
    scores = integer.product(b, tap("query", query), tap("key", transpose(b, key, [0, 1, 3, 2])))
    b.scope = name
    if bias is not None:
        table, windows = bias
        scores = _biased(b, name, scores, attn.bias_levels(torch.from_numpy(table)).numpy(), windows)
    probability, total = integer.shiftmax(b, scores, attn.exponent)
    b.scope = f"{name}.pv"
    products = integer.product(b, tap("softmax", probability), tap("value", value))
    return integer.mixed(b, f"{name}.mix", attn, products, total)


def residual(b: Builder, block: str, module: Network, which: str, x: ir.Value) -> ir.Value:
    """Point ``which`` of a block's residual stream: Q/DQ where the block has it, else ``x`` as it is."""
    found = getattr(module, which, None)
    if not isinstance(found, QuantResidual):
        return x
    b.scope = name = f"{block}.{which}"
    return _quantize(b, name, found.quant, x)


def stream_unit(block: Network) -> np.ndarray | None:
    """The powers of two (C,) that the residual stream of ``block`` is in; None where all are 1, or it is float."""
    found = getattr(block, "residual_attn", None)
    return array(found.unit) if isinstance(found, QuantResidual) and bool((found.unit != 1).any()) else None


def moved(b: Builder, x: ir.Value, move: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """``move`` of the levels where ``x`` is dequantized, and then dequantized; else of ``x``.

    ONNX Runtime 1.31.1 puts a Q/DQ pair behind a Slice, Reshape or Transpose of dequantized values, and then fails to
    load its own pair ("output_dtype INT8 does not match y_zero_point type UINT8", microsoft/onnxruntime#25526).
    """
    node = x.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return move(x)
    levels, *numbers = (value for value in node.inputs if value is not None)
    if not x.uses():
        b.drop(node)
    made: ir.Value = b.op("DequantizeLinear", [move(levels), *numbers], dtype=ir.DataType.FLOAT)
    return made


def _product(b: Builder, site: str, product: QuantProduct | None, left: ir.Value, right: ir.Value) -> ir.Value:
    """MatMul of two activations, with Q/DQ on both where there is a ``product``."""
    b.scope = site
    if product is None:
        return b.op("MatMul", [left, right])
    peak = None
    if product.by_row:
        peak = b.op("ReduceMax", [left, b.ints([-1])], {"keepdims": 1})
        left = b.op("Div", [left, peak])
    pairs = zip(operands(site), (product.left, product.right), (left, right), strict=True)
    out = b.op("MatMul", [_quantize(b, name, quantizer, x) for name, quantizer, x in pairs])
    return out if peak is None else b.op("Mul", [out, peak])


def mlp(
    b: Builder, name: str, module: Network, x: ir.Value, quantized: bool, unit: np.ndarray | None = None
) -> ir.Value:
    """fc1, exact GELU as one node (or ShiftGELU as many), fc2. ``unit``: see ``linear``."""
    hidden = linear(b, f"{name}.fc1", module.fc1, x, quantized)
    b.scope = f"{name}.act" if isinstance(module.act, ShiftGelu) else name
    if isinstance(module.act, ShiftGelu):
        hidden = integer.gelu(b, f"{name}.act", module.act, hidden)
    else:
        hidden = b.op("Gelu", [hidden], {"approximate": "none"})
    return linear(b, f"{name}.fc2", module.fc2, hidden, quantized, unit)


def patch_embed(
    b: Builder,
    site: str,
    layer: QuantPatchConv,
    images: ir.Value,
    size: tuple[int, int, int],
    quantized: bool,
    unit: np.ndarray | None = None,
) -> ir.Value:
    """(batch, C, H, W) to (batch, patches, N): the convolution as a linear layer over flattened patches.

    Args:
        unit: see ``linear``.
    """
    channels, height, width = size
    ph, pw = layer.patch
    rows, columns = height // ph, width // pw
    b.scope = site
    if quantized and layer.rescale is not None:
        assert layer.in_quant is not None
        images = integer.quantized(b, site, layer.in_quant, images)
    grid = transpose(b, reshape(b, images, [-1, channels, rows, ph, columns, pw]), [0, 2, 4, 1, 3, 5])
    flat = reshape(b, grid, [-1, rows * columns, channels * ph * pw])
    return linear(b, site, layer, flat, quantized, unit)

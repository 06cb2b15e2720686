"""Linear layers, LayerNorm and attention as graph nodes; the quantized form is canonical QDQ.

Canonical means: opset 21, one float dtype, QuantizeLinear and DequantizeLinear with zero point 0, weights [K, N] with
one scale per output channel (axis 1), 4-bit weights as INT4 initializers, bias as (1, 1, N). A zero point that
calibration chose is a shift here: ``Sub`` before the quantizer and ``W c`` in the bias (docs/numerics.md).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from calib.network import Network
from calib.quant.attention import QuantAttention, QuantProduct
from calib.quant.linear import QuantLinear, QuantPatchConv
from calib.quant.quantizer import ActQuantizer, levels
from calib.quant.surgery import operands
from toolchain.graph.builder import Builder


def array(tensor: Tensor) -> np.ndarray:
    """A float32 numpy copy."""
    return tensor.detach().cpu().float().numpy()


def tap_tensor(site: str) -> str:
    """Name of the integer tensor that the quantizer of layer or attention operand ``site`` makes."""
    return f"{site}.input_q"


def linear(b: Builder, site: str, layer: QuantLinear, x: ir.Value, quantized: bool) -> ir.Value:
    """(batch, T, K) to (batch, T, N): MatMul and Add, with Q/DQ on both operands where ``quantized``."""
    b.scope = site
    if layer.premul is not None:
        x = b.op("Mul", [x, b.const(f"{site}.premul", array(layer.premul))])
    bias = array(layer.bias)
    if not quantized:
        weight = b.const(f"{site}.weight", array(layer.weight).T)
        return b.op("Add", [b.op("MatMul", [x, weight]), b.const(f"{site}.bias", bias)])
    if layer.in_quant is not None:
        x, bias = _quantize_input(b, site, layer, x, bias)
    weight = _weight(b, site, layer)
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
    return b.op("DequantizeLinear", [q, step, zero])


def _weight(b: Builder, site: str, layer: QuantLinear) -> ir.Value:
    values = layer.weight_q.cpu().numpy().T
    if layer.weight_bits <= 4:
        weight = b.const(f"{site}.weight_q", values.astype(ml_dtypes.int4))
    else:
        weight = b.const(f"{site}.weight_q", values)
    scale = b.const(f"{site}.weight_scale", array(layer.weight_scale))
    return b.op("DequantizeLinear", [weight, scale], {"axis": 1})


def layer_norm(b: Builder, name: str, norm: Network, x: ir.Value) -> ir.Value:
    """LayerNormalization over the last axis; Identity passes through."""
    if isinstance(norm, nn.Identity):
        return x
    b.scope = name
    inputs = [x, b.const(f"{name}.weight", array(norm.weight)), b.const(f"{name}.bias", array(norm.bias))]
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
) -> ir.Value:
    """Multi-head attention on (R, tokens, C): fused qkv, both products, projection.

    Args:
        bias: what is added to the scores: ((1, H, T, T), 1), or ((1, W, H, T, T), W) where it differs by window.
        first_only: True for the first token's row alone: every token is a key and a value, one is a query.
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
    qk, pv = (attn.qk, attn.pv) if quantized and isinstance(attn, QuantAttention) else (None, None)
    scores = _product(b, f"{name}.qk", qk, query, transpose(b, key, [0, 1, 3, 2]))
    b.scope = name
    if bias is not None:
        table, windows = bias
        constant = b.const(f"{name}.score_bias", table)
        if windows == 1:
            scores = b.op("Add", [scores, constant])
        else:
            scores = b.op("Add", [reshape(b, scores, [-1, windows, heads, tokens, tokens]), constant])
            scores = reshape(b, scores, [-1, heads, tokens, tokens])
    mixed = _product(b, f"{name}.pv", pv, b.op("Softmax", [scores], {"axis": -1}), value)
    b.scope = name
    merged = reshape(b, transpose(b, mixed, [0, 2, 1, 3]), [-1, 1 if first_only else tokens, width])
    return linear(b, f"{name}.proj", attn.proj, merged, quantized)


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


def mlp(b: Builder, name: str, module: Network, x: ir.Value, quantized: bool) -> ir.Value:
    """fc1, exact GELU as one node, fc2."""
    hidden = linear(b, f"{name}.fc1", module.fc1, x, quantized)
    b.scope = name
    hidden = b.op("Gelu", [hidden], {"approximate": "none"})
    return linear(b, f"{name}.fc2", module.fc2, hidden, quantized)


def patch_embed(
    b: Builder, site: str, layer: QuantPatchConv, images: ir.Value, size: tuple[int, int, int], quantized: bool
) -> ir.Value:
    """(batch, C, H, W) to (batch, patches, N): the convolution as a linear layer over flattened patches."""
    channels, height, width = size
    ph, pw = layer.patch
    rows, columns = height // ph, width // pw
    b.scope = site
    grid = transpose(b, reshape(b, images, [-1, channels, rows, ph, columns, pw]), [0, 2, 4, 1, 3, 5])
    flat = reshape(b, grid, [-1, rows * columns, channels * ph * pw])
    return linear(b, site, layer, flat, quantized)

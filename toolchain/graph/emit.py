"""Whole networks: the same walk emits the integer graph and its float32 twin."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from calib.calibrated import CalibratedModel
from calib.models import ModelSpec
from calib.network import Network
from calib.quant.attention import position_bias
from calib.quant.families import is_swin, reads_class_token
from calib.quant.integer_only import IntMean
from calib.quant.surgery import prepare
from calib.scheme import Scheme
from toolchain.graph import integer
from toolchain.graph.builder import Builder
from toolchain.graph.layers import (
    array,
    attention,
    first,
    layer_norm,
    linear,
    mlp,
    moved,
    patch_embed,
    reshape,
    residual,
    stream_unit,
    transpose,
)

INPUT, OUTPUT = "images", "logits"


def canonical_graph(model: CalibratedModel) -> ir.Model:
    """The canonical QDQ graph of a calibrated model: images (batch, 3, H, W) float32 to logits (batch, classes)."""
    return _emit(model.module, model.spec, quantized=True)


def float_graph(model: Network, spec: ModelSpec) -> ir.Model:
    """The float32 twin of the original timm network, with the same fused nodes and nothing quantized."""
    return _emit(prepare(model, Scheme(8, 8)), spec, quantized=False)


@torch.no_grad()
def _emit(model: Network, spec: ModelSpec, quantized: bool) -> ir.Model:
    name = spec.tag + ("" if quantized else ".float32")
    b = Builder(name, INPUT, spec.input_size)
    unit = stream_unit(model.layers[0].blocks[0] if is_swin(model) else model.blocks[0])
    norm = model.patch_embed.norm if is_swin(model) else model.norm_pre
    embed, written = model.patch_embed.proj, unit if isinstance(norm, nn.Identity) else None
    x = patch_embed(b, "patch_embed.proj", embed, b.input, spec.input_size, quantized, written)
    pooled, head_name, head = (_swin if is_swin(model) else _vit)(b, model, x, quantized, unit)
    logits = linear(b, head_name, head, pooled, quantized)
    b.scope = "output"
    return b.finish(reshape(b, logits, [-1, spec.num_classes]), OUTPUT, spec.num_classes)


def _vit(
    b: Builder, model: Network, x: ir.Value, quantized: bool, unit: np.ndarray | None
) -> tuple[ir.Value, str, Network]:
    prefix = model.num_prefix_tokens
    tokens = model.patch_embed.num_patches + prefix
    b.scope = "pos_embed"
    if prefix:
        x = b.op("Pad", [x, b.ints([0, prefix, 0, 0, 0, 0])])
    table = array(_token_table(model))[None]
    if x.dtype == ir.DataType.INT64:
        table = integer.stream_levels(table, model.residual_step)
    if unit is not None and isinstance(model.norm_pre, nn.Identity):
        table = table / unit
    x = b.op("Add", [x, b.const("pos_embed", table)])
    x = layer_norm(b, "norm_pre", model.norm_pre, x, writes=unit)
    class_token = reads_class_token(model)
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        alone = class_token and i == len(model.blocks) - 1  # from here on no other token reaches the logits
        x = residual(b, name, block, "residual_in", x)
        y = layer_norm(b, f"{name}.norm1", block.norm1, x, unit)
        mixed = attention(b, f"{name}.attn", block.attn, y, tokens, quantized, first_only=alone, unit=unit)
        b.scope = name
        x = moved(b, x, lambda x: first(b, x, axis=1)) if alone else x
        x = residual(b, name, block, "residual_attn", b.op("Add", [x, mixed]))
        y = layer_norm(b, f"{name}.norm2", block.norm2, x, unit)
        fed = mlp(b, f"{name}.mlp", block.mlp, y, quantized, unit)
        b.scope = name
        x = residual(b, name, block, "residual_mlp", b.op("Add", [x, fed]))
    x = layer_norm(b, "norm", model.norm, x, unit)
    b.scope = "pool"
    if not class_token:
        if prefix:
            x = b.op("Slice", [x, b.ints([prefix]), b.ints([tokens]), b.ints([1])])
        x = b.op("ReduceMean", [x, b.ints([1])], {"keepdims": 1})
    return layer_norm(b, "fc_norm", model.fc_norm, x), "head", model.head


def _token_table(model: Network) -> torch.Tensor:
    """What is added to the patches padded with zero rows in front: class and register tokens, positions. (T, C)"""
    parts = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
    position = model.pos_embed[0]
    if not parts:
        return position
    front = torch.cat(parts)
    if model.no_embed_class:
        return torch.cat([front, position])
    rows = front.shape[0]
    return torch.cat([front + position[:rows], position[rows:]])


def _swin(
    b: Builder, model: Network, x: ir.Value, quantized: bool, unit: np.ndarray | None
) -> tuple[ir.Value, str, Network]:
    x = layer_norm(b, "patch_embed.norm", model.patch_embed.norm, x, writes=unit)
    side: tuple[int, int] = tuple(model.patch_embed.grid_size)
    for i, stage in enumerate(model.layers):
        if not isinstance(stage.downsample, nn.Identity):
            units = unit, stream_unit(stage.blocks[0])
            x, side = _merge(b, f"layers.{i}.downsample", stage.downsample, x, side, quantized, units)
            unit = units[1]
        for j, block in enumerate(stage.blocks):
            x = _swin_block(b, f"layers.{i}.blocks.{j}", block, x, side, quantized)
    x = layer_norm(b, "norm", model.norm, x, unit)
    b.scope = "pool"
    if isinstance(model.head.global_pool, IntMean):
        pooled = integer.mean(b, model.head.global_pool, x)
    else:
        pooled = b.op("ReduceMean", [x, b.ints([1])], {"keepdims": 1})
    return pooled, "head.fc", model.head.fc


def _merge(
    b: Builder,
    name: str,
    merge: Network,
    x: ir.Value,
    side: tuple[int, int],
    quantized: bool,
    units: tuple[np.ndarray | None, np.ndarray | None],
) -> tuple[ir.Value, tuple[int, int]]:
    rows, columns, width = side[0] // 2, side[1] // 2, merge.dim
    b.scope = name

    def merged(x: ir.Value) -> ir.Value:
        grid = transpose(b, reshape(b, x, [-1, rows, 2, columns, 2, width]), [0, 1, 3, 4, 2, 5])
        return reshape(b, grid, [-1, rows * columns, 4 * width])

    reads, writes = units
    x = layer_norm(b, f"{name}.norm", merge.norm, moved(b, x, merged), None if reads is None else np.tile(reads, 4))
    return linear(b, f"{name}.reduction", merge.reduction, x, quantized, writes), (rows, columns)


def _swin_block(b: Builder, name: str, block: Network, x: ir.Value, side: tuple[int, int], quantized: bool) -> ir.Value:
    (rows, columns), (wh, ww), shift, width = side, block.window_size, block.shift_size, block.dim
    windows, unit = (rows // wh) * (columns // ww), stream_unit(block)
    x = residual(b, name, block, "residual_in", x)
    y = layer_norm(b, f"{name}.norm1", block.norm1, x, unit)
    b.scope = name
    y = reshape(b, y, [-1, rows, columns, width])
    y = _roll(b, y, [shift[0], shift[1]], side)
    y = transpose(b, reshape(b, y, [-1, rows // wh, wh, columns // ww, ww, width]), [0, 1, 3, 2, 4, 5])
    y = reshape(b, y, [-1, wh * ww, width])
    y = attention(b, f"{name}.attn", block.attn, y, wh * ww, quantized, _score_bias(block, windows), unit=unit)
    b.scope = name
    y = transpose(b, reshape(b, y, [-1, rows // wh, columns // ww, wh, ww, width]), [0, 1, 3, 2, 4, 5])
    y = _roll(b, reshape(b, y, [-1, rows, columns, width]), [rows - shift[0], columns - shift[1]], side)
    x = residual(b, name, block, "residual_attn", b.op("Add", [x, reshape(b, y, [-1, rows * columns, width])]))
    fed = mlp(b, f"{name}.mlp", block.mlp, layer_norm(b, f"{name}.norm2", block.norm2, x, unit), quantized, unit)
    b.scope = name
    return residual(b, name, block, "residual_mlp", b.op("Add", [x, fed]))


def _score_bias(block: Network, windows: int) -> tuple[np.ndarray, int]:
    """See ``bias`` of ``attention``."""
    bias = position_bias(block.attn)
    assert bias is not None
    relative = array(bias)
    if block.attn_mask is None:
        return relative, 1
    if windows == 1:  # shifted all the same, where timm is told to partition always
        return relative + array(block.attn_mask)[None], 1
    return relative[:, None] + array(block.attn_mask)[None, :, None], windows


def _roll(b: Builder, x: ir.Value, starts: list[int], side: tuple[int, int]) -> ir.Value:
    """Rows and columns moved so that the one at ``starts`` comes first (torch.roll by -starts)."""
    for axis, (start, length) in enumerate(zip(starts, side, strict=True), 1):
        if start % length:
            head = b.op("Slice", [x, b.ints([start]), b.ints([length]), b.ints([axis])])
            tail = b.op("Slice", [x, b.ints([0]), b.ints([start]), b.ints([axis])])
            x = b.op("Concat", [head, tail], {"axis": axis})
    return x

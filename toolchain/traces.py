"""What a report shows of the network and only a build can compute: attention and blocks, float beside integer.

Kept as small JSON files in ``reports/`` of the bundle, which the manifest does not list (docs/decisions/0019).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib.calibrated import CalibratedModel
from calib.network import Network
from calib.quant.attention import QuantAttention
from calib.quant.families import block_names, is_swin
from calib.quant.integer_only import IntAttention
from calib.quant.surgery import set_quantized
from calib.synthesis.figures import term_curves
from calib.synthesis.priors.attention_prior import Layout, layouts
from runtime.files import atomic_write_json
from runtime.parity import sqnr_db

REPORTS = "reports"
NETWORK, SYNTHESIS = f"{REPORTS}/network.json", f"{REPORTS}/synthesis.json"
MOST_HEADS, MOST_STEPS = 6, 120
BANDS = ("low", "median", "high")


def write_traces(model: CalibratedModel, original: nn.Module, images: Tensor, history: Path, folder: Path) -> None:
    """Write reports/network.json and, where images were optimised, reports/synthesis.json into ``folder``.

    Args:
        original: the float network. images: (B, 3, H, W) normalised, those of the golden vectors.
        history: the images stage's history.json.
    """
    atomic_write_json(folder / NETWORK, network_trace(model, original, images))
    terms = term_curves(json.loads(history.read_text("utf-8")))
    if terms:
        atomic_write_json(folder / SYNTHESIS, {"terms": {name: _band(values) for name, values in terms.items()}})


def _band(values: Any) -> dict[str, Any]:
    """Lowest, median and highest over the groups, at 120 steps at most, of (groups, steps) with NaN where none is."""
    steps = np.flatnonzero(np.isfinite(values).any(0))
    steps = np.unique(steps[np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int)])
    low, middle, high = (of(values[:, steps], 0) for of in (np.nanmin, np.nanmedian, np.nanmax))
    bands = {
        name: [float(f"{value:.4g}") for value in band] for name, band in zip(BANDS, (low, middle, high), strict=True)
    }
    return {"groups": len(values), "step": (steps + 1).tolist(), **bands}


@torch.no_grad()
def network_trace(model: CalibratedModel, original: Network, images: Tensor) -> dict[str, Any]:
    """How far the fake-quant network has moved from the float one, as JSON values.

    ``blocks``: of every block its name and ``sqnr_db``, 10 log10 of the energy of the float residual stream after it
    over that of the difference, both networks running freely on all ``images``. ``attention``: of the first block, the
    one two thirds down and the last, on the first image, at most 6 heads: ``grid`` (rows, columns) and, row by row,
    the attention each patch receives, ``float`` and ``integer``, every head scaled to a largest value of 1.
    """
    chosen = sorted({0, len(block_names(original)) * 2 // 3, len(block_names(original)) - 1})
    with traced(original, chosen) as before:
        original(images)
    set_quantized(model.module, True)
    with traced(model.module, chosen) as after:
        model.module(images)
    layout = layouts(original)
    return {
        "blocks": [
            {"name": name, "sqnr_db": round(sqnr_db(mine.numpy(), other.numpy()), 2)}
            for name, mine, other in zip(block_names(original), before.blocks, after.blocks, strict=True)
        ],
        "attention": [
            {
                "block": block,
                "grid": list(layout[block].grid),
                "float": _levels(received(before.attention[block], original, layout[block], len(images))),
                "integer": _levels(received(after.attention[block], original, layout[block], len(images))),
            }
            for block in chosen
        ],
    }


class Trace:
    """What :func:`traced` keeps: block outputs in order, and softmax rows (B', H, T, T) by block index."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.attention: dict[int, Tensor] = {}


@contextmanager
def traced(model: Network, attention_of: list[int]) -> Iterator[Trace]:
    """Keep every block's output and some blocks' attention while open; the network computes what it did before."""
    trace, hooks, fused = Trace(), [], []
    for index, name in enumerate(block_names(model)):
        block = model.get_submodule(name)
        hooks.append(block.register_forward_hook(lambda _m, _a, out: trace.blocks.append(out)))
        if index not in attention_of:
            continue
        if hasattr(block.attn, "fused_attn"):  # a fused kernel shows no softmax
            fused.append((block.attn, block.attn.fused_attn))
            block.attn.fused_attn = False
        reader = block.attn.pv if isinstance(block.attn, QuantAttention) else block.attn.attn_drop

        whole = not isinstance(block.attn, IntAttention)  # its rows are divided by their peaks, not by their sums

        def keep(_module: nn.Module, args: tuple[Tensor, ...], index: int = index, whole: bool = whole) -> None:
            trace.attention[index] = args[0] if whole else args[0] / args[0].sum(-1, keepdim=True)

        hooks.append(reader.register_forward_pre_hook(keep))
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()
        for attention, flag in fused:
            attention.fused_attn = flag


def received(rows: Tensor, model: Network, layout: Layout, images: int) -> Tensor:
    """The attention each patch of the first image receives, head by head: (H, rows, columns).

    The class token's row where there is one, else the mean over all rows; Swin's windows are put back in their places.

    Args:
        rows: (B', H, T, T) after the softmax, B' = images, or images * windows.
    """
    mine = rows[: len(rows) // images]
    mine = mine[:, :, 0] if getattr(model, "has_class_token", False) else mine.mean(2)
    mine = mine[..., 0 if is_swin(model) else int(model.num_prefix_tokens) :]
    down, across = layout.window or layout.grid
    tiles = (layout.grid[0] // down, layout.grid[1] // across)
    grid = mine.reshape(*tiles, layout.heads, down, across).permute(2, 0, 3, 1, 4).reshape(layout.heads, *layout.grid)
    return grid.roll(layout.shift, (1, 2))


def _levels(maps: Tensor) -> list[list[float]]:
    """A list a head, values in 0..1 to three places."""
    shown = maps[:MOST_HEADS].float()
    scaled = shown / shown.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return [[round(value, 3) for value in head] for head in scaled.flatten(1).tolist()]

"""Figures of a set of images, as PNG: losses, confidence, and what attention looks like before and after.

Drawn with matplotlib's objects alone, so that neither a display nor its global state is touched. A file appears whole
or not at all. Colours are of the palette of Okabe & Ito (https://jfly.uni-koeln.de/color/), safe for colour-blind
readers, and the map cividis.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from calib.models import ModelSpec
from calib.synthesis.measures import Measures, head_maps, place_of
from calib.synthesis.priors.attention_prior import Layout, layouts

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
DPI = 120
MOST_HEADS = 12
BINS = np.linspace(0, 1, 21).tolist()
NAMES = {
    "class": "class",
    "entropy": "patch entropy, negated",
    "heads": "heads, 1 − SSIM²",
    "attention": "attention priors",
    "tv": "total variation",
    "total": "total",
}
NOT_A_TERM = ("batch", "step")


def loss_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """One panel a loss term: median over the groups that have it, and their range as a band.

    Args:
        history: rows of ``SyntheticSet.history``; groups may differ in terms and length. Empty: nothing is written.
    """
    curves = term_curves(history)
    if not curves:
        return
    groups = len({row["batch"] for row in history})
    across = 2 if len(curves) in (2, 4) else min(len(curves), 3)
    down = -(-len(curves) // across)
    figure = Figure(figsize=(max(3.4 * across, 4.2), 2.6 * down + 0.4), dpi=DPI, layout="constrained")
    for place, (term, values) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(down, across, place)
        steps = np.flatnonzero(np.isfinite(values).any(0))
        values = values[:, steps]
        low, middle, high = np.nanmin(values, 0), np.nanmedian(values, 0), np.nanmax(values, 0)
        axes.fill_between(steps + 1, low, high, color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(steps + 1, middle, color=BLUE, linewidth=1.6, marker="." if len(steps) < 10 else "")
        has = "" if len(values) == groups else f" ({len(values)} of {groups} groups)"
        _label(axes, NAMES.get(term, term) + has, "iteration", "weighted loss")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    what = f"median and range of {groups} groups" if groups > 1 else "one group"
    figure.suptitle(f"Loss terms, {what} of images", fontsize=12)
    _write(figure, path)


def term_curves(history: Sequence[dict[str, float]]) -> dict[str, npt.NDArray[np.float64]]:
    """Per term (groups that have it, most steps), NaN where a group has no such step; ``total`` is last."""
    longest = max((int(row["step"]) for row in history), default=0)
    terms: dict[str, dict[float, npt.NDArray[np.float64]]] = {}
    for row in history:
        for term, value in row.items():
            if term not in NOT_A_TERM and np.isfinite(value):
                blank = np.full(longest, np.nan)
                terms.setdefault(term, {}).setdefault(row["batch"], blank)[int(row["step"]) - 1] = value
    ordered = sorted(terms, key=lambda term: term == "total")
    return {term: np.stack(list(terms[term].values())) for term in ordered}


def confidence_histogram(measures: Measures, path: Path) -> None:
    """How sure the network is of the intended classes. Where nothing was intended, nothing is written."""
    if measures.agreement is None:
        return
    figure = Figure(figsize=(5.4, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(measures.confidence, BINS, color=BLUE, edgecolor="white", linewidth=0.8)
    title = f"{len(measures.confidence)} images, top-1 as intended: {100 * measures.agreement:.1f} %"
    _label(axes, title, "probability of the intended classes", "images")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _write(figure, path)


def head_agreement(before: Measures, after: Measures, path: Path) -> None:
    """How alike the heads of each block are, of the starting images (``before``) and of the finished ones."""
    figure = Figure(figsize=(5.4, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for measures, label, colour, style in ((before, "before", GREY, "o--"), (after, "after", BLUE, "o-")):
        blocks = range(1, len(measures.head_similarity) + 1)
        axes.plot(blocks, measures.head_similarity, style, color=colour, label=label, linewidth=1.6, markersize=5)
    _label(axes, "Similarity of the attention heads", "block", "mean SSIM² of pairs of heads")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.legend(frameon=False, fontsize=9)
    _write(figure, path)


def attention_maps(
    model: nn.Module, spec: ModelSpec, before: Tensor, after: Tensor, block: int, path: Path, query: int | None = None
) -> None:
    """An image before and after synthesis, each beside the scores of one query patch in every head of a block.

    Args:
        model: float network on the CPU. before, after: (3, H, W) in [0, 1]. block: index from 0. query: index of the
            patch in the block's grid; default: the middle one. At most 12 heads are shown.
    """
    layout = layouts(model)[block]
    rows, columns = layout.grid
    query = rows // 2 * columns + columns // 2 if query is None else query
    token = place_of(layout, query)[1]
    heads = min(layout.heads, MOST_HEADS)
    figure = Figure(figsize=(1.25 * (heads + 1) + 1.3, 3.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, heads + 1, squeeze=False)
    for line, (pixel, label) in enumerate(((before, "before"), (after, "after"))):
        picture, *others = panels[line]
        picture.imshow(pixel.float().clamp(0, 1).permute(1, 2, 0).numpy())
        picture.set_ylabel(label, fontsize=10)
        _outline_patches(picture, layout, query, spec.input_size[1:])
        maps = head_maps(model, spec, pixel, block, query).numpy()
        for head, (panel, scores) in enumerate(zip(others, maps[:heads], strict=True), 1):
            shown = panel.imshow(scores, cmap="cividis", vmin=0, vmax=1)
            row, column = divmod(token, scores.shape[1])
            _outline(panel, (column - 0.5, row - 0.5), (1, 1))
            panel.set_title(f"head {head}" if line == 0 else "", fontsize=9)
    panels[0, 0].set_title("image", fontsize=9)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    bar = figure.colorbar(shown, ax=panels, shrink=0.8, aspect=25, pad=0.01, ticks=[0, 1])
    bar.set_label("score q·k, stretched", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    some = f", heads 1 to {heads} of {layout.heads}" if heads < layout.heads else ""
    figure.suptitle(f"Block {block + 1}{some}: scores of the outlined patch", fontsize=11)
    _write(figure, path)


def _outline_patches(axes: Axes, layout: Layout, query: int, size: tuple[int, ...]) -> None:
    """The query patch on the image and, dashed, its window where that lies in one piece."""
    rows, columns = layout.grid
    high, wide = size[0] / rows, size[1] / columns
    row, column = divmod(query, columns)
    _outline(axes, (column * wide - 0.5, row * high - 0.5), (wide, high))
    if layout.window is None:
        return
    down, right = divmod(place_of(layout, query)[1], layout.window[1])
    top, left = row - down, column - right
    if top >= 0 and left >= 0 and top + layout.window[0] <= rows and left + layout.window[1] <= columns:
        corner = (left * wide - 0.5, top * high - 0.5)
        _outline(axes, corner, (layout.window[1] * wide, layout.window[0] * high), "--")


def _outline(axes: Axes, corner: tuple[float, float], size: tuple[float, float], style: str = "-") -> None:
    """A rectangle that shows on any picture: orange in white."""
    white = [withStroke(linewidth=3.2, foreground="white")]
    axes.add_patch(
        Rectangle(corner, *size, fill=False, edgecolor=ORANGE, linewidth=1.6, linestyle=style, path_effects=white)
    )


def _label(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write(figure: Figure, path: Path) -> None:
    """The figure as PNG under its final name, through a temporary one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        FigureCanvasAgg(figure)  # draws the figure from here on
        figure.savefig(partial, format="png", dpi=DPI)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

"""The figures of a report: charts as inline SVG that takes the page's colours, images as ``data:`` URIs.

Text stays text in the SVG, in the page's font and colour. Colours are those of Okabe & Ito, as in
:mod:`calib.synthesis.figures`, and the map cividis.
"""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from runtime.errors import IntvitError
from toolchain.report.gather import Json
from toolchain.report.summary import Point, how, twin

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TEXT = "#102030"  # stands for the page's own text colour until the SVG is written
MOST_SAMPLES, MOST_LINES = 300, 6
WIDTH = 5.0  # inches: as wide as a phone's column, where its text then has the size it has here
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "intvit",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure in inches, drawn in the report's style; the style ends with the block."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an ``<svg>`` element with a text alternative; every id begins with ``prefix``."""
    out = io.StringIO()
    FigureCanvasSVG(figure)
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'\bhref="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width: \2pt"', text, count=1)
    broad = ' class="broad"' if figure.get_figwidth() > WIDTH else ""
    return text.replace("<svg", f'<svg{broad} role="img" aria-label="{html.escape(label, quote=True)}"', 1)


def image_uri(image: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` URI; ``kind`` is "png" or "jpeg"."""
    data = io.BytesIO()
    image.save(data, format=kind.upper(), quality=88) if kind == "jpeg" else image.save(data, format="PNG")
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode("ascii")


def preview(path: Path) -> str:
    """The contact sheet of the calibration images, as JPEG.

    Raises:
        IntvitError: the file is no picture, or one so large that it looks made to use the memory up.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return image_uri(picture.convert("RGB"), "jpeg")
    except Exception as error:  # each format's reader has its own on bytes that are no picture
        raise IntvitError(
            "cannot read the preview of the calibration images",
            where=str(path),
            why=str(error) or type(error).__name__,
            next="build the bundle again",
        ) from error


def first_image(images: Any, mean: Sequence[float], std: Sequence[float]) -> str:
    """The first of normalised images float32 (B, 3, H, W), as PNG."""
    pixels = images[0].transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    return image_uri(Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)), "png")


def attention_map(values: Sequence[float], grid: Sequence[int]) -> str:
    """One head's map, values in 0..1 row by row, a pixel a patch, as PNG.

    Colours follow the square root: deep heads give most of their attention to a patch or two.
    """
    levels = (np.sqrt(np.asarray(values).reshape(*grid).clip(0, 1)) * 255).round().astype(np.uint8)
    shown = Image.fromarray(levels)
    shown.putpalette((matplotlib.colormaps["cividis"](np.arange(256), bytes=True)[:, :3]).tobytes())
    return image_uri(shown, "png")


def synthesis(trace: Json, prefix: str) -> str:
    """One panel a loss term: median over the groups of images, and their range as a band."""
    terms = trace["terms"]
    across = min(3, len(terms))
    down = -(-len(terms) // across)
    with drawing(2.6 * across, 2.2 * down) as figure:
        for place, (name, band) in enumerate(terms.items(), 1):
            axes = figure.add_subplot(down, across, place)
            axes.fill_between(band["step"], band["low"], band["high"], color=COLOURS[0], alpha=0.25, linewidth=0)
            axes.plot(band["step"], band["median"], color=COLOURS[0], linewidth=1.6)
            axes.set_title(name, fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            _grid(axes)
        figure.supxlabel("iteration", fontsize=10)
    ends = "; ".join(f"{name} {band['median'][0]:.3g} to {band['median'][-1]:.3g}" for name, band in terms.items())
    return svg(figure, f"Weighted loss terms of the synthesis over the iterations, median of groups: {ends}", prefix)


def latency(record: Json, prefix: str) -> str:
    """How many of the calls were done in so many milliseconds, a line a model."""
    lines = [("integer engine", record), (twin(record), record["baseline"])]
    lines += [(other.get("name", "other"), other) for other in record.get("others", [])]
    with drawing(WIDTH, 3.4) as figure:
        axes = figure.add_subplot()
        for (name, part), colour in zip(lines, COLOURS, strict=False):
            times = np.sort(part["raw_ms"])
            at = np.unique(np.linspace(0, len(times) - 1, min(MOST_SAMPLES, len(times))).round().astype(int))
            label = f"{name}, median {part['median_ms']:.3g} ms"
            axes.step(times[at], (at + 1) / len(times), where="post", color=colour, linewidth=1.8, label=label)
        tail = max(float(np.quantile(part["raw_ms"], 0.99)) for _, part in lines)
        axes.set_xlim(0, 1.05 * min(tail, 4 * max(part["median_ms"] for _, part in lines)))
        axes.set_ylim(0, 1.01)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"milliseconds a call ({how(record)})")
        axes.set_ylabel("calls done")
        _grid(axes)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    said = "; ".join(f"{name}: median {part['median_ms']:.3g} ms" for name, part in lines)
    return svg(figure, f"Distribution of the time of a call. {said}", prefix)


SERIES = {"power_w": "watts", "clocks_mhz": "megahertz", "temperature_c": "degrees Celsius"}


def timeline(samples: Sequence[Json], prefix: str) -> str:
    """Power, clocks and temperatures over the run, those that were read; an empty text where none was."""
    step = max(1, -(-len(samples) // MOST_SAMPLES))
    shown = samples[::step]
    kinds = {key: unit for key, unit in SERIES.items() if any(sample.get(key) for sample in shown)}
    if not kinds:
        return ""
    said = []
    with drawing(6.4, 2.1 * len(kinds) + 0.4) as figure:
        for place, (key, unit) in enumerate(kinds.items(), 1):
            axes = figure.add_subplot(len(kinds), 1, place)
            names = dict.fromkeys(name for sample in shown for name in sample[key])
            peak = {name: max(sample[key][name] for sample in shown if name in sample[key]) for name in names}
            for name, colour in zip(sorted(names, key=lambda one: -peak[one])[:MOST_LINES], COLOURS, strict=False):
                times = [sample["t_s"] for sample in shown if name in sample[key]]
                axes.plot(
                    times, [sample[key][name] for sample in shown if name in sample[key]], color=colour, label=name
                )
                said.append(f"{name} at most {peak[name]:.4g} {unit}")
            axes.set_ylabel(unit)
            _grid(axes)
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.supxlabel("seconds", fontsize=10)
    return svg(figure, "Sensors during the timing: " + "; ".join(said), prefix)


def pareto(points: Sequence[Point], prefix: str) -> str:
    """Accuracy against latency, the points no other beats in both joined by a line."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ms, -one.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    with drawing(WIDTH, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot([one.ms for one in best], [one.top1 for one in best], color=TEXT, linewidth=1, linestyle="--")
        for point, colour in zip(points, COLOURS * len(points), strict=False):
            axes.plot(point.ms, point.top1, "o", color=colour, markersize=8, label=f"{point.name} ({point.how})")
        axes.set_xlim(0, 1.15 * max(point.ms for point in points))  # from nothing, so that noise looks like noise
        tops = [point.top1 for point in points]
        axes.set_ylim(max(0.0, min(tops) - 1), min(100.5, max(tops) + 1))
        axes.set_xlabel("milliseconds an image")
        axes.set_ylabel("top-1 %")
        _grid(axes)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    said = "; ".join(f"{one.name}: {one.ms:.3g} ms, {one.top1:.1f} %" for one in points)
    return svg(figure, f"Top-1 against time an image: {said}", prefix)


def ladder(record: Json, prefix: str) -> str:
    """Of each rung the share of values that differ from the rung before, tap by tap."""
    stepped = [rung for rung in record["rungs"] if rung["taps"]]
    if not stepped or not any(tap["mismatch_rate"] for rung in stepped for tap in rung["taps"]):
        return ""
    with drawing(WIDTH, 2.8) as figure:
        axes = figure.add_subplot()
        for rung, colour in zip(stepped, COLOURS, strict=False):
            rates = [tap["mismatch_rate"] for tap in rung["taps"]]
            axes.plot(range(1, len(rates) + 1), rates, "o-", color=colour, markersize=3, label=rung["rung"])
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tap, in execution order")
        axes.set_ylabel("values that differ, %")
        _grid(axes)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(stepped))
    return svg(figure, f"Values that differ from the rung before, tap by tap. {record['verdict']}", prefix)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color=TEXT, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)

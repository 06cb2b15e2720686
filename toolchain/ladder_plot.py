"""``python -m toolchain.ladder_plot LADDER.json FILE.png``: a picture of what ``runtime.parity --ladder --json`` found.

Above, the mismatch at every tap, a line a rung; below, the logits' SQNR of every rung against the one before. It is
here and not in ``runtime`` because a device has no matplotlib.
"""

from __future__ import annotations

import json as reader
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from runtime import cli
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.files import atomic_path
from runtime.parity import MAX_MISMATCH_PERCENT, MIN_LOGITS_SQNR_DB

_HINT = "python -m runtime.parity BUNDLE --ladder --json ladder.json"
FLOOR = 1e-6  # percent; a tap with no mismatch is drawn here, for a logarithmic axis has no zero


def plot(ladder: dict[str, Any], path: Path) -> None:
    """Draw a ladder, as :meth:`runtime.ladder.Ladder.to_json` gives it, into a PNG file.

    Raises:
        IntvitError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        why = f"matplotlib is not installed: {error}"
        raise IntvitError("cannot draw the ladder", why=why, next="pip install 'intvit[build]'") from error
    rungs = ladder["rungs"]
    stepped = [rung for rung in rungs if rung["taps"]]
    names = [tap["name"] for tap in stepped[0]["taps"]] if stepped else []
    figure = Figure(figsize=(max(8.0, 0.22 * len(names)), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    for rung in stepped:
        rates = [max(tap["mismatch_rate"], FLOOR) for tap in rung["taps"]]
        label = f"{rung['rung']} against {rung['against']}"
        (line,) = above.plot(range(len(names)), rates, marker="o", markersize=3, linewidth=1, label=label)
        for at, tap in enumerate(rung["taps"]):
            if tap["max_lsb"] > 1:
                above.annotate(f"{tap['max_lsb']} LSB", (at, rates[at]), fontsize=7, color=line.get_color())
    above.set_yscale("log")
    above.set_ylim(FLOOR / 2, 200)
    above.axhline(MAX_MISMATCH_PERCENT, color="grey", linestyle="--", linewidth=1, label="limit")
    above.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    above.set_ylabel(f"values that differ, % (aligned; {FLOOR:g}: none)")
    above.legend(fontsize=7)
    places = range(len(rungs))
    for key, label, offset in (("logits_sqnr_db", "aligned", -0.2), ("free_logits_sqnr_db", "free run", 0.2)):
        bars = below.bar([at + offset for at in places], [rung[key] for rung in rungs], 0.4, label=label)
        below.bar_label(bars, fmt="%.0f", fontsize=7)
    below.axhline(MIN_LOGITS_SQNR_DB, color="grey", linestyle="--", linewidth=1)
    below.set_xticks(places, [rung["rung"] for rung in rungs])
    below.set_ylabel("logits SQNR to the rung before, dB")
    below.set_ylim(top=1.25 * below.get_ylim()[1])
    below.legend(fontsize=7, loc="upper right", ncols=2)
    figure.suptitle(ladder["verdict"], fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def main(
    ladder: Annotated[Path, Argument(metavar="LADDER.json", help="What `runtime.parity --ladder --json` wrote.")],
    out: Annotated[Path, Argument(metavar="FILE.png", help="The picture to write.")],
) -> None:
    """Draw the parity ladder: mismatch by tap and rung, SQNR by rung."""
    try:
        found = reader.loads(ladder.read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError("cannot read the ladder", where=str(ladder), why=why, next=_HINT) from error
    except ValueError as error:
        raise IntvitError("not a JSON file", where=str(ladder), why=str(error), next=_HINT) from error
    if not isinstance(found, dict) or "rungs" not in found:
        raise IntvitError("the file holds no ladder", where=str(ladder), why="no key 'rungs'", next=_HINT)
    try:
        plot(found, out)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        why = f"not what this version writes: {type(error).__name__}: {error}"
        raise IntvitError("the file holds no ladder", where=str(ladder), why=why, next=_HINT) from error
    Console().print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)

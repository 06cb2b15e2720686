"""The pictures on which engine and float twin part most, as one HTML page with thumbnails in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.classes import Classes
from runtime.files import atomic_write_text
from runtime.predictions import Predictions

INDEX = "index.html"
MOST = 48
SIDE = 176  # pixels of a thumbnail's longer side

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; }}
ul {{ list-style: none; padding: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, 200px); }}
li {{ border: 1px solid #8886; border-radius: 8px; padding: 11px; overflow-wrap: anywhere; font-size: 13px; }}
img {{ display: block; width: 176px; height: 176px; object-fit: contain; margin-bottom: .5rem; }}
</style></head><body><h1>{title}</h1><p>{lead}</p><ul>
{items}
</ul></body></html>
"""


def worst(engine: Predictions, baseline: Predictions, most: int = MOST) -> list[int]:
    """Indices of up to ``most`` pictures whose first classes differ, the largest loss of the twin's certainty first.

    The loss is the probability the twin gives to its first class, less what the engine gives to that class. The twin
    must be the last model that was asked (:class:`runtime.predictions.Predictions`).
    """
    loss = baseline.sure - engine.of_last
    differ = np.flatnonzero(engine.top[:, 0] != baseline.top[:, 0])
    return [int(index) for index in differ[np.argsort(-loss[differ], kind="stable")][:most]]


def thumbnail(path: Path) -> str:
    """The picture, at most 176 pixels a side, as a JPEG ``data:`` URI."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def write(
    folder: Path,
    chosen: Sequence[int],
    engine: Predictions,
    baseline: Predictions,
    labels: npt.NDArray[np.int64],
    paths: Sequence[Path],
    classes: Classes,
    *,
    title: str,
    twin_precision: str = "float32",
) -> Path:
    """Write ``folder``/index.html, the pictures ``chosen`` in it; it refers to no other file. Returns its path.

    ``twin_precision``: what the float twin computes in.

    Raises:
        IntvitError: it cannot be written.
    """
    items = []
    for index in chosen:
        label, right = classes.names[labels[index]], labels[index]
        lines = [f"<b>{html.escape(label)}</b> <small>{html.escape(paths[index].name)}</small>"]
        for name, model in ((twin_precision, baseline), ("integer", engine)):
            said = model.top[index, 0]
            mark = "✓" if said == right else "✗"
            lines.append(f"{name}: {html.escape(classes.names[said])} {100 * model.sure[index]:.0f} % {mark}")
        alt = html.escape(f"picture labelled {label}", quote=True)
        items.append(f'<li><img alt="{alt}" src="{thumbnail(paths[index])}">{"<br>".join(lines)}</li>')
    differ = int((engine.top[:, 0] != baseline.top[:, 0]).sum())
    lead = (
        f"Integer engine and {twin_precision} twin name different first classes for "
        f"{differ} of {len(labels)} pictures. "
        f"Shown are {len(chosen)}, those first where the engine gives least to what the twin was surest of."
    )
    page = _PAGE.format(title=html.escape(f"{title}: disagreements"), lead=lead, items="\n".join(items))
    atomic_write_text(folder / INDEX, page)
    return folder / INDEX

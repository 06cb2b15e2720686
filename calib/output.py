"""The folder of a set of images: its files, and what may be replaced there."""

from __future__ import annotations

import os
from pathlib import Path

from calib.errors import IntvitError

IMAGES, META, PREVIEW = "images.safetensors", "images.json", "preview.png"


def check_out(out: Path, force: bool) -> None:
    """Refuse an ``--out`` that is there already, unless it is a set of ours and ``force`` is given."""
    if not os.path.lexists(out):
        return
    if not force:
        raise IntvitError("there is something at --out already", where=str(out), next="choose another, or --force")
    if not (out / META).is_file():
        raise IntvitError(
            "--force only replaces a set of images", where=str(out), why=f"it holds no {META}", next="choose another"
        )

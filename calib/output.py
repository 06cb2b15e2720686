"""Where results go: whether a folder can be made there, the files of a set of images, and what may be replaced."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from calib.errors import IntvitError

IMAGES, META, PREVIEW = "images.safetensors", "images.json", "preview.png"


def require_place(out: Path) -> None:
    """Refuse an ``--out`` that no folder can be made at, before any work is done; nothing is left behind.

    Raises:
        IntvitError: it is a folder without a name of its own (``.``), or what is above it cannot be written.
    """
    if out.name in ("", ".."):
        what = "the output folder appears under its name at once, and this one has none"
        raise IntvitError(what, where=f"--out {out}", next="name one, such as --out build/first")
    above = out.parent
    while not above.exists():
        above = above.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".intvit-", dir=above))
    except OSError as error:
        raise IntvitError(
            "cannot write to --out",
            where=str(out),
            why=f"{above}: {error.strerror or error}",
            next="choose another --out, or make that folder writable",
        ) from error


def check_out(out: Path, force: bool) -> None:
    """Refuse an ``--out`` that cannot be made, or is there already and no set of ours that ``force`` may replace.

    Raises:
        IntvitError: it is so.
    """
    require_place(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise IntvitError("there is something at --out already", where=str(out), next="choose another, or --force")
    if not (out / META).is_file():
        raise IntvitError(
            "--force only replaces a set of images", where=str(out), why=f"it holds no {META}", next="choose another"
        )

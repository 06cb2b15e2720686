"""Handwritten digits as pictures: one fixed split, one way to make a picture, for training and evaluation alike.

scikit-learn's ``load_digits`` holds 1,797 scans of 8 x 8 pixels in 17 grey levels (UCI, Optical Recognition of
Handwritten Digits). ``python -m benches.digits --out DIR`` writes the test part as an evaluation folder,
``DIR/<class index>/<sample index>.png``; calibration never reads it.
"""

from __future__ import annotations

import io
import re
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from runtime.cli import run
from runtime.errors import IntvitError

SIDE = 32
TEST_SIZE = 0.25
SPLIT_SEED = 20240
Split = Literal["train", "test"]
_OURS = re.compile(r"\d/\d+\.png")


def to_picture(scan: npt.NDArray[np.float64]) -> Image.Image:
    """A scan of (8, 8) levels 0..16 as a SIDE x SIDE RGB picture: stretched to 0..255, then enlarged bicubically."""
    grey = np.rint(scan * (255 / 16)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def split_indices(split: Split) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The sample indices of one part of the fixed stratified split, ascending, and their labels 0..9."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    chosen = np.sort(train if split == "train" else test).astype(np.int64)
    return chosen, labels[chosen]


def load_split(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures (N, SIDE, SIDE, 3) uint8 and labels (N,) of one part, in the order of :func:`split_indices`."""
    from sklearn.datasets import load_digits

    indices, labels = split_indices(split)
    scans = load_digits().images[indices]
    return np.stack([np.asarray(to_picture(scan)) for scan in scans]), labels


def picture_files(split: Split) -> dict[str, bytes]:
    """The folder of one part: relative path -> PNG bytes."""
    indices, labels = split_indices(split)
    pictures, _ = load_split(split)
    files = {}
    for index, label, picture in zip(indices, labels, pictures, strict=True):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format="PNG")
        files[f"{label}/{index}.png"] = stream.getvalue()
    return files


def export(out: Path, split: Split = "test") -> bool:
    """Write one part under ``out``, whole or not at all; False when it is already there, complete.

    Raises:
        IntvitError: ``out`` holds something this command did not write.
    """
    files = picture_files(split)
    present = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if not path.is_dir()}
    if present.keys() == files.keys() and all(present[name].read_bytes() == data for name, data in files.items()):
        return False
    foreign = sorted(name for name in present if not _OURS.fullmatch(name))
    if foreign or (out.exists() and not out.is_dir()):
        raise IntvitError(
            "the folder holds files this command did not write",
            where=str(out / foreign[0]) if foreign else str(out),
            why="an evaluation folder is replaced as a whole, and that would delete them",
            next="give --out another place",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        for name, data in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def main(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the folder goes.")],
    split: Annotated[str, typer.Option("--split", help="test, or train for calibration with real pictures.")] = "test",
) -> None:
    """Write the digits as pictures in one folder a class."""
    if split not in ("train", "test"):
        raise IntvitError(f"unknown split {split!r}", where="--split", next="use --split test or --split train")
    part: Split = "train" if split == "train" else "test"
    written = export(out, part)
    count = len(split_indices(part)[0])
    print(f"{out}: {count} pictures of the {part} split, {'written' if written else 'already there'}")


if __name__ == "__main__":
    run(main)

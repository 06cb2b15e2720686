"""A folder of labelled pictures, ``DIR/<class id or index>/*.jpg|jpeg|png``, read ahead by a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.classes import Classes
from runtime.errors import IntvitError
from runtime.images import SUFFIXES, load_image
from runtime.manifest import Preprocess

UNREADABLE_LIMIT = 0.01
_FORM = "give a folder DIR of DIR/<class>/*.jpg|png"


@dataclass(frozen=True)
class Sample:
    """One labelled picture: its file and its index among the logits."""

    path: Path
    label: int


@dataclass(frozen=True)
class Batch:
    """Readable pictures, in order: float32 (N, 3, H, W) normalised, and int64 (N,) labels."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    samples: tuple[Sample, ...]


@dataclass
class Unreadable:
    """The pictures that could not be decoded: (path, reason), in order."""

    files: list[tuple[str, str]] = field(default_factory=list)


def require_folder(data: Path) -> None:
    """Refuse an evaluation folder that is none.

    Raises:
        IntvitError: there is no such folder.
    """
    if not data.is_dir():
        why = "it is a file" if data.exists() else "there is no such directory"
        raise IntvitError("not an evaluation folder", where=str(data), why=why, next=_FORM)


def _is_picture(path: Path) -> bool:
    """Whether the path is a picture by its name; a link that leads nowhere is one, which cannot be read."""
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and (path.is_file() or (path.is_symlink() and not path.exists()))
    )


def load_folder(data: Path, classes: Classes, *, limit: int | None = None) -> list[Sample]:
    """The labelled pictures of a folder, in sorted order; hidden files and folders and files deeper down are ignored.

    Args:
        data: the folder; each of its folders is named by a class id (WordNet id) or a class index.
        classes: the bundle's class list.
        limit: at most that many, spread evenly over the sorted list.

    Raises:
        IntvitError: no such folder, a folder that names no class (all are named), or no pictures.
    """
    require_folder(data)
    folders = sorted(item for item in data.iterdir() if item.is_dir() and not item.name.startswith("."))
    unknown = [folder.name for folder in folders if classes.index_of(folder.name) is None]
    if unknown:
        listed = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise IntvitError(
            f"unknown class folder: {listed}",
            where=str(data / unknown[0]),
            why=f"the model's classes are {classes.ids[0]!r} .. {classes.ids[-1]!r}, or 0 .. {len(classes.ids) - 1}",
            next="name each folder by a class id or a class index, or remove it",
        )
    samples = []
    for folder in folders:
        label = classes.index_of(folder.name)
        assert label is not None
        for path in sorted(folder.iterdir()):
            if _is_picture(path):
                samples.append(Sample(path, label))
    if not samples:
        loose = sum(map(_is_picture, data.iterdir()))
        raise IntvitError(
            "the evaluation folder has no pictures",
            where=str(data),
            why=f"{loose} lie in the folder itself, under no class"
            if loose
            else f"no *{', *'.join(SUFFIXES)} in its class folders",
            next=_FORM,
        )
    if limit is not None and limit < len(samples):
        samples = [samples[i * len(samples) // limit] for i in range(limit)]
    return samples


def batches(
    samples: Sequence[Sample],
    rule: Preprocess,
    unreadable: Unreadable,
    *,
    batch: int = 8,
    workers: int = 2,
    ahead: int = 2,
) -> Generator[Batch, None, None]:
    """Decode the samples in order into batches; decoding runs ``ahead`` by so many batches, no further.

    Unreadable pictures are noted in ``unreadable`` and skipped, so a batch may hold fewer than ``batch``.

    Raises:
        IntvitError: at the end, when more than 1 % of the pictures were unreadable, or all of them.
    """
    pending: deque[tuple[Batch, list[Future[Any]]]] = deque()
    starts = iter(range(0, len(samples), batch))
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
    try:
        while True:
            while len(pending) < ahead and (start := next(starts, None)) is not None:
                part = _blank(samples[start : start + batch], rule)
                rows = zip(part.samples, part.images, strict=True)
                pending.append((part, [pool.submit(load_image, sample.path, rule, row) for sample, row in rows]))
            if not pending:
                break
            part, futures = pending.popleft()
            read = []
            for row, (sample, future) in enumerate(zip(part.samples, futures, strict=True)):
                try:
                    future.result()
                    read.append(row)
                except IntvitError as error:
                    unreadable.files.append((str(sample.path), error.why))
            if len(read) == len(futures):
                yield part
            elif read:
                yield Batch(part.images[read], part.labels[read], tuple(part.samples[row] for row in read))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    count = len(unreadable.files)
    if count == len(samples) or count > UNREADABLE_LIMIT * len(samples):
        path, why = unreadable.files[0]
        raise IntvitError(
            f"{count} of {len(samples)} pictures are unreadable, more than 1 %",
            where=", ".join(name for name, _ in unreadable.files[:5]) + (", ..." if count > 5 else ""),
            why=f"{path}: {why}",
            next="remove or repair them; an accuracy over the rest would mislead",
        )


def _blank(samples: Sequence[Sample], rule: Preprocess) -> Batch:
    """A batch whose images are not decoded yet: every picture is written where it stays."""
    images = np.empty((len(samples), rule.channels, rule.height, rule.width), dtype=np.float32)
    return Batch(images, np.array([sample.label for sample in samples], dtype=np.int64), tuple(samples))

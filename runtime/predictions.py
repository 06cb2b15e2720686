"""Several models asked about the same pictures, while the next pictures are being decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime import machine
from runtime.backends.base import Images, Logits
from runtime.dataset import Batch, Sample, Unreadable, batches
from runtime.manifest import Preprocess
from runtime.paired import Hits
from runtime.progress import task

Run = Callable[[Images], Logits]


@dataclass(frozen=True)
class Predictions:
    """What one model said of M pictures.

    Attributes:
        top: int64 (M, k) class indices, the best first, k = min(5, classes).
        sure: float32 (M,), the probability (softmax) of its first class.
        of_last: float32 (M,), the probability it gives to the first class of the last model asked.
    """

    top: npt.NDArray[np.int64]
    sure: npt.NDArray[np.float32]
    of_last: npt.NDArray[np.float32]

    def hits(self, labels: npt.NDArray[np.int64], k: int) -> Hits:
        """bool (M,): whether the label is among the first ``k``."""
        found: Hits = (self.top[:, :k] == labels[:, None]).any(axis=1)
        return found


@dataclass(frozen=True)
class Answers:
    """The result of :func:`predict`: one Predictions a model, labels int64 (M,), and the M paths, in order."""

    models: tuple[Predictions, ...]
    labels: npt.NDArray[np.int64]
    paths: tuple[Path, ...]


def top_classes(logits: Logits, k: int = 5) -> npt.NDArray[np.int64]:
    """int64 (N, min(k, classes)): the best classes of each row, ties to the lower index.

    The largest, k times over: sorting a thousand classes for the sake of five takes ten times as long.
    """
    left = np.maximum(logits, np.finfo(logits.dtype).min)  # a copy in which nothing is -inf yet
    top = np.empty((len(left), min(k, left.shape[1])), dtype=np.int64)
    for place in range(top.shape[1]):
        top[:, place] = left.argmax(axis=1)
        left[np.arange(len(left)), top[:, place]] = -np.inf
    return top


def softmax(logits: Logits) -> npt.NDArray[np.float32]:
    """float32 (N, classes): exp(x) / sum exp(x) by row."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    chances: npt.NDArray[np.float32] = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return chances


def predict(
    lanes: Sequence[Sequence[Run]],
    samples: Sequence[Sample],
    rule: Preprocess,
    unreadable: Unreadable,
    *,
    batch: int = 8,
    label: str = "accuracy",
) -> Answers:
    """Give the same pictures to several models, each float32 (N, 3, H, W) -> float32 (N, classes).

    Args:
        lanes: every lane asks the same models, in the same order, and takes the next batch when it is free, in a
            thread of its own (the first in the caller's).
        unreadable: is told the pictures that are skipped.
        batch: pictures a call. Decoded pictures wait in memory for a batch a lane and one more.

    Raises:
        IntvitError: more than 1 % of the pictures are unreadable, or all; whatever a model raises.
    """
    done: dict[int, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]]] = {}
    parts: list[Batch] = []
    lock, stop = threading.Lock(), threading.Event()
    workers = min(8, machine.available_cores())
    stream = batches(samples, rule, unreadable, batch=batch, workers=workers, ahead=len(lanes) + 1)
    with task(label, len(samples)) as advance:

        def work(runs: Sequence[Run]) -> None:
            while not stop.is_set():
                with lock:
                    part = next(stream, None)
                    if part is None:
                        return
                    place = len(parts)
                    parts.append(Batch(part.images[:0], part.labels, part.samples))
                said = [run(part.images) for run in runs]
                first, rows = said[-1].argmax(axis=1), np.arange(len(part.labels))
                done[place] = []
                for logits in said:
                    chance, top = softmax(logits), top_classes(logits)
                    done[place].append((top, chance[rows, top[:, 0]], chance[rows, first]))
                with lock:
                    advance(len(part.samples))

        others = ThreadPoolExecutor(max_workers=max(1, len(lanes) - 1), thread_name_prefix="lane")
        try:
            futures = [others.submit(work, runs) for runs in lanes[1:]]
            work(lanes[0])  # in the caller's thread: a CUDA context belongs to the one that made it
            for future in futures:
                future.result()
        finally:
            stop.set()
            others.shutdown()
            stream.close()
        if unreadable.files:
            advance(len(unreadable.files))
    models = []
    for model in range(len(lanes[0])):
        tops, sure, of_last = zip(*(done[place][model] for place in range(len(parts))), strict=True)
        models.append(Predictions(np.concatenate(tops), np.concatenate(sure), np.concatenate(of_last)))
    paths = tuple(sample.path for part in parts for sample in part.samples)
    return Answers(tuple(models), np.concatenate([part.labels for part in parts]), paths)

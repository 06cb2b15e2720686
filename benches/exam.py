"""The photographs as an exam: what a network's logits are worth on them, beside the float network's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benches.synthesis_sets import ImageSet, photographs
from calib.align.distill import softened_divergence
from calib.align.inputs import in_batches
from calib.models import LoadedModel
from calib.network import Network
from calib.recipes import REAL

BATCH = 50  # photographs a forward pass in torch


def drawn(count: int, images: int, seed: int) -> Tensor:
    """Which of ``count`` photographs calibrate: (count,) bool, ``images`` of them True."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, order[:images], True)


def photograph_set(loaded: LoadedModel, images: int, seed: int) -> ImageSet:
    """The photographs that calibrate, as a set like those that are made; its classes are the labels."""
    photos, labels = photographs(loaded)
    chosen = drawn(len(photos), images, seed)
    pixels = loaded.spec.denormalise(photos[chosen]).clamp(0, 1).half()
    return ImageSet(pixels, labels[chosen, None], {"method": REAL, "images": images, "iterations": 0, "seconds": 0.0})


@dataclass(frozen=True)
class Exam:
    """The photographs (B, 3, H, W), normalised, their classes (B,) and the float network's logits (B, classes)."""

    photos: Tensor
    labels: Tensor
    logits: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel) -> Exam:
        """Every photograph."""
        photos, labels = photographs(loaded)
        return cls(photos, labels, answers(loaded.module, photos))

    def hits(self, logits: Tensor) -> Tensor:
        """Whether the class is the largest of ``logits`` (B, classes): (B,) bool."""
        return logits.argmax(1) == self.labels

    def top1(self, logits: Tensor) -> float:
        """Percent of the photographs that ``logits`` (B, classes) hit."""
        return _percent(self.hits(logits))

    def hits_text(self, logits: Tensor) -> str:
        """The hits of ``logits`` (B, classes) as 0 and 1, one a photograph, for paired comparisons."""
        return "".join("1" if hit else "0" for hit in self.hits(logits))

    def divergence(self, logits: Tensor) -> float:
        """Mean of KL(float || other) over the photographs, in nats, of the other's ``logits`` (B, classes)."""
        return float(softened_divergence(logits.double(), self.logits.double(), 1.0))

    def marks(self, logits: Tensor, seen: Tensor | None) -> dict[str, Any]:
        """What a row says of ``logits`` (B, classes); ``seen`` (B,) bool: photographs that calibrated."""
        marks = {"top1": self.top1(logits), "divergence": self.divergence(logits), "hits": self.hits_text(logits)}
        return marks if seen is None else marks | {"unseen_top1": _percent(self.hits(logits)[~seen])}


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


@torch.no_grad()
def answers(network: Network, photos: Tensor) -> Tensor:
    """Logits (B, classes) of ``network`` on ``photos`` (B, 3, H, W)."""
    return in_batches(network, photos, BATCH)

"""Engines that only take time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.bench.contenders import Contender

IMAGES = np.zeros((2, 3, 8, 8), np.float32)


class Fake:
    """Sleeps ``seconds`` a call and writes its letter into ``log``."""

    name = "fake"
    input_shape = (3, 8, 8)
    num_classes = 10

    def __init__(self, letter: str, seconds: float, log: list[str] | None = None) -> None:
        self.letter, self.seconds, self.log = letter, seconds, [] if log is None else log

    def run(self, images: Any) -> Any:
        self.log.append(self.letter)
        time.sleep(self.seconds)
        return np.zeros((len(images), self.num_classes), np.float32)

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name}


class OnDevice(Fake):
    """A stand-in for an engine on a GPU: it tells the parts of a call."""

    def run_phased(self, images: Any) -> tuple[Any, Mapping[str, float]]:
        parts = {"h2d_ms": 0.5, "compute_ms": 1e3 * self.seconds, "d2h_ms": 0.1, "enqueue_ms": 0.9e3 * self.seconds}
        return self.run(images), parts


def contender(engine: Fake, role: str = "engine") -> Contender:
    return Contender(role, f"{engine.letter} (fake)", engine, IMAGES)

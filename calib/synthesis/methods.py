"""Methods as data: what each published name means, as numbers. Sources stand beside the numbers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from calib.errors import IntvitError


@dataclass(frozen=True)
class Round:
    """One run of the optimiser: share of all iterations, roll reach in pixels of a 224 x 224 image."""

    share: float
    roll: int


@dataclass(frozen=True)
class SynthesisConfig:
    """One synthesis method.

    Attributes:
        method: its name. images: how many. batch: images optimised together. iterations: in all, over all rounds;
        0 = the images are only drawn. learning_rate, betas: of Adam. warmup: share of a round with rising rate.
        entropy, class_loss, tv: weights of the losses. tv_target: lowest and highest target of the total variation
        at 32 x 3 x 224 x 224 values.
    """

    method: str
    images: int = 32
    batch: int = 32
    iterations: int = 0
    learning_rate: float = 0.2
    swin_learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    warmup: float = 0.2
    rounds: tuple[Round, ...] = field(default_factory=tuple)
    flip: bool = False
    entropy: float = 0.0
    class_loss: float = 0.0
    tv: float = 0.0
    tv_target: tuple[float, float] = (2500.0, 3000.0)


NOISE = SynthesisConfig("noise")
PSAQ = SynthesisConfig(
    "psaq",
    iterations=1000,  # PSAQ-ViT's code: two rounds of 500, each with 100 warm-up iterations, then cosine to 0
    rounds=(Round(0.5, 15), Round(0.5, 30)),  # its two roll limits
    flip=True,
    entropy=1.0,
    class_loss=1.0,
    tv=0.05,
)
METHODS = {config.method: config for config in (NOISE, PSAQ)}


def find(name: str) -> SynthesisConfig:
    """The method called ``name``.

    Raises:
        IntvitError: no such method; near matches are listed.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.3) or list(METHODS)
        raise IntvitError(
            f"unknown method {name!r}",
            where="--method",
            why="known: " + ", ".join([*METHODS, "real"]),
            next="near matches: " + ", ".join(near),
        )
    return METHODS[name]

"""Learning rate and round of every step."""

from __future__ import annotations

import math

from calib.synthesis.methods import Optimiser, Round


def round_at(rounds: tuple[Round, ...], iterations: int, step: int) -> tuple[Round, int, int]:
    """The round that ``step`` is in, the step within it, and the round's length.

    Raises:
        ValueError: the step is past the last round.
    """
    start = 0
    for number, part in enumerate(rounds):
        last = number == len(rounds) - 1
        length = iterations - start if last else round(iterations * part.share)
        if step < start + length:
            return part, step - start, length
        start += length
    raise ValueError(f"step {step} is past the last round")


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Rate at ``step`` (0 .. steps-1) of ``steps``: the first ``warmup`` rise linearly, a half cosine to ``floor``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def rate_at(optimiser: Optimiser, swin: bool, step: int, steps: int) -> float:
    """The optimiser's rate at ``step`` of ``steps`` (of a round where it restarts with every round)."""
    peak = optimiser.swin_rate if swin else optimiser.rate
    return warmup_cosine(step, steps, round(optimiser.warmup * steps), peak, optimiser.floor)

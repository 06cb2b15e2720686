"""Learning rate over a round: linear warm-up, then a half cosine down to 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Rate at ``step`` (0 .. steps-1) of a round of ``steps``, the first ``warmup`` of them rising linearly."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

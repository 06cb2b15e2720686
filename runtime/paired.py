"""Two models judged on the same pictures: the difference of their hit rates, and what chance alone would make of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Hits = npt.NDArray[np.bool_]
Z95 = 1.959964  # the normal distribution's 97.5 % point


def percent(hits: Hits) -> float:
    """The part of ``hits`` (bool (M,)) that is true, 0..100."""
    return 100.0 * float(hits.mean())


def paired_stderr(first: Hits, second: Hits) -> float:
    """Standard error, in points, of the difference of two hit rates on the same M pictures; 0 for a single picture."""
    difference = first.astype(np.float64) - second.astype(np.float64)
    return 100.0 * float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0


def discordant(first: Hits, second: Hits) -> tuple[int, int]:
    """(pictures only ``first`` gets right, pictures only ``second`` gets right): all that McNemar's test looks at."""
    return int((first & ~second).sum()), int((~first & second).sum())


def paired_interval(first: Hits, second: Hits) -> tuple[float, float]:
    """95 % interval, in points, of the hit rate of ``first`` minus that of ``second`` on the same M pictures.

    Agresti and Min (Statistics in Medicine 2005, 24:729): Wald's interval with half a picture added to each of the
    four cells of the paired table, which keeps its level where few pictures are discordant.
    """
    gained, lost = discordant(first, second)
    pictures, more, less = len(first) + 2, gained + 0.5, lost + 0.5
    middle = (more - less) / pictures
    reach = Z95 * math.sqrt(more + less - (more - less) ** 2 / pictures) / pictures
    return 100.0 * max(-1.0, middle - reach), 100.0 * min(1.0, middle + reach)


def mcnemar_p(first: Hits, second: Hits) -> float:
    """McNemar's exact two-sided test (Psychometrika 1947, 12:153): P of so lopsided a split of the discordant pictures.

    The discordant pictures fall to either side with probability 1/2; 1 where there are none.
    """
    gained, lost = discordant(first, second)
    total = gained + lost
    tail, ways = 0, 1
    for fewer in range(min(gained, lost) + 1):  # ways to choose so many of all, each from the one before
        tail += ways
        ways = ways * (total - fewer) // (fewer + 1)
    return min(1.0, 2 * tail / (1 << total))

"""The timed loop: contenders take turns in short blocks, so that whatever slows the machine down slows all of them.

A time is one call, input array to logits array, by the host's clock. An engine on a device may tell more, in one of two
ways. ``gpu_ms(images, calls)``: the milliseconds of so many calls between the device's own events, copies left out; it
is asked after each turn. ``run_phased(images)``: the logits and a mapping of ``h2d_ms``, ``compute_ms``, ``d2h_ms``,
``enqueue_ms``, those it can tell of this call; it is then what is timed.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from runtime.backends.base import Engine, Images
from runtime.bench.contenders import Contender
from runtime.progress import task

BLOCK = 4
MIN_CALLS = 12
WARM_UP_S = 0.3
PHASES = ("h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")


@dataclass
class Timing:
    """Every timed call of one contender, in milliseconds.

    Attributes:
        blocks: the calls of each turn, in order.
        phases: by name, the parts of each call, where the engine tells them.
    """

    blocks: list[list[float]] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)

    @property
    def raw_ms(self) -> list[float]:
        """Every time, in order."""
        return [value for block in self.blocks for value in block]

    @property
    def medians(self) -> list[float]:
        """The median of each turn, in order."""
        return [median(block) for block in self.blocks]


def _turn(contender: Contender, timing: Timing) -> None:
    run: Callable[[Images], Any] = contender.engine.run
    phased: Callable[[Images], tuple[Any, Mapping[str, float]]] | None = getattr(contender.engine, "run_phased", None)
    images, block = contender.images, []
    run(images)  # untimed: its weights come back into the caches the other models have just filled
    for _ in range(BLOCK):
        if phased is None:
            start = time.perf_counter_ns()
            run(images)
            block.append((time.perf_counter_ns() - start) / 1e6)
            continue
        start = time.perf_counter_ns()
        _, parts = phased(images)
        block.append((time.perf_counter_ns() - start) / 1e6)
        for name, value in parts.items():
            timing.phases.setdefault(name, []).append(value)
    timing.blocks.append(block)
    clock: Callable[[Images, int], list[float]] | None = getattr(contender.engine, "gpu_ms", None)
    if clock is not None:
        timing.phases.setdefault("compute_ms", []).extend(clock(images, BLOCK))


def warm_up(contenders: Sequence[Contender], seconds: float) -> None:
    """Run every contender in turn for ``seconds`` together, and once at least."""
    start = time.perf_counter()
    while True:
        for contender in reversed(contenders):
            contender.engine.run(contender.images)
        if time.perf_counter() - start >= seconds:
            return


class _Paused:
    """Python's garbage collector holds still inside the block: it would stop one contender and not the other."""

    def __enter__(self) -> None:
        self.collecting = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self.collecting:
            gc.enable()


def interleave(contenders: Sequence[Contender], *, seconds: float, warm_up_s: float = WARM_UP_S) -> list[Timing]:
    """Time the contenders, taking turns in blocks of :data:`BLOCK` calls, the order reversed every round.

    Runs for about ``seconds`` and at least :data:`MIN_CALLS` calls each, after a warm-up.
    """
    warm_up(contenders, warm_up_s)
    timings = [Timing() for _ in contenders]
    pairs = list(zip(contenders, timings, strict=True))
    with _Paused(), task("bench", max(1, round(seconds))) as advance:
        start, shown = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds or len(timings[0].blocks) * BLOCK < MIN_CALLS:
            if int(spent) > shown:
                advance(int(spent) - shown)
                shown = int(spent)
            for contender, timing in pairs:
                _turn(contender, timing)
            pairs.reverse()
        advance(max(0, round(seconds) - shown))
    return timings


def together(engines: Sequence[Engine], images: Images, seconds: float) -> tuple[int, float]:
    """Run every engine in a thread of its own at the same time: (calls made, seconds gone by).

    No call starts after ``seconds``; those under way are finished and counted, and every engine makes one at least.

    Raises:
        IntvitError: an engine failed; the first error met.
    """
    counts, errors = [0] * len(engines), list[BaseException]()
    gate = threading.Barrier(len(engines) + 1)
    for engine in engines:
        engine.run(images)

    def work(index: int, engine: Engine) -> None:
        gate.wait()
        try:
            while True:
                engine.run(images)
                counts[index] += 1
                if time.perf_counter() >= deadline[0]:
                    return
        except BaseException as error:  # told to whoever waits, below
            errors.append(error)

    deadline = [float("inf")]
    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(engines)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    deadline[0] = start + seconds
    gate.wait()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    if errors:
        raise errors[0]
    return sum(counts), spent

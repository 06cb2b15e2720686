"""Can this bundle run here? The only sure answer: open each engine and run it once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np

from runtime import machine
from runtime.backends.base import BACKENDS, open_engine
from runtime.bundle import Bundle
from runtime.errors import IntvitError

COPIES = 3  # of a graph in memory while an engine is made from it: the file, the parsed graph, the packed weights


@dataclass(frozen=True)
class Fitness:
    """Whether one backend runs the bundle's integer engine; ``why`` and ``next`` say what stops it."""

    backend: str
    runs: bool
    why: str = ""
    next: str = ""


def _try(bundle: Bundle, backend: str) -> Fitness:
    graphs = [entry for entry in bundle.manifest.files if entry.role == "graph" and entry.target == backend]
    available = machine.memory_bytes()[1]
    need = COPIES * sum(entry.bytes for entry in graphs)
    if 0 < available < need:
        why = f"about {need >> 20} MiB of memory needed, {available >> 20} MiB available"
        return Fitness(backend, False, why, "close other programs")
    try:
        engine = open_engine(bundle, backend)
        try:
            logits = engine.run(bundle.golden().images[:1])
        finally:
            engine.close()
    except IntvitError as error:
        return Fitness(backend, False, ": ".join(part for part in (error.what, error.why) if part), error.next)
    if not np.isfinite(logits).all():
        checked = shlex.join(["python", "-m", "runtime.parity", str(bundle.root)])
        return Fitness(backend, False, "its logits are not finite", checked)
    return Fitness(backend, True)


def fitness(bundle: Bundle) -> list[Fitness]:
    """Each backend tried on the bundle's first golden image, in the order of their names."""
    return [_try(bundle, backend) for backend in sorted(BACKENDS)]

"""What the loop itself costs: no memory from call to call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends.base import open_engine
from runtime.bench.contenders import Contender
from runtime.bench.loop import BLOCK, Timing, _turn
from runtime.bundle import Bundle

CALLS = 10_000
LIMIT = 5 << 20


def resident() -> int:
    """Bytes of this process that lie in memory (proc(5), statm)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="proc is Linux's")
def test_memory_stays(tiny_bundle: Path) -> None:
    engine = open_engine(Bundle.open(tiny_bundle), threads=1)
    contender = Contender("engine", "tiny", engine, np.zeros((1, 3, 8, 8), np.float32))
    timing = Timing()
    for _ in range(100):
        _turn(contender, timing)
    before = resident()
    for _ in range(CALLS // (BLOCK + 1)):
        _turn(contender, timing)
    grown = resident() - before
    engine.close()
    assert grown < LIMIT, f"{grown / 1e6:.1f} MB more after {CALLS} calls"

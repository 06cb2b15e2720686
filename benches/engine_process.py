"""One engine in a process of its own, timed on command: so that no engine shares its threads or its heap with another.

The worker reads lines from standard input and answers each with one line of JSON: ``run N`` gives the milliseconds of N
calls after an untimed one. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benches.record import ROOT
from benches.verbs import WORK
from runtime.bundle import Bundle
from runtime.cli import run
from runtime.errors import IntvitError

SEED = 0


class EngineProcess:
    """A worker, started and warm when the constructor returns.

    Raises:
        IntvitError: the engine cannot be built or run; the worker's last lines are in the message.
    """

    def __init__(self, engine: str, model: str, bundle: Path, batch: int, threads: int) -> None:
        self.engine = engine
        command = [sys.executable, "-m", "benches.engine_process", "--debug", engine, model]
        command += [str(bundle), str(batch), str(threads)]
        # Idle threads must sleep, not spin: the other workers need the cores.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        WORK.mkdir(parents=True, exist_ok=True)
        self._errors = (WORK / "cpu_engines.log").open("ab")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT, env=environment
        )
        self.started: dict[str, Any] = self._answer()

    def run(self, calls: int) -> list[float]:
        """Milliseconds of each of ``calls`` calls."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {calls}\n".encode())
        self._process.stdin.flush()
        times: list[float] = self._answer()["ms"]
        return times

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"{"):  # libraries print what they like besides
                found: dict[str, Any] = json.loads(line)
                return found
        why = f"the worker ended with exit code {self._process.wait()}; {self._errors.name} has what it said"
        raise IntvitError("an engine failed", where=self.engine, why=why, next="leave it out, or mend it")

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def interleave(workers: Sequence[EngineProcess], rounds: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds by engine: ``rounds`` turns of ``calls`` calls each, the order reversed every other round."""
    times: dict[str, list[float]] = {worker.engine: [] for worker in workers}
    for turn in range(rounds):
        for worker in workers if turn % 2 == 0 else workers[::-1]:
            times[worker.engine] += worker.run(calls)
    return times


def serve(engine: str, model: str, bundle: Path, batch: int, threads: int) -> None:
    """Be the worker: load the engine, then time it as often as standard input says ``run N``."""
    from benches.peers import ENGINES

    opened = Bundle.open(bundle)
    size = opened.manifest.preprocess
    shape = (batch, size.channels, size.height, size.width)
    images = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    start = time.perf_counter()
    call = ENGINES[engine](opened, model, threads)
    logits = np.asarray(call(images))
    answer: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "shape": list(logits.shape)}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        calls = int(line.split()[1])
        call(images)
        times = []
        for _ in range(calls):
            begun = time.perf_counter_ns()
            call(images)
            times.append((time.perf_counter_ns() - begun) / 1e6)
        print(json.dumps({"ms": times}), flush=True)


if __name__ == "__main__":
    run(serve)

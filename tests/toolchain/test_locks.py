"""A lock that one process holds at a time, and that leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.errors import IntvitError
from tests.conftest import REPO
from toolchain.locks import alone

HOLD = "import sys, time\nfrom pathlib import Path\nfrom toolchain.locks import alone\n"
HOLD += "with alone(Path(sys.argv[1]), 'busy'):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_whoever_holds_it_is_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with alone(lock, "busy"):
            with pytest.raises(IntvitError, match="busy") as refused, alone(lock, "busy"):
                pass
            assert refused.value.where == str(lock) and lock.exists()
        assert os.listdir(tmp_path) == []


def test_a_failure_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError), alone(tmp_path / "lock", "busy"):
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_it_dies_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    words = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(IntvitError, match="busy"), alone(lock, "busy"):
            pass
        holder.kill()
        holder.wait()
    assert lock.exists(), "killed: it could not tidy up"
    with alone(lock, "busy"):
        pass
    assert os.listdir(tmp_path) == []


def test_many_at_once_are_never_two(tmp_path: Path) -> None:
    """The file is removed by whoever lets go: one who has opened it before must not think it held."""
    inside, most, entered, stop = [0], [0], [0], time.perf_counter() + 1.0

    def work() -> None:
        while time.perf_counter() < stop:
            try:
                with alone(tmp_path / "lock", "busy"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    time.sleep(0.0005)
                    inside[0] -= 1
            except IntvitError:
                time.sleep(0.0001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and entered[0] > 20

"""A run beside a busy process is noticed; the counters are judged alone too, as this machine may be shared."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime import machine
from runtime.bench import disturbance
from runtime.bench.disturbance import Counters, Quiet
from runtime.bench.measure import Plan, measure
from runtime.bench.verdict import DISTURBED
from runtime.bundle import Bundle

STAT = """cpu  300 0 150 1000 50 0 10 20 0 0
cpu0 100 10 50 500 25 2 5 8 0 0
cpu1 200 10 100 500 25 0 5 12 0 0
cpu10 9999 0 0 0 0 0 0 0 0 0
intr 5
"""
CALM = Quiet(wall=5.0, cores=2, others=0.05, stolen=0.0, waited=0.01, switches=5.0)


def test_proc_stat() -> None:
    assert disturbance.parse_stat(STAT, [0], 100) == (1.67, 0.08)
    busy, stolen = disturbance.parse_stat(STAT, [0, 1], 100) or (0.0, 0.0)
    assert busy == pytest.approx(4.82) and stolen == pytest.approx(0.2)
    assert disturbance.parse_stat(STAT, [7], 100) is None
    assert disturbance.parse_stat("", [0], 100) is None


def test_what_happened_between_two_readings() -> None:
    before = Counters(wall=10.0, own=1.0, busy=100.0, stolen=1.0, waited=0.5, switches=10)
    after = Counters(wall=14.0, own=5.0, busy=108.0, stolen=1.4, waited=0.9, switches=50)
    found = disturbance.between(before, after, cores=2)
    assert found == Quiet(
        wall=4.0,
        cores=2,
        others=pytest.approx(1.0),
        stolen=pytest.approx(0.1),
        waited=pytest.approx(0.1),
        switches=pytest.approx(10.0),
    )
    unknown = Counters(wall=14.0, own=5.0, busy=None, stolen=None, waited=None, switches=None)
    assert disturbance.between(before, unknown, cores=2).others is None
    assert disturbance.reasons(disturbance.between(before, unknown, cores=2)) == []
    idle = disturbance.between(before, replace(after, busy=102.0), cores=2)
    assert idle.others == 0.0, "ticks are coarse: never below nothing"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"others": 1.0}, "other processes kept 1.00 of 2 processor(s) busy"),
        ({"others": 1.0, "cores": 16}, ""),
        ({"stolen": 0.2}, "the hypervisor took"),
        ({"waited": 0.3}, "threads waited 300 ms a second"),
        ({"switches": 400.0}, ""),  # the threads of short turns meet one another
        ({"switches": 400.0, "others": None}, ""),
        ({"switches": 400.0, "others": None, "waited": None}, "taken off their processor 400 times"),
        ({"others": 0.08, "waited": 0.09, "switches": 140.0}, ""),
        ({"others": 2.0, "wall": 0.05}, ""),
    ],
)
def test_reasons(change: dict, said: str) -> None:
    found = disturbance.reasons(replace(CALM, **change), [1.0] * 20)
    assert ([said in reason for reason in found] == [True]) if said else (found == [])


def test_spread_of_rounds() -> None:
    assert disturbance.rounds_ratio([1.0] * 7) is None
    steady, bumpy = [1.0, 1.01] * 10, [1.0] * 10 + [1.5] * 10
    assert disturbance.reasons(CALM, steady) == []
    assert "slow rounds took 1.50x" in disturbance.reasons(CALM, bumpy)[0]
    assert disturbance.record(CALM, bumpy)["rounds"] == 20


@pytest.fixture
def hogs() -> Iterator[None]:
    """One process without a pause for each processor we may use."""
    command = [sys.executable, "-c", "while True: pass"]
    made = [subprocess.Popen(command) for _ in machine.available_cpus()]
    time.sleep(0.3)
    yield
    for hog in made:
        hog.kill()
        hog.wait()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the counters are Linux's")
def test_a_hog_beside_the_run_is_flagged(tiny_bundle: Path, hogs: None) -> None:
    found = measure(Bundle.open(tiny_bundle), Plan(seconds=1.0, threads=1, bf16=False, energy_s=0.0))
    quiet = found["disturbance"]
    assert quiet["others"] > 0.4 * quiet["cores"]
    assert any("other processes kept" in reason for reason in found["disturbed"])
    assert found["verdict"].startswith(DISTURBED)


def test_our_own_work_is_not_a_hog() -> None:
    mine = [threading.get_native_id()]
    before = disturbance.read(mine)
    while time.process_time() - before.own < 0.1:
        pass
    after = disturbance.read(mine)
    if after.busy is not None and before.busy is not None:
        assert disturbance.between(before, after).others < (after.busy - before.busy) / (after.wall - before.wall)

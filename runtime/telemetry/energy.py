"""Energy an image: what a rail draws while one contender runs alone, less what it draws when nothing runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from runtime.telemetry.reading import Reading, Source
from runtime.telemetry.sampler import Sampler, merged

# What a whole board or module draws, the best first; several names together where a board has no rail for all of it.
# AGX Orin has none: the three rails together are what energymon takes for it too.
TOTALS = (("VDD_IN",), ("VIN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


class Runner(Protocol):
    """What is measured: ``call()`` once, ``role`` its name in the result."""

    @property
    def role(self) -> str: ...

    def call(self) -> object: ...


def mean_power(samples: Sequence[tuple[float, Reading]]) -> dict[str, float]:
    """Mean watts of every rail over the samples (seconds, reading).

    By the counter where the rail has one, else the area under its powers (trapezia) over the time; a rail with fewer
    than two values is left out.
    """
    found: dict[str, float] = {}
    names = dict.fromkeys(name for _, reading in samples for name in (*reading.energy_j, *reading.power_w))
    for name in names:
        counted = [(moment, reading.energy_j[name]) for moment, reading in samples if name in reading.energy_j]
        drawn = [(moment, reading.power_w[name]) for moment, reading in samples if name in reading.power_w]
        if len(counted) > 1 and counted[-1][0] > counted[0][0]:
            found[name] = (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
        elif len(drawn) > 1 and drawn[-1][0] > drawn[0][0]:
            pairs = itertools.pairwise(drawn)
            area = sum((later - moment) * (first + last) / 2 for (moment, first), (later, last) in pairs)
            found[name] = area / (drawn[-1][0] - drawn[0][0])
    return found


def main_rails(names: Sequence[str], *, gpu: bool) -> list[str]:
    """The rails whose sum stands for the machine: a board's input where it is known, else the GPU's or the packages'.

    Args:
        names: with their source before them, as in :func:`runtime.telemetry.sampler.merged`.
        gpu: whether the engine runs on a GPU; a discrete one counts alone then, and not at all otherwise.
    """
    for source in ("ina3221", "tegrastats"):
        for group in TOTALS:
            rails = [f"{source} {rail}" for rail in group]
            if all(rail in names for rail in rails):
                return rails
    if gpu:
        return [name for name in names if name == "nvml GPU"]
    return [name for name in names if name.startswith("rapl package-") and name.count(" ") == 1]


def _run(runner: Runner, sources: Sequence[Source], seconds: float, interval_s: float) -> tuple[int, float, Sampler]:
    calls, start = 0, time.perf_counter()
    with Sampler(sources, interval_s) as sampler:
        while not calls or time.perf_counter() - start < seconds:
            runner.call()
            calls += 1
        spent = time.perf_counter() - start
    return calls, spent, sampler


def measured_energy(
    runners: Sequence[Runner],
    sources: Sequence[Source],
    seconds: float,
    batch: int,
    *,
    gpu: bool = False,
    interval_s: float = 0.05,
) -> dict[str, Any]:
    """Energy an image of each runner, one after another, after an idle stretch; empty without a power sensor.

    Args:
        seconds: of the idle stretch, and of each runner. batch: images a call.
        gpu: see :func:`main_rails`.

    Returns:
        JSON values: rails (whose sum the figures are), idle_w (of every rail), idle_s, and ``by`` role: images,
        seconds, power_w (of every rail), joules_an_image (main rails, idle taken off), gross_joules_an_image (idle
        included).
    """
    here = merged(sources)
    if not here.power_w and not here.energy_j:
        return {}
    with Sampler(sources, interval_s) as sampler:
        time.sleep(seconds)
    idle = mean_power(sampler.samples)
    rails = main_rails(list(idle), gpu=gpu)
    if not rails:
        return {}
    found: dict[str, Any] = {"rails": rails, "idle_w": idle, "idle_s": seconds, "by": {}}
    for runner in runners:
        calls, spent, sampler = _run(runner, sources, seconds, interval_s)
        power = mean_power(sampler.samples)
        found["by"][runner.role] = {
            "images": calls * batch,
            "seconds": spent,
            "power_w": power,
            **_an_image(power, idle, rails, spent / (calls * batch)),
        }
    return found


def _an_image(
    power: Mapping[str, float], idle: Mapping[str, float], rails: Sequence[str], seconds: float
) -> dict[str, float]:
    """Joules of an image that takes ``seconds``."""
    gross = sum(power[rail] for rail in rails)
    return {
        "joules_an_image": (gross - sum(idle[rail] for rail in rails)) * seconds,
        "gross_joules_an_image": gross * seconds,
    }

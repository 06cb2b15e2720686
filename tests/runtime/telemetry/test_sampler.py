"""Samples beside a run, means over them, energy an image."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from runtime.telemetry import energy
from runtime.telemetry.reading import Reading, Source
from runtime.telemetry.sampler import Sampler, dropped, merged, open_sources


class Fake:
    """A source whose readings a function of the moment gives."""

    def __init__(self, name: str, make: Callable[[], Reading]) -> None:
        self.name, self._make, self.closed, self.reads = name, make, False, 0

    def read(self) -> Reading:
        self.reads += 1
        return self._make()

    def close(self) -> None:
        self.closed = True


def test_sources_are_opened_and_closed() -> None:
    here = Fake("here", Reading)
    with open_sources([lambda: here, lambda: "no such thing: not here"]) as sensors:
        assert sensors.sources == [here] and sensors.absent == ["no such thing: not here"]
    assert here.closed


def test_readings_are_merged_under_their_sources() -> None:
    one = Fake("rapl", lambda: Reading(power_w={"package-0": 9.0}, energy_j={"package-0": 3.0}))
    two = Fake("cpu", lambda: Reading(clocks_mhz={"CPU": 3e3}, temperature_c={"pkg": 50.0}, throttle=("hot",)))
    assert merged([one, two]) == Reading(
        power_w={"rapl package-0": 9.0},
        energy_j={"rapl package-0": 3.0},
        clocks_mhz={"cpu CPU": 3e3},
        temperature_c={"cpu pkg": 50.0},
        throttle=("cpu: hot",),
    )


def test_a_thread_samples_beside_the_run() -> None:
    clocks = itertools.chain([3000.0, 2000.0], itertools.repeat(1500.0))
    source = Fake("cpu", lambda: Reading(clocks_mhz={"CPU": next(clocks)}, throttle=("hot",)))
    with Sampler([source], 0.01) as sampler:
        time.sleep(0.2)
    record = sampler.record()
    moments = [sample["t_s"] for sample in record["samples"]]
    assert len(moments) >= 4 and moments == sorted(moments) and moments[-1] >= 0.2
    assert record["sources"] == ["cpu"] and record["throttled"] == ["cpu: hot"]
    assert record["dropped"] == {"cpu CPU": [3000.0, 1500.0]}
    assert source.reads == len(moments)


def test_without_sources_there_is_no_thread() -> None:
    before = threading.active_count()
    with Sampler([], 0.01) as sampler:
        assert threading.active_count() == before
    assert sampler.record()["samples"] == [] and dropped([]) == {}


def test_a_clock_that_the_first_reading_lacks_may_have_fallen() -> None:
    """tegrastats has said nothing yet when a run begins."""
    readings = [Reading(), *(Reading(clocks_mhz={"GR3D": value}) for value in (1300.0, 600.0)), Reading()]
    assert dropped([*readings[:3], Reading(clocks_mhz={"GR3D": 600.0})]) == {"GR3D": [1300.0, 600.0]}


def test_mean_power() -> None:
    samples = [
        (0.0, Reading(power_w={"a": 2.0}, energy_j={"b": 100.0})),
        (1.0, Reading(power_w={"a": 4.0, "b": 77.0})),
        (4.0, Reading(power_w={"a": 4.0, "c": 1.0}, energy_j={"b": 120.0})),
    ]
    assert energy.mean_power(samples) == {"b": 5.0, "a": pytest.approx((3.0 + 12.0) / 4)}
    assert energy.mean_power([]) == {}


@pytest.mark.parametrize(
    ("names", "gpu", "rails"),
    [
        (["ina3221 VDD_IN", "ina3221 VDD_SOC", "rapl package-0"], True, ["ina3221 VDD_IN"]),
        (["tegrastats VDD_GPU", "tegrastats VIN"], True, ["tegrastats VIN"]),
        (
            ["ina3221 VDD_GPU_SOC", "ina3221 VDD_CPU_CV", "ina3221 VIN_SYS_5V0"],
            True,
            ["ina3221 VDD_GPU_SOC", "ina3221 VDD_CPU_CV", "ina3221 VIN_SYS_5V0"],
        ),
        (["nvml GPU", "rapl package-0"], True, ["nvml GPU"]),
        (
            ["nvml GPU", "rapl package-0", "rapl package-0 core", "rapl package-1"],
            False,
            ["rapl package-0", "rapl package-1"],
        ),
        (["cpu x"], False, []),
    ],
)
def test_the_rails_that_stand_for_the_machine(names: list[str], gpu: bool, rails: list[str]) -> None:
    assert energy.main_rails(names, gpu=gpu) == rails


class Runner:
    role = "engine"

    def __init__(self) -> None:
        self.running = False

    def call(self) -> None:
        self.running = True
        time.sleep(0.02)
        self.running = False


def test_energy_an_image_takes_the_idle_power_off() -> None:
    runner = Runner()
    source: Source = Fake("ina3221", lambda: Reading(power_w={"VDD_IN": 15.0 if runner.running else 5.0}))
    found = energy.measured_energy([runner], [source], 0.3, 4, interval_s=0.005)
    mine = found["by"]["engine"]
    assert found["rails"] == ["ina3221 VDD_IN"] and found["idle_w"]["ina3221 VDD_IN"] == pytest.approx(5.0)
    each = mine["seconds"] / mine["images"]
    assert mine["images"] % 4 == 0 and each >= 0.0049
    assert mine["joules_an_image"] == pytest.approx(10.0 * each, rel=0.25)
    assert mine["gross_joules_an_image"] - mine["joules_an_image"] == pytest.approx(5.0 * each, rel=1e-6)


def test_no_power_no_energy() -> None:
    began = time.perf_counter()
    silent = Fake("cpu", lambda: Reading(clocks_mhz={"CPU": 1.0}))
    assert energy.measured_energy([Runner()], [silent], 5.0, 1) == energy.measured_energy([Runner()], [], 5.0, 1) == {}
    odd = Fake("nvml", lambda: Reading(power_w={"GPU": 1.0}))
    assert energy.measured_energy([Runner()], [odd], 0.02, 1, gpu=False) == {}
    assert time.perf_counter() - began < 2

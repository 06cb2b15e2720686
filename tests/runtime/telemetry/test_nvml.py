"""NVML through a stand-in for its Python module that answers as a discrete GPU does."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from runtime.telemetry import nvml
from runtime.telemetry.reading import Reading
from runtime.telemetry.sampler import open_sources


class NVMLError(Exception):
    pass


def library(answers: dict[str, Any], devices: int = 1, starts: bool = True) -> ModuleType:
    """``answers`` by function; an absent one is a function this library lacks, an exception is raised."""
    made: Any = ModuleType("pynvml")
    made.NVMLError, made.NVML_TEMPERATURE_GPU, made.NVML_CLOCK_SM, made.NVML_CLOCK_MEM = NVMLError, 0, 1, 2
    made.log = []

    def init() -> None:
        if not starts:
            raise NVMLError("Driver Not Loaded")

    def handle(key: Any) -> Any:
        made.log.append(key)
        if not devices:
            raise NVMLError("Not Found")
        return "device"

    made.nvmlInit, made.nvmlShutdown = init, lambda: made.log.append("shutdown")
    made.nvmlDeviceGetHandleByIndex = made.nvmlDeviceGetHandleByUUID = handle
    made.nvmlDeviceGetHandleByPciBusId = handle

    def answer(value: Any) -> Any:
        def ask(device: str, *arguments: Any) -> Any:
            assert device == "device"
            if isinstance(value, Exception):
                raise value
            return value[arguments[0]] if isinstance(value, dict) else value

        return ask

    for name, value in answers.items():
        setattr(made, f"nvmlDeviceGet{name}", answer(value))
    return made


FULL = {
    "PowerUsage": 71250,
    "TotalEnergyConsumption": 5_000_500,
    "Temperature": {0: 41},
    "ClockInfo": {1: 1980, 2: 2619},
    "CurrentClocksEventReasons": 0x4 | 0x20 | 0x1,
}


def opened(monkeypatch: pytest.MonkeyPatch, made: ModuleType) -> nvml.Nvml | str:
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return nvml.find()


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made: Any = library(FULL)
    source = opened(monkeypatch, made)
    assert not isinstance(source, str)
    assert source.read() == Reading(
        power_w={"GPU": 71.25},
        energy_j={"GPU": 5000.5},
        clocks_mhz={"SM": 1980.0, "memory": 2619.0},
        temperature_c={"GPU": 41.0},
        throttle=("software power cap", "software thermal slowdown"),
    )
    source.close()
    assert made.log == [0, "shutdown"]


def test_a_gpu_that_answers_little(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = dict.fromkeys(FULL, NVMLError("Not Supported")) | {"CurrentClocksThrottleReasons": 0x8}
    del refusals["CurrentClocksEventReasons"]
    source = opened(monkeypatch, library(refusals))
    assert not isinstance(source, str)
    assert source.read() == Reading(throttle=("hardware slowdown",))


@pytest.mark.parametrize(("visible", "asked"), [("2,0", 2), ("GPU-8f6d", "GPU-8f6d"), ("", 0), ("-1", 0)])
def test_which_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, asked: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    made: Any = library(FULL)
    opened(monkeypatch, made)
    assert made.log == [asked]


def test_a_gpu_is_found_by_its_place_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's numbers are not CUDA's."""
    monkeypatch.setattr(nvml, "pci_bus_id", lambda index: f"0000:0{index}:00.0")
    made: Any = library(FULL)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    nvml.find(1)
    with open_sources([nvml.find], gpu=2):
        pass
    assert made.log == ["0000:01:00.0", "0000:02:00.0", "shutdown"]


def test_absence_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    lines = [nvml.find()]
    lines.append(opened(monkeypatch, library(FULL, starts=False)))
    made: Any = library(FULL, devices=0)
    lines.append(opened(monkeypatch, made))
    assert made.log[-1] == "shutdown"
    for line, part in zip(lines, ("nvidia-ml-py", "Driver Not Loaded", "Not Found"), strict=True):
        assert isinstance(line, str) and part in line and "\n" not in line


def test_every_reason_has_its_words() -> None:
    assert nvml.parse_reasons(0) == nvml.parse_reasons(0x3) == ()
    assert nvml.parse_reasons(0x1FF) == tuple(nvml.REASONS.values())

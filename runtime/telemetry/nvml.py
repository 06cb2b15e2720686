"""A discrete NVIDIA GPU through NVML (the ``nvidia-ml-py`` package, imported when used).

Source: NVIDIA's NVML API Reference: nvmlDeviceGetPowerUsage (mW), nvmlDeviceGetTotalEnergyConsumption (mJ since the
driver was loaded), nvmlDeviceGetClockInfo (MHz), nvmlDeviceGetTemperature (degrees Celsius) and the group
NvmlClocksEventReasons, whose bits are :data:`REASONS`. Jetson's Orin has no NVML library, or one that answers little.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from runtime.nvidia import pci_bus_id
from runtime.telemetry.reading import Reading

# GpuIdle (0x1) and ApplicationsClocksSetting (0x2) are not throttling: nothing runs, or somebody has set the clocks.
REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}


def parse_reasons(mask: int) -> tuple[str, ...]:
    """The throttle reasons of a bit mask of nvmlDeviceGetCurrentClocksEventReasons, in words."""
    return tuple(name for bit, name in REASONS.items() if mask & bit)


class Nvml:
    """One GPU."""

    name = "nvml"

    def __init__(self, library: Any, device: Any) -> None:
        self._nvml, self._device = library, device

    def _ask(self, function: str, *arguments: Any) -> int | None:
        """The answer of one query; None where this library or this GPU does not have it."""
        query: Callable[..., Any] | None = getattr(self._nvml, function, None)
        if query is None:
            return None
        try:
            return int(query(self._device, *arguments))
        except self._nvml.NVMLError:
            return None

    def read(self) -> Reading:
        """See :class:`runtime.telemetry.reading.Source`."""
        nvml = self._nvml
        power, energy = self._ask("nvmlDeviceGetPowerUsage"), self._ask("nvmlDeviceGetTotalEnergyConsumption")
        heat = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        clocks = {
            "SM": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        }
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:  # the name before driver 535
            mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Reading(
            power_w={} if power is None else {"GPU": power / 1e3},
            energy_j={} if energy is None else {"GPU": energy / 1e3},
            clocks_mhz={name: float(value) for name, value in clocks.items() if value is not None},
            temperature_c={} if heat is None else {"GPU": float(heat)},
            throttle=parse_reasons(mask or 0),
        )

    def close(self) -> None:
        """See :class:`runtime.telemetry.reading.Source`."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            return


def _handle(nvml: Any, index: int) -> Any:
    """The GPU that CUDA programs call number ``index``.

    By its place on the bus. Where the driver does not tell that, by what CUDA_VISIBLE_DEVICES names first, an index or
    a UUID.
    """
    place = pci_bus_id(index)
    if place:
        return nvml.nvmlDeviceGetHandleByPciBusId(place)
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first and not first.lstrip("-").isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(max(0, int(first or 0)))


def find(index: int = 0) -> Nvml | str:
    """The sensors of the GPU that CUDA numbers so, or why there are none."""
    try:
        import pynvml
    except ImportError:
        return "no GPU telemetry: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no GPU telemetry: NVML does not start: {error}"
    try:
        return Nvml(pynvml, _handle(pynvml, index))
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        return f"no GPU telemetry: NVML finds no device: {error}"

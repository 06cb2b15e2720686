"""Clocks, temperatures and throttling of the processor, from sysfs.

Source: the Linux kernel's admin-guide/pm/cpufreq.rst (``scaling_cur_freq``, kHz), driver-api/thermal/sysfs-api.rst
(``thermal_zone*/temp``, millidegrees Celsius, ``type``) and arch/x86 ``thermal_throttle/*_throttle_count``.
"""

from __future__ import annotations

from pathlib import Path

from runtime.telemetry.reading import Reading, number_of, text_of

SYS = Path("/sys")
_KINDS = ("core", "package")


class Cpu:
    """The processor's own sensors under ``root``."""

    name = "cpu"

    def __init__(self, root: Path = SYS) -> None:
        self._clocks = sorted(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        zones = sorted(root.glob("class/thermal/thermal_zone*"))
        self._heat = [(text_of(zone / "type"), zone / "temp") for zone in zones if text_of(zone / "type")]
        folders = sorted(root.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle"))
        self._counts = {kind: [folder / f"{kind}_throttle_count" for folder in folders] for kind in _KINDS}
        self._last = self._throttled()

    def __bool__(self) -> bool:
        return bool(self._clocks or self._heat)

    def _throttled(self) -> dict[str, int]:
        return {kind: sum(number_of(file) or 0 for file in files) for kind, files in self._counts.items()}

    def read(self) -> Reading:
        """See :class:`runtime.telemetry.reading.Source`; ``CPU`` is the fastest core's clock."""
        clocks = [value for file in self._clocks if (value := number_of(file)) is not None]
        now, before = self._throttled(), self._last
        self._last = now
        return Reading(
            clocks_mhz={"CPU": max(clocks) / 1e3} if clocks else {},
            temperature_c={name: heat / 1e3 for name, file in self._heat if (heat := number_of(file)) is not None},
            throttle=tuple(f"{kind} thermal throttling" for kind in _KINDS if now[kind] > before[kind]),
        )

    def close(self) -> None:
        """See :class:`runtime.telemetry.reading.Source`: there is nothing to let go of."""


def find(root: Path = SYS) -> Cpu | str:
    """The processor's sensors, or why there are none."""
    found = Cpu(root)
    return found if found else "no CPU clocks or temperatures: no cpufreq and no thermal zone (a virtual machine)"

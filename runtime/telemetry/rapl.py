"""Energy of x86 processors: RAPL counters through the power capping framework.

Source: the Linux kernel's Documentation/power/powercap/powercap.rst and ABI/testing/sysfs-class-powercap:
``intel-rapl:N`` is a package, ``intel-rapl:N:M`` a part of it (core, uncore, dram); ``energy_uj`` counts microjoules,
``max_energy_range_uj`` is where the counter starts again at zero. Since Linux 5.10 only root may read it
(CVE-2020-8694). AMD processors use the same names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.telemetry.reading import Reading, number_of, text_of

POWERCAP = Path("/sys/class/powercap")


def advance(last_uj: int, now_uj: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that starts again at zero after ``range_uj``; one turn at most."""
    return now_uj - last_uj if now_uj >= last_uj else now_uj + range_uj - last_uj


@dataclass
class Zone:
    """A part of the machine with a counter of its own.

    Attributes:
        label: the package's name, and a part's after it: "package-0", "package-0 core", "package-0 dram".
        folder: its files. range_uj: where the counter starts again.
    """

    label: str
    folder: Path
    range_uj: int
    last_uj: int | None = None
    total_uj: int = 0
    last_s: float = field(default=0.0)

    def read(self, now_s: float) -> tuple[float, float | None] | None:
        """(joules since the first reading, watts since the last one); None when the counter cannot be read."""
        now = number_of(self.folder / "energy_uj")
        if now is None:
            return None
        power = None
        if self.last_uj is not None:
            step = advance(self.last_uj, now, self.range_uj)
            self.total_uj += step
            power = step / 1e6 / (now_s - self.last_s) if now_s > self.last_s else None
        self.last_uj, self.last_s = now, now_s
        return self.total_uj / 1e6, power


def zones(root: Path = POWERCAP) -> list[Zone]:
    """Every RAPL zone under ``root`` with a counter, packages before their parts."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name, limit = text_of(folder / "name"), number_of(folder / "max_energy_range_uj")
        parts = folder.name.split(":")
        if len(parts) == 3:
            name = f"{text_of(root / ':'.join(parts[:2]) / 'name')} {name}"
        if name and limit and (folder / "energy_uj").exists():
            found.append(Zone(name, folder, limit))
    return found


class Rapl:
    """The processor's counters."""

    name = "rapl"

    def __init__(self, found: list[Zone], clock: Callable[[], float] = time.perf_counter) -> None:
        self._zones, self._clock = found, clock

    def read(self) -> Reading:
        """See :class:`runtime.telemetry.reading.Source`: powers are means since the last reading, none at the first."""
        now, powers, energies = self._clock(), dict[str, float](), dict[str, float]()
        for zone in self._zones:
            values = zone.read(now)
            if values is not None:
                energies[zone.label] = values[0]
                if values[1] is not None:
                    powers[zone.label] = values[1]
        return Reading(power_w=powers, energy_j=energies)

    def close(self) -> None:
        """See :class:`runtime.telemetry.reading.Source`: there is nothing to let go of."""


def find(root: Path = POWERCAP) -> Rapl | str:
    """The processor's counters, or why there are none."""
    folders = list(root.glob("intel-rapl:*"))
    if not folders:
        return f"no RAPL: no intel-rapl zone under {root} (no x86 processor, a virtual machine, or no driver)"
    found = zones(root)
    if not any(zone.read(0.0) for zone in found):
        return f"no RAPL: only root may read the counters: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
    return Rapl(zones(root))

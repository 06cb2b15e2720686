"""A Jetson's power rails, read from the INA3221 (and Thor's INA238) monitors under ``/sys/class/hwmon``.

Source: the Linux kernel's Documentation/hwmon/ina3221.rst (``in[123]_label``, ``in[123]_input`` in mV,
``curr[123]_input`` in mA, ``in[123]_enable``) and ina238.rst (``power1_input`` in uW, its label in ``label``). The rail
names are the board's: VDD_IN, VDD_CPU_GPU_CV, VDD_SOC on Orin Nano and NX, VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0 on AGX
Orin, VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0 and VIN (the INA238) on Thor. The mainline driver is Jetson Linux 34.1's
and later; the older ``ina3221x`` of JetPack 4 is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.telemetry.reading import Reading, number_of, text_of

HWMON = Path("/sys/class/hwmon")
CHANNELS = (1, 2, 3)


@dataclass(frozen=True)
class Rail:
    """One channel: files whose numbers, multiplied, times ``unit`` are watts."""

    label: str
    files: tuple[Path, ...]
    unit: float

    def watts(self) -> float | None:
        """The power now; None when a file cannot be read."""
        value = self.unit
        for file in self.files:
            number = number_of(file)
            if number is None:
                return None
            value *= number
        return value


def rails(root: Path = HWMON) -> list[Rail]:
    """The rails of every INA3221 and INA238 under ``root``, in order of device; a channel without a label or switched
    off is left out, and so is the INA3221's sum of shunt voltages (channel 7)."""
    found = []
    for device in sorted(root.glob("hwmon*")):
        chip = text_of(device / "name")
        if chip == "ina3221":
            for channel in CHANNELS:
                label = text_of(device / f"in{channel}_label")
                files = (device / f"in{channel}_input", device / f"curr{channel}_input")
                if label not in ("", "NC") and text_of(device / f"in{channel}_enable") != "0" and files[1].exists():
                    found.append(Rail(label, files, 1e-6))  # mV x mA
        elif chip == "ina238" and (label := text_of(device / "label")):
            found.append(Rail(label, (device / "power1_input",), 1e-6))  # uW
    return found


class Ina3221:
    """Every rail of the board."""

    name = "ina3221"

    def __init__(self, found: list[Rail]) -> None:
        self._rails = found

    def read(self) -> Reading:
        """See :class:`runtime.telemetry.reading.Source`."""
        powers = {rail.label: rail.watts() for rail in self._rails}
        return Reading(power_w={label: watts for label, watts in powers.items() if watts is not None})

    def close(self) -> None:
        """See :class:`runtime.telemetry.reading.Source`: there is nothing to let go of."""


def find(root: Path = HWMON) -> Ina3221 | str:
    """The board's rails, or why there are none."""
    found = rails(root)
    return Ina3221(found) if found else f"no power rails: no INA3221 or INA238 under {root}"

"""What a source of telemetry gives at one moment, and what a source is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """Values at one moment, each by the name the source gives it.

    Attributes:
        power_w: watts of each rail now, or since the last reading where the source only counts energy.
        energy_j: joules of each rail since some fixed moment, never going back; only sources that count.
        clocks_mhz: megahertz of each clock. temperature_c: degrees Celsius of each sensor.
        throttle: why clocks are held down now, in words; empty when they are not or when the source cannot tell.
    """

    power_w: dict[str, float] = field(default_factory=dict)
    energy_j: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperature_c: dict[str, float] = field(default_factory=dict)
    throttle: tuple[str, ...] = ()


class Source(Protocol):
    """A sensor that is there; ``name`` goes before the names in its readings."""

    name: str

    def read(self) -> Reading:
        """The values now; those that cannot be read this time are left out."""
        ...

    def close(self) -> None:
        """Let go of what the source holds."""
        ...


def text_of(path: Path) -> str:
    """A small file's text without white space around it; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """A file's one whole number; None when it cannot be read or is none."""
    try:
        return int(text_of(path))
    except ValueError:
        return None

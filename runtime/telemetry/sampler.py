"""Every source there is, read from a thread beside the run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from runtime.telemetry import cpu, ina3221, nvml, rapl, tegrastats
from runtime.telemetry.reading import Reading, Source

FINDERS: tuple[Callable[[], Source | str], ...] = (nvml.find, ina3221.find, tegrastats.find, rapl.find, cpu.find)
CLOCK_DROP = 0.95


@dataclass(frozen=True)
class Sensors:
    """The sources that are there, and a line for each that is not."""

    sources: list[Source]
    absent: list[str]


@contextlib.contextmanager
def open_sources(finders: Sequence[Callable[[], Source | str]] | None = None, *, gpu: int = 0) -> Iterator[Sensors]:
    """Every source of :data:`FINDERS` that is there, closed at the end; ``gpu``: CUDA's number of the one to read."""
    with contextlib.ExitStack() as stack:
        sources, absent = list[Source](), list[str]()
        for find in FINDERS if finders is None else finders:
            found = nvml.find(gpu) if find is nvml.find else find()
            if isinstance(found, str):
                absent.append(found)
            else:
                stack.callback(found.close)
                sources.append(found)
        yield Sensors(sources, absent)


def merged(sources: Sequence[Source]) -> Reading:
    """One reading of all sources; every name has its source's before it, as "rapl package-0"."""
    readings = [(source.name, source.read()) for source in sources]
    return Reading(
        power_w={f"{who} {name}": value for who, one in readings for name, value in one.power_w.items()},
        energy_j={f"{who} {name}": value for who, one in readings for name, value in one.energy_j.items()},
        clocks_mhz={f"{who} {name}": value for who, one in readings for name, value in one.clocks_mhz.items()},
        temperature_c={f"{who} {name}": value for who, one in readings for name, value in one.temperature_c.items()},
        throttle=tuple(f"{who}: {reason}" for who, one in readings for reason in one.throttle),
    )


class Sampler:
    """Reads the sources every ``interval_s`` while its block runs; without sources no thread is started.

    Attributes:
        samples: (seconds since the block began, reading), in order; one at the begin and one at the end at least.
    """

    def __init__(self, sources: Sequence[Source], interval_s: float = 0.1) -> None:
        self.samples: list[tuple[float, Reading]] = []
        self._sources, self._interval = sources, interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._begin = 0.0

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._begin, merged(self._sources)))

    def _work(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def __enter__(self) -> Sampler:
        self._begin = time.perf_counter()
        if self._sources:
            self._sample()
            self._thread = threading.Thread(target=self._work, daemon=True, name="telemetry")
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._sample()

    def record(self) -> dict[str, Any]:
        """The samples as JSON values: interval_s, sources, samples (t_s, power_w, clocks_mhz, temperature_c,
        throttle), throttled (every reason met) and dropped (clocks that ended under 95 % of their highest)."""
        samples = [
            {
                "t_s": round(moment, 3),
                "power_w": reading.power_w,
                "clocks_mhz": reading.clocks_mhz,
                "temperature_c": reading.temperature_c,
                "throttle": list(reading.throttle),
            }
            for moment, reading in self.samples
        ]
        return {
            "interval_s": self._interval,
            "sources": [source.name for source in self._sources],
            "samples": samples,
            "throttled": sorted({reason for _, reading in self.samples for reason in reading.throttle}),
            "dropped": dropped([reading for _, reading in self.samples]),
        }


def dropped(readings: Sequence[Reading]) -> dict[str, list[float]]:
    """Clocks that ended the run under 95 % of their highest: name -> [highest, last] in MHz.

    The last reading is taken when the run is over and clocks may have fallen already, so the one before it counts.
    """
    found = {}
    for name in dict.fromkeys(name for reading in readings for name in reading.clocks_mhz):  # the first may lack some
        values = [reading.clocks_mhz[name] for reading in readings[:-1] if name in reading.clocks_mhz]
        if values and values[-1] < CLOCK_DROP * max(values):
            found[name] = [max(values), values[-1]]
    return found

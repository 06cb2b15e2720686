"""Jetson's ``tegrastats``, one line a sample.

Source: NVIDIA Jetson Linux Developer Guide, "Tegrastats Utility", table "Reported Statistics": ``NAME X%@Y`` is a load
and a clock in MHz, ``CPU [X%@Z,...]`` or ``CPU [X%,...]@Z`` the cores, ``name@XC`` a temperature, ``VDD_NAME X/Y`` a
rail's power now and on average in mW. Newer releases write more, and the table does not say so; seen in public logs:
``mW`` after each power and a third, the maximum (JetPack 7); a maximum after each temperature; clocks as a list,
``GR3D_FREQ 12%@[1300,1300]``, on Thor without the load, ``GR3D_FREQ @[1574,1574,1574]``; -256C for a sensor that is
switched off; a negative power on Thor's idle VDD_GPU. No page of NVIDIA's was found that describes Thor's line. The
grammar below reads all of these and passes over what it does not know.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading

from runtime.telemetry.reading import Reading

_CLOCK = re.compile(r"\b([A-Za-z]\w*) (?:\d+%)?@\[?(\d+(?:,\d+)*)\]?(?![\w.])")
_CORES = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
_CORE = re.compile(r"%@(\d+)")
_HEAT = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
_POWER = re.compile(r"\b([A-Za-z]\w*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?(?=\s|$)")
_OFF_C = -200.0


def parse(line: str) -> Reading:
    """One line of tegrastats: powers (the value now) in W, clocks in MHz, temperatures in degrees Celsius.

    A clock that is a list gives its largest. Rails called NC are not connected and left out.
    """
    clocks = {name.removesuffix("_FREQ"): float(max(map(int, text.split(",")))) for name, text in _CLOCK.findall(line)}
    cores = _CORES.search(line)
    if cores:
        found = [int(clock) for clock in _CORE.findall(cores[1])] + ([int(cores[2])] if cores[2] else [])
        if found:
            clocks["CPU"] = float(max(found))
    return Reading(
        power_w={name: int(now) / 1e3 for name, now in _POWER.findall(line) if name != "NC"},
        clocks_mhz=clocks,
        temperature_c={name: float(heat) for name, heat in _HEAT.findall(line) if float(heat) > _OFF_C},
    )


class Tegrastats:
    """The tool, running beside us; a thread keeps its last line."""

    name = "tegrastats"

    def __init__(self, command: list[str]) -> None:
        self._last = Reading()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = parse(line)

    def read(self) -> Reading:
        """See :class:`runtime.telemetry.reading.Source`: the last line's values, nothing before the first."""
        return self._last

    def close(self) -> None:
        """See :class:`runtime.telemetry.reading.Source`."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def find(interval_ms: int = 100) -> Tegrastats | str:
    """The tool, started with a line every ``interval_ms``, or why there is none."""
    path = shutil.which("tegrastats")
    if path is None:
        return "no tegrastats: this is no Jetson"
    try:
        return Tegrastats([path, "--interval", str(interval_ms)])
    except OSError as error:
        return f"no tegrastats: {path} does not start: {error.strerror}"

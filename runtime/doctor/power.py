"""What holds clocks down: Jetson's power mode and the processor's frequency governor."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from runtime.telemetry.reading import text_of

_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")


def parse_mode(text: str) -> tuple[str, int | None]:
    """(name, id) from what ``nvpmodel -q`` prints: "NV Power Mode: MODE_30W" and the id on the next line."""
    name = re.search(r"NV Power Mode:\s*(\S+)", text)
    number = re.search(r"^(\d+)\s*$", text, re.MULTILINE)
    return (name[1] if name else ""), (int(number[1]) if number else None)


def parse_modes(text: str) -> dict[str, int]:
    """Every mode's id by its name, from ``/etc/nvpmodel.conf``: "< POWER_MODEL ID=0 NAME=MAXN >"."""
    return {name: int(number) for number, name in _MODEL.findall(text)}


def _asked() -> str:
    path = shutil.which("nvpmodel")
    if path is None:
        return ""
    try:
        return subprocess.run([path, "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def power_mode(said: str | None = None, config: Path = Path("/etc/nvpmodel.conf")) -> dict[str, Any]:
    """Jetson's power mode: {"name", "id", "best"}; ``best`` is {"name", "id"} of the mode without caps, or None.

    A mode without caps is called MAXN, with more letters on some boards (MAXN_SUPER, which then is the better one).

    Args:
        said: what ``nvpmodel -q`` printed; None: ask it.
    """
    name, number = parse_mode(_asked() if said is None else said)
    free = {mode: one for mode, one in parse_modes(text_of(config)).items() if mode.startswith("MAXN")}
    best = max(free, key=len) if free else ""
    return {"name": name, "id": number, "best": {"name": best, "id": free[best]} if best else None}


def governors(root: Path = Path("/sys/devices/system/cpu")) -> dict[str, str]:
    """The frequency governor by scaling driver; empty where clocks are not the system's to set."""
    found = {}
    for folder in sorted(root.glob("cpu[0-9]*/cpufreq")):
        driver, governor = text_of(folder / "scaling_driver"), text_of(folder / "scaling_governor")
        if governor:
            found[driver or "unknown driver"] = governor
    return found

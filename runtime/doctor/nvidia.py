"""The NVIDIA side of a machine: devices, TensorRT, CUDA, JetPack. Nothing here touches TensorRT itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import machine
from runtime.nvidia import require_device
from runtime.telemetry.reading import text_of

TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
# Jetson Linux's major release -> JetPack's (NVIDIA's JetPack archive; 39.2 is JetPack 7.2).
JETPACK = {35: 5, 36: 6, 38: 7, 39: 7}


def capabilities(driver: Mapping[str, Any]) -> list[str]:
    """The compute capability of each device of :func:`runtime.nvidia.nvidia_driver`'s answer, as "8.7"."""
    return [require_device(index).sm for index in range(driver["devices"])]


def tensorrt_version() -> tuple[str, str]:
    """(version, CUDA major its wheel is for) of the TensorRT that is installed; empty texts where unknown."""
    version = next((found for name in TENSORRT if (found := machine.version_of(name))), "")
    cuda = next((name[-2:] for name in TENSORRT[1:] if version and machine.version_of(name) == version), "")
    return version, cuda


def parse_l4t(text: str) -> tuple[int, ...]:
    """Jetson Linux's release from ``/etc/nv_tegra_release``: "# R36 (release), REVISION: 4.3, ..." -> (36, 4, 3)."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return (int(found[1]), *(int(part) for part in found[2].split("."))) if found else ()


def toolkit(root: Path = Path("/")) -> dict[str, Any]:
    """What the files of an installation say: {"cuda", "driver", "l4t", "jetpack", "board"}, empty where absent.

    ``cuda`` is the toolkit's version from ``/usr/local/cuda/version.json``, ``driver`` the kernel module's from
    ``/proc/driver/nvidia/version``, ``board`` the device tree's model.
    """
    try:
        cuda = str(json.loads((root / "usr/local/cuda/version.json").read_text("utf-8"))["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        cuda = ""
    version = text_of(root / "proc/driver/nvidia/version")  # an open module names the architecture: "... for aarch64"
    module = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", version)
    l4t = parse_l4t(text_of(root / "etc/nv_tegra_release"))
    return {
        "cuda": cuda,
        "driver": module[1] if module else "",
        "l4t": list(l4t),
        "jetpack": JETPACK.get(l4t[0], 0) if l4t else 0,
        "board": text_of(root / "proc/device-tree/model").rstrip("\x00"),
    }


def gpu_libraries(packages: Mapping[str, str]) -> tuple[str, str]:
    """(TensorRT, GPU memory): the modules an engine would take, by their names for pip; empty where there is none."""
    library = next((name for name in ("tensorrt", "tensorrt_rtx") if packages.get(name)), "")
    return library, "pycuda" if packages.get("pycuda") else "cuda-python" if packages.get("cuda") else ""


def no_gpu(driver: Mapping[str, Any], packages: Mapping[str, str]) -> str:
    """Why there is no GPU path here, in one line; empty when there is one."""
    if not driver["found"]:
        return f"no GPU path: no NVIDIA driver ({driver['error']})"
    if not driver["devices"]:
        return f"no GPU path: the NVIDIA driver finds no device ({driver['error'] or 'cuDeviceGetCount gave 0'})"
    library, memory = gpu_libraries(packages)
    lacking = [name for name, there in (("TensorRT", library), ("pycuda or cuda-python", memory)) if not there]
    return f"no GPU path: {' and '.join(lacking)} not installed" if lacking else ""

"""The NVIDIA side of a machine: driver, devices, TensorRT, CUDA, JetPack. Nothing here touches TensorRT itself."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import machine
from runtime.telemetry.reading import text_of

_CUDA_ERRORS = {34: "a stub library, not the driver", 100: "no CUDA device", 803: "driver and library versions differ"}
# Enumerators of CUdevice_attribute in cuda.h.
_MAJOR, _MINOR = 75, 76
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
# Jetson Linux's major release -> JetPack's (NVIDIA's JetPack archive; 39.2 is JetPack 7.2).
JETPACK = {35: 5, 36: 6, 38: 7, 39: 7}


def nvidia_driver(library: str = "libcuda.so.1") -> dict[str, Any]:
    """Ask the NVIDIA driver, through ctypes: {"found", "devices", "driver", "compute", "error"}.

    ``driver`` is the newest CUDA version the driver serves, as "13.2"; ``compute`` the capability of each device.
    """
    result: dict[str, Any] = {"found": False, "devices": 0, "driver": "", "compute": [], "error": ""}
    try:
        cuda = ctypes.CDLL(library)
        code = int(cuda.cuInit(0))
        count, version = ctypes.c_int(0), ctypes.c_int(0)
        cuda.cuDriverGetVersion(ctypes.byref(version))
        if code == 0:
            code = int(cuda.cuDeviceGetCount(ctypes.byref(count)))
    except (OSError, AttributeError) as error:
        result["error"] = str(error)
        return result
    result["found"] = True
    result["driver"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
    result["devices"] = count.value
    result["compute"] = [_capability(cuda, index) for index in range(count.value)]
    if code != 0:
        result["error"] = f"CUDA error {code}: {_CUDA_ERRORS.get(code, 'see cuda.h')}"
    return result


def _capability(cuda: ctypes.CDLL, index: int) -> str:
    device, parts = ctypes.c_int(0), (ctypes.c_int(0), ctypes.c_int(0))
    cuda.cuDeviceGet(ctypes.byref(device), index)
    for part, attribute in zip(parts, (_MAJOR, _MINOR), strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    return f"{parts[0].value}.{parts[1].value}"


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
    module = re.search(r"Kernel Module\D*\s(\d+(?:\.\d+)+)", text_of(root / "proc/driver/nvidia/version"))
    l4t = parse_l4t(text_of(root / "etc/nv_tegra_release"))
    return {
        "cuda": cuda,
        "driver": module[1] if module else "",
        "l4t": list(l4t),
        "jetpack": JETPACK.get(l4t[0], 0) if l4t else 0,
        "board": text_of(root / "proc/device-tree/model").rstrip("\x00"),
    }


def no_gpu(driver: Mapping[str, Any], packages: Mapping[str, str]) -> str:
    """Why there is no GPU path here, in one line; empty when there is one."""
    if not driver["found"]:
        return f"no GPU path: no NVIDIA driver ({driver['error']})"
    if not driver["devices"]:
        return f"no GPU path: the NVIDIA driver finds no device ({driver['error'] or 'cuDeviceGetCount gave 0'})"
    if not packages.get("tensorrt"):
        return f"no GPU path: {driver['devices']} NVIDIA device(s), but TensorRT is not installed"
    return ""

"""What the NVIDIA driver says, asked through ctypes: no CUDA library, no TensorRT, nothing that crashes without a GPU.

TensorRT's ``Builder`` and ``Runtime`` end the process with a segmentation fault where there is no working driver, so
:func:`require_device` comes before either is made.
"""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from typing import Any

from runtime.errors import IntvitError

LIBRARY = "libcuda.so.1"
_CUDA_ERRORS = {34: "a stub library, not the driver", 100: "no CUDA device", 803: "driver and library versions differ"}
# CUdevice_attribute in cuda.h.
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


@dataclass(frozen=True)
class GpuDevice:
    """One GPU. ``sm`` is its compute capability, as "8.7"; ``integrated``: it shares the memory of the CPU (Jetson).

    ``driver`` is the newest CUDA version the driver serves, as "12.6"; ``memory_bytes`` is 0 where it cannot be told.
    """

    index: int
    name: str
    sm: str
    memory_bytes: int
    integrated: bool
    driver: str

    def describe(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def nvidia_driver(library: str = LIBRARY) -> dict[str, Any]:
    """Ask the NVIDIA driver, through ctypes: {"found", "devices", "driver", "error"}. Never touches TensorRT.

    ``driver`` is the newest CUDA version the driver serves, as "13.2".
    """
    result: dict[str, Any] = {"found": False, "devices": 0, "driver": "", "error": ""}
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
    if code != 0:
        result["error"] = f"CUDA error {code}: {_CUDA_ERRORS.get(code, 'see cuda.h')}"
    return result


def no_gpu_reason(library: str = LIBRARY) -> str:
    """One line why nothing runs on an NVIDIA GPU here; empty where the driver has a device."""
    found = nvidia_driver(library)
    if found["devices"] and not found["error"]:
        return ""
    return str(found["error"] or "the driver sees no device")


def install_cuda_python(driver: str | None = None) -> str:
    """The command that installs the cuda-python this machine's driver can serve: its major version is CUDA's.

    ``driver``: the newest CUDA version it serves, as "12.6"; asked for when None, empty when unknown.
    """
    served = nvidia_driver()["driver"] if driver is None else driver
    return f"pip install 'cuda-python=={served.partition('.')[0]}.*'" if served else "pip install cuda-python"


def pci_bus_id(index: int = 0, library: str = LIBRARY) -> str:
    """Where the GPU that CUDA numbers so sits, as "0000:3b:00.0"; empty where the driver does not tell.

    NVML numbers GPUs otherwise, and knows no CUDA_VISIBLE_DEVICES.
    """
    try:
        cuda = ctypes.CDLL(library)
        handle, text = ctypes.c_int(0), ctypes.create_string_buffer(32)
        codes = [int(cuda.cuInit(0)), int(cuda.cuDeviceGet(ctypes.byref(handle), index))]
        codes.append(int(cuda.cuDeviceGetPCIBusId(text, len(text), handle)))
    except (OSError, AttributeError):
        return ""
    return "" if any(codes) else text.value.decode("ascii", errors="replace")


def require_device(index: int = 0, library: str = LIBRARY) -> GpuDevice:
    """The GPU of that number, from the driver alone.

    Raises:
        IntvitError: there is no driver, no GPU, or no GPU of that number.
    """
    found = nvidia_driver(library)
    reason = no_gpu_reason(library)
    if reason:
        raise IntvitError(
            "no NVIDIA GPU can be used here",
            where="backend 'tensorrt'",
            why=reason,
            next="run on the device that has the GPU (a Jetson's driver comes with JetPack; elsewhere check "
            "`nvidia-smi`), or use --backend ort",
        )
    if not 0 <= index < found["devices"]:
        why = f"the driver has {found['devices']} device(s), numbered from 0"
        raise IntvitError(f"there is no GPU number {index}", where="--option device", why=why, next="device=0")
    cuda = ctypes.CDLL(library)
    handle, number, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    values = []
    for attribute in (_MAJOR, _MINOR, _INTEGRATED):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
        values.append(number.value)
    text = name.value.decode("utf-8", errors="replace")
    return GpuDevice(index, text, f"{values[0]}.{values[1]}", memory.value, bool(values[2]), found["driver"])

"""What is known to go wrong. Each rule takes plain values, so that a test can hand it any machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backends.ort import OLDEST
from runtime.nvidia import install_cuda_python

_LOW_MEMORY = 1 << 30
_LOW_DISK = 1 << 30


@dataclass(frozen=True)
class Problem:
    """Something wrong or missing, what it costs, and the command or change that mends it (empty: nothing can)."""

    what: str
    why: str
    fix: str


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.31.1+cpu" -> (1, 31, 1)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def ort_problems(version: str, providers: Sequence[str]) -> list[Problem]:
    """What is known to be wrong with a version of ONNX Runtime, or with the providers it was built with."""
    found = []
    if version_tuple(version) < version_tuple(OLDEST):
        why = "graphs with INT4 weights need it"
        fix = f"pip install --upgrade 'onnxruntime>={OLDEST}'"
        found.append(Problem(f"onnxruntime {version} is too old", why, fix))
    if "CPUExecutionProvider" not in providers:
        why = f"providers: {', '.join(providers) or 'none'}"
        fix = "pip install --force-reinstall onnxruntime"
        found.append(Problem("onnxruntime has no CPU provider", why, fix))
    return found


def ort_notes(version: str) -> list[str]:
    """Faults of a version that intvit's graphs are written around, for whoever brings a graph of another maker."""
    number = version_tuple(version)[:2]
    if number >= (1, 27):
        return ["this ONNX Runtime refuses an opset 21 linear whose bias is stored as (N,); intvit stores (1,1,N)"]
    if number >= (1, 21):
        return ["this ONNX Runtime runs a linear whose bias is stored as (N,) in float; intvit stores (1,1,N)"]
    return []


def cpu_problems(flags: Sequence[str], *, x86: bool) -> list[Problem]:
    """Processors on which INT8 brings little or needs care."""
    have = set(flags)
    if x86 and "avx2" not in have:
        return [Problem("the CPU has no AVX2", "INT8 will be slower than float32", "use another machine")]
    if x86 and not have & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        why = "u8 x s8 saturates in 16 bits: intvit takes the exact kernels, expect 10-20 % over float32 at most"
        return [Problem("the CPU has no VNNI or AMX", why, "use a CPU with VNNI for speed; the results are right here")]
    if not x86 and have and not have & {"asimddp", "i8mm"}:
        why = "INT8 will hardly be faster than float32"
        return [Problem("the CPU has no dot product instructions", why, "use a core with asimddp (ARMv8.2) or i8mm")]
    return []


def gpu_problems(driver: Mapping[str, Any], packages: Mapping[str, str], *, library: str, memory: str) -> list[Problem]:
    """A GPU package without a working driver, or the other way round.

    ``library`` and ``memory``: see :func:`runtime.doctor.nvidia.gpu_libraries`.
    """
    gpu_packages = [name for name in ("tensorrt", "pycuda") if packages.get(name)]
    if gpu_packages and not driver["devices"]:
        why = f"{', '.join(gpu_packages)} installed; {driver['error'] or 'no device'}"
        return [Problem("no working NVIDIA driver", why, "install the driver and check with `nvidia-smi`")]
    why = f"{driver['devices']} NVIDIA device(s), driver for CUDA {driver['driver']}"
    if driver["devices"] and not library:
        fix = "pip install 'intvit[tensorrt]'; on a Jetson: sudo apt install nvidia-jetpack"
        return [Problem("the GPU is not used", why, fix)]
    if driver["devices"] and not memory:
        return [
            Problem("the GPU is not used", f"{why}, no pycuda or cuda-python", install_cuda_python(driver["driver"]))
        ]
    return []


def tensorrt_problems(
    version: str, *, cuda: str = "", driver: str = "", l4t: tuple[int, ...] = (), compute: Sequence[str] = ()
) -> list[Problem]:
    """Versions of TensorRT that are known not to work here.

    Sources: TensorRT's support matrix and its 10.x to 11.x migration guide for Jetson (11.0 to 11.4.0 support no
    JetPack, 11.4.1 supports JetPack 7.2.2 and later on AGX Orin and Thor, JetPack 6 stays at 10.3);
    NVIDIA/TensorRT#4832 (Q/DQ graphs fail on SM 8.7 with 10.16.2); the runtime's own message for a driver that is
    too old (cudaError 35); strong typing is there from 10.0 on. JetPack 7.2 is Jetson Linux 39.2; its updates are not
    told apart here.

    Args:
        version: of TensorRT; empty when it is not installed.
        cuda: the major version its package is built for, as "13"; empty when unknown.
        driver: the newest CUDA version the driver serves, as "12.4"; empty without a driver.
        l4t: Jetson Linux, as (36, 4, 3); empty elsewhere.
        compute: compute capabilities of the devices, as "8.7".
    """
    number, found = version_tuple(version), list[Problem]()
    if not number:
        return found
    name = f"TensorRT {version}"
    if number < (10,):
        why = "intvit's graphs are strongly typed, which came with TensorRT 10"
        found.append(Problem(f"{name} is too old", why, "pip install --upgrade 'tensorrt>=10.3'"))
    if l4t and number >= (11,) and (number < (11, 4, 1) or l4t < (39, 2)):
        why = f"Jetson Linux {'.'.join(map(str, l4t))}; 11.0 to 11.4.0 support no JetPack, 11.4.1 needs JetPack 7.2.2"
        fix = "take the TensorRT of your JetPack: sudo apt install nvidia-jetpack"
        found.append(Problem(f"{name} does not support this JetPack", why, fix))
    if "8.7" in compute and number[:3] == (10, 16, 2):
        why = "Q/DQ graphs with float16 scales fail to build on Orin with it (NVIDIA/TensorRT#4832)"
        found.append(Problem(f"{name} on Orin", why, "take another TensorRT, or a graph with float32 around its Q/DQ"))
    if cuda and driver and version_tuple(driver)[:1] < version_tuple(cuda):
        why = f"built for CUDA {cuda}, the driver serves CUDA {driver}: cudaError 35, insufficient driver"
        fix = f"update the NVIDIA driver, or pip install tensorrt-cu{version_tuple(driver)[0]}"
        found.append(Problem(f"{name} needs a newer driver", why, fix))
    return found


def power_problems(mode: Mapping[str, Any], governors: Mapping[str, str], *, jetson: bool) -> list[Problem]:
    """Settings that hold clocks down.

    Args:
        mode: :func:`runtime.doctor.power.power_mode`. governors: by scaling driver, the governor in use.
        jetson: whether to name Jetson's tools.
    """
    found = []
    best = mode.get("best")
    if mode.get("name") and best and mode["name"] != best["name"]:
        why = f"the power mode is {mode['name']}, clocks are capped; {best['name']} has no caps"
        found.append(Problem("the power mode caps the clocks", why, f"sudo nvpmodel -m {best['id']}"))
    for driver, governor in governors.items():
        # Under these two "powersave" is the name of the normal, load-following mode.
        if governor in ("powersave", "conservative") and not driver.startswith(("intel_pstate", "amd-pstate")):
            fix = "sudo jetson_clocks" if jetson else "sudo cpupower frequency-set -g performance"
            why = f"governor {governor} ({driver}): the clock stays low or rises late"
            found.append(Problem("the CPU governor saves power", why, fix))
    return found


def room_problems(available: int, free: int) -> list[Problem]:
    """Too little memory or disk, both in bytes; 0 means unknown."""
    found = []
    if 0 < available < _LOW_MEMORY:
        why = f"{available >> 20} MiB available"
        found.append(Problem("little memory", why, "close other programs or use --batch 1"))
    if 0 < free < _LOW_DISK:
        why = f"{free >> 20} MiB free here"
        found.append(Problem("little disk space", why, "free some space: a bundle takes up to 500 MB"))
    return found

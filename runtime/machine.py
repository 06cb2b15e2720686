"""What this machine is: CPU model, instruction sets, cores a process may use, memory, versions of what is installed."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import os
import platform
from pathlib import Path
from typing import Any

# The instruction sets that decide which integer kernels ONNX Runtime picks, in /proc/cpuinfo's spelling.
INTEGER_FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "amx_tile",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
# The instruction sets that decide whether a 16-bit float path pays, in /proc/cpuinfo's spelling.
HALF_FLAGS = ("amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16", "bf16", "asimdhp")
# Any of these multiplies bfloat16 matrices in hardware.
_FAST_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
# Any of these multiplies u8 by s8 into 32 bits without a saturating 16-bit step.
_EXACT_X86 = {"avx512_vnni", "avx_vnni", "amx_int8"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """The model name and the flags of the first processor in the text of ``/proc/cpuinfo`` (x86 or ARM spelling)."""
    model, flags = "", frozenset[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key.lower() in ("model name", "hardware", "model") and (not model or model.isdigit()):
            model = value
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return model, flags


@functools.cache
def _cpuinfo() -> tuple[str, frozenset[str]]:
    return parse_cpuinfo(_read("/proc/cpuinfo"))


def cpu_model() -> str:
    """The processor's name as the operating system gives it, never empty."""
    return _cpuinfo()[0] or platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> frozenset[str]:
    """Every instruction-set flag in ``/proc/cpuinfo``; empty where that file does not exist."""
    return _cpuinfo()[1]


def integer_flags() -> list[str]:
    """The members of :data:`INTEGER_FLAGS` this processor has, sorted."""
    return sorted(cpu_flags().intersection(INTEGER_FLAGS))


def half_flags() -> list[str]:
    """The members of :data:`HALF_FLAGS` this processor has, sorted."""
    return sorted(cpu_flags().intersection(HALF_FLAGS))


def fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX, AVX-512 or ARM's BF16)."""
    return bool(cpu_flags() & _FAST_BF16)


def is_x86() -> bool:
    """Whether this is a 32- or 64-bit x86 processor."""
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686", "x86")


def saturating_u8s8() -> bool:
    """Whether u8 x s8 products are added in saturating 16-bit pairs here (x86 without VNNI or AMX)."""
    return is_x86() and not (cpu_flags() & _EXACT_X86)


def _quota_cores() -> float:
    """The cores a container may use (cgroup v2, then v1); infinite when there is no limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf


def available_cpus() -> list[int]:
    """The logical CPUs this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Physical cores this process may use: its affinity mask with hyper-threads merged, cut to a container's quota."""
    cores = set()
    for cpu in available_cpus():
        base = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        core, package = _read(f"{base}/core_id").strip(), _read(f"{base}/physical_package_id").strip()
        # core_id alone tells no core from one of another cluster: on ARM it begins anew in each (Linux 6)
        siblings = _read(f"{base}/thread_siblings_list").strip()
        cores.add(("", siblings) if siblings else (package, core) if core else ("", f"cpu{cpu}"))
    return max(1, min(len(cores), math.ceil(min(_quota_cores(), 1 << 20))))


def _memory_limit() -> tuple[int, int] | None:
    """A container's limit and what it has used of it, in bytes (cgroup v2, then v1); None without a limit.

    What the kernel can take back at once, the file cache that is not in use, does not count as used.
    """
    for folder, most, used, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, now = _read(f"{folder}/{most}").strip(), _read(f"{folder}/{used}").strip()
        if limit.isdigit() and now.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(f"{folder}/memory.stat").splitlines() if " " in line)
            return int(limit), max(0, int(now) - int(stat.get(cache, "0")))
    return None


def memory_bytes() -> tuple[int, int]:
    """Total and available memory in bytes, cut to a container's limit; zeros where it cannot be told."""
    values = {}
    for line in _read("/proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            values[key] = int(rest.split()[0]) * 1024
    total, available = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    limit = _memory_limit()
    if limit is None or not 0 < limit[0] < total:  # v1 writes a number beyond any machine where there is no limit
        return total, available
    return limit[0], min(available, max(0, limit[0] - limit[1]))


def has_module(name: str) -> bool:
    """Whether a module can be imported; it is not, but what it lies in is.

    A mere folder of that name is none, though Python would import it: ``openvino`` in a bundle one stands in.
    """
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def version_of(package: str) -> str:
    """The installed version of a distribution, or an empty string; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def describe() -> dict[str, Any]:
    """The machine as JSON values, for the record that goes with every measurement."""
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "flags": integer_flags(),
        "memory_bytes": memory_bytes()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in ("intvit", "onnxruntime", "numpy", "pillow")},
        },
    }

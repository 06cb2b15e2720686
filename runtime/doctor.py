"""``python -m runtime.doctor``: what this machine offers, what is wrong, and the command that mends each thing."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from runtime import cli, machine
from runtime.files import atomic_write_json
from runtime.nvidia import nvidia_driver

OPTIONAL = ("torch", "timm", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "openvino")
MIN_ORT = (1, 22)
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


def ort_problems(version: str, providers: list[str]) -> list[Problem]:
    """What is known to be wrong with a version of ONNX Runtime, or with the providers it was built with."""
    found = []
    if version_tuple(version)[:2] < MIN_ORT:
        why = "INT4 tensors and opset 21 need it"
        found.append(Problem(f"onnxruntime {version} is too old", why, "pip install --upgrade 'onnxruntime>=1.22'"))
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


def cpu_problems(flags: list[str], *, x86: bool) -> list[Problem]:
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


def installed(names: tuple[str, ...] = OPTIONAL) -> dict[str, str]:
    """Version of each optional module, "present" when it has none, "" when absent; none is imported."""
    found = {}
    for name in names:
        try:
            present = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            present = False
        found[name] = (machine.version_of(name.replace("_", "-")) or "present") if present else ""
    return found


def _library(packages: dict[str, str]) -> str:
    """The TensorRT that the engine would take: "tensorrt" or "tensorrt_rtx"; empty where there is none."""
    return next((name for name in ("tensorrt", "tensorrt_rtx") if packages.get(name)), "")


def _memory(packages: dict[str, str]) -> str:
    """The library for GPU memory that the engine would take, by its name for pip; empty where there is none."""
    return "pycuda" if packages.get("pycuda") else "cuda-python" if packages.get("cuda") else ""


def gpu_path(driver: dict[str, Any], packages: dict[str, str]) -> str:
    """One line: what ``--backend tensorrt`` would run on here, or why there is no GPU path."""
    library, memory = _library(packages), _memory(packages)
    if not driver["devices"]:
        return f"no GPU path: {driver['error'] or 'the driver sees no device'}"
    if not library or not memory:
        lacking = [name for name, there in (("TensorRT", library), ("pycuda or cuda-python", memory)) if not there]
        return f"no GPU path: {' and '.join(lacking)} not installed"
    return f"{library} {packages[library]}, memory through {memory}"


def gpu_problems(driver: dict[str, Any], packages: dict[str, str]) -> list[Problem]:
    """A GPU package without a working driver, or the other way round."""
    gpu_packages = [name for name in ("tensorrt", "pycuda") if packages.get(name)]
    if gpu_packages and not driver["devices"]:
        why = f"{', '.join(gpu_packages)} installed; {driver['error'] or 'no device'}"
        return [Problem("no working NVIDIA driver", why, "install the driver and check with `nvidia-smi`")]
    found = f"{driver['devices']} NVIDIA device(s), driver for CUDA {driver['driver']}"
    if driver["devices"] and not _library(packages):
        return [Problem("the GPU is not used", found, "pip install 'intvit[tensorrt]'; a Jetson: docs/jetson.md")]
    if driver["devices"] and not _memory(packages):
        return [Problem("the GPU is not used", f"{found}, no pycuda or cuda-python", "pip install cuda-python")]
    return []


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


def examine() -> dict[str, Any]:
    """Everything the doctor knows, as JSON values; ``problems`` is a list of {what, why, fix}, ``notes`` of texts."""
    version, providers = str(ort.__version__), list(ort.get_available_providers())
    total, available = machine.memory_bytes()
    free = shutil.disk_usage(Path.cwd()).free
    packages, driver = installed(), nvidia_driver()
    flags = machine.integer_flags()
    problems = [
        *ort_problems(version, providers),
        *cpu_problems(flags, x86=machine.is_x86()),
        *gpu_problems(driver, packages),
        *room_problems(available, free),
    ]
    return {
        "machine": machine.describe(),
        "memory_available_bytes": available,
        "memory_total_bytes": total,
        "disk_free_bytes": free,
        "onnxruntime": {"version": version, "providers": providers},
        "packages": packages,
        "nvidia": driver,
        "problems": [asdict(problem) for problem in problems],
        "notes": ort_notes(version),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report, then each problem with its remedy."""
    about, nvidia = report["machine"], report["nvidia"]
    optional = ", ".join(f"{name} {version}" for name, version in report["packages"].items() if version)
    gpu = f"{nvidia['devices']} device(s), CUDA {nvidia['driver']}" if nvidia["found"] else "no driver"
    memory = f"{report['memory_available_bytes'] / 1e9:.1f} of {report['memory_total_bytes'] / 1e9:.1f} GB available"
    rows = (
        ("CPU", f"{about['cpu']}, {about['cores']} core(s) for this process"),
        ("integer features", " ".join(about["flags"]) or "none known"),
        ("system", f"{about['system']}, Python {about['versions']['python']}"),
        ("ONNX Runtime", f"{report['onnxruntime']['version']}, {', '.join(report['onnxruntime']['providers'])}"),
        ("OpenVINO", report["packages"]["openvino"] or "not installed: pip install 'intvit[openvino]'"),
        ("memory", memory),
        ("disk", f"{report['disk_free_bytes'] / 1e9:.1f} GB free here"),
        ("NVIDIA", f"{gpu}{': ' + nvidia['error'] if nvidia['found'] and nvidia['error'] else ''}"),
        ("GPU engine", gpu_path(nvidia, report["packages"])),
        ("optional packages", optional or "none"),
    )
    table = Table(show_header=False, title="intvit doctor")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for problem in report["problems"]:
        text = f"problem: {problem['what']}: {problem['why']}\n    fix: {problem['fix']}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not report["problems"]:
        console.print("no problems found", style="green")


def main(json: cli.JsonOption = None, debug: cli.DebugOption = False) -> None:
    """Say what this machine offers to intvit, and how to mend what is missing."""
    report = examine()
    show(report, Console())
    if json is not None:
        atomic_write_json(json, report)


if __name__ == "__main__":
    cli.run(main)

"""``python -m runtime.doctor [BUNDLE]``: what this machine offers, what is wrong, and the command that mends it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from runtime import cli, machine
from runtime.backends.ort import library
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.doctor.fitness import Fitness, fitness
from runtime.doctor.nvidia import capabilities, gpu_libraries, no_gpu, tensorrt_version, toolkit
from runtime.doctor.power import governors, power_mode
from runtime.doctor.problems import (
    Problem,
    cpu_problems,
    gpu_problems,
    ort_notes,
    ort_problems,
    power_problems,
    room_problems,
    tensorrt_problems,
)
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.nvidia import nvidia_driver

OPTIONAL = ("torch", "timm", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "openvino", "pynvml")
X86_FEATURES = {
    "VNNI": ("avx512_vnni", "avx_vnni", "avx_vnni_int8"),
    "AMX INT8": ("amx_int8",),
    "BF16": ("amx_bf16", "avx512_bf16"),
}
ARM_FEATURES = {"dot product": ("asimddp",), "i8mm": ("i8mm",), "SVE": ("sve",), "BF16": ("bf16",)}


def installed(names: tuple[str, ...] = OPTIONAL) -> dict[str, str]:
    """Version of each optional module, "present" when it has none, "" when absent; none is imported."""
    found = {}
    for name in names:
        present = machine.has_module("cuda.bindings" if name == "cuda" else name)  # ``cuda`` has no file of its own
        found[name] = (machine.version_of(name.replace("_", "-")) or "present") if present else ""
    return found


def features(flags: frozenset[str], *, x86: bool) -> dict[str, list[str]]:
    """What speeds up integer and 16-bit products: by its usual name, the flags the processor has of it (none: [])."""
    wanted = X86_FEATURES if x86 else ARM_FEATURES
    return {name: [flag for flag in names if flag in flags] for name, names in wanted.items()}


def onnx_runtime() -> tuple[str, list[str], list[Problem]]:
    """Its version and providers; where it cannot be imported none, and the problem."""
    try:
        ort = library()
    except IntvitError as error:
        return "", [], [Problem(error.what, error.why, error.next)]
    return str(ort.__version__), list(ort.get_available_providers()), []


def examine() -> dict[str, Any]:
    """Everything the doctor knows, as JSON values; ``problems`` is a list of {what, why, fix}, ``notes`` of texts."""
    version, providers, broken = onnx_runtime()
    total, available = machine.memory_bytes()
    free = shutil.disk_usage(Path.cwd()).free
    packages, driver, files = installed(), nvidia_driver(), toolkit()
    tensorrt, cuda = tensorrt_version()
    mode, speeds = power_mode(), governors()
    flags, l4t, compute = machine.integer_flags(), tuple(files["l4t"]), capabilities(driver)
    library, memory = gpu_libraries(packages)
    problems = [
        *(broken or ort_problems(version, providers)),
        *cpu_problems(flags, x86=machine.is_x86()),
        *gpu_problems(driver, packages, library=library, memory=memory),
        *tensorrt_problems(tensorrt, cuda=cuda, driver=driver["driver"], l4t=l4t, compute=compute),
        *power_problems(mode, speeds, jetson=bool(l4t)),
        *room_problems(available, free),
    ]
    return {
        "machine": machine.describe(),
        "features": features(machine.cpu_flags(), x86=machine.is_x86()),
        "memory_available_bytes": available,
        "memory_total_bytes": total,
        "disk_free_bytes": free,
        "onnxruntime": {"version": version, "providers": providers},
        "packages": packages,
        "nvidia": {
            **driver,
            **{f"{name}_file": value for name, value in files.items()},
            "compute": compute,
            "tensorrt": tensorrt,
            "library": library,
            "memory": memory,
        },
        "no_gpu": no_gpu(driver, packages),
        "power_mode": mode,
        "governors": speeds,
        "problems": [asdict(problem) for problem in problems],
        "notes": ort_notes(version),
    }


def _nvidia_row(nvidia: dict[str, Any], no_path: str) -> str:
    parts = [no_path] if no_path else [f"{nvidia['devices']} device(s), SM {', '.join(nvidia['compute'])}"]
    parts += [f"driver for CUDA {nvidia['driver']}"] if nvidia["found"] else []
    parts += [f"kernel module {nvidia['driver_file']}"] if nvidia["driver_file"] else []
    parts += [f"CUDA {nvidia['cuda_file']}"] if nvidia["cuda_file"] else []
    parts += [f"TensorRT {nvidia['tensorrt']}"] if nvidia["tensorrt"] else []
    parts += [] if no_path else [f"engines through {nvidia['library']}, memory through {nvidia['memory']}"]
    if nvidia["l4t_file"]:
        release = ".".join(map(str, nvidia["l4t_file"]))
        parts.append(f"{nvidia['board_file']}, Jetson Linux {release}, JetPack {nvidia['jetpack_file'] or '?'}")
    return "; ".join(parts)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report, then each problem with its remedy."""
    about, ort = report["machine"], report["onnxruntime"]
    optional = ", ".join(f"{name} {version}" for name, version in report["packages"].items() if version)
    memory = f"{report['memory_available_bytes'] / 1e9:.1f} of {report['memory_total_bytes'] / 1e9:.1f} GB available"
    has = (f"{name}: {', '.join(flags) or 'no'}" for name, flags in report["features"].items())
    speeds = [f"{governor} ({driver})" for driver, governor in report["governors"].items()]
    mode = [f"power mode {report['power_mode']['name']}"] if report["power_mode"]["name"] else []
    rows = (
        ("CPU", f"{about['cpu']}, {about['cores']} core(s) for this process"),
        ("integer features", "; ".join(has)),
        ("clocks", ", ".join([*mode, *speeds]) or "not the system's to set"),
        ("system", f"{about['system']}, Python {about['versions']['python']}"),
        ("ONNX Runtime", ", ".join([ort["version"] or "cannot be imported", *ort["providers"]])),
        ("OpenVINO", report["packages"]["openvino"] or "not installed: pip install 'intvit[openvino]'"),
        ("memory", memory),
        ("disk", f"{report['disk_free_bytes'] / 1e9:.1f} GB free here"),
        ("NVIDIA", _nvidia_row(report["nvidia"], report["no_gpu"])),
        ("optional packages", optional or "none"),
    )
    table = Table(show_header=False, title="intvit doctor")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for problem in report["problems"]:
        text = f"problem: {problem['what']}: {problem['why']}\n    fix: {problem['fix']}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not report["problems"]:
        console.print("no problems found", style="green")


def show_fitness(found: list[Fitness], bundle: Bundle, console: Console) -> None:
    """Print which backends run the bundle here, and what stops the others."""
    for one in found:
        said = "runs here" if one.runs else f"does not run here: {one.why}"
        fix = f"\n    fix: {one.next}" if one.next and not one.runs else ""
        style = "green" if one.runs else "yellow"
        text = f"{bundle.manifest.name} on {one.backend}: {said}{fix}"
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def main(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Say whether this bundle runs here.")
    ] = None,
    json: cli.JsonOption = None,
) -> None:
    """Say what this machine offers to intvit, and how to mend what is missing.

    With a BUNDLE the exit code is 0 when one backend at least runs it here, else 1.
    """
    report, console = examine(), Console()
    show(report, console)
    able = True
    if bundle is not None:
        opened = Bundle.open(bundle)
        found = fitness(opened)
        show_fitness(found, opened, console)
        able = any(one.runs for one in found)
        report["bundle"] = {"path": str(bundle), "runs": able, "backends": [asdict(one) for one in found]}
    if json is not None:
        atomic_write_json(json, report)
    if not able:
        raise typer.Exit(1)

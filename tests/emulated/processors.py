"""Processors that are not here: Python under QEMU's user-mode emulation, and what /proc/cpuinfo says there.

The emulator hides what the processor lacks from CPUID (or from the auxiliary vector on ARM), which is what ONNX Runtime
and OpenVINO ask; intvit asks /proc/cpuinfo, which the emulator would pass through from this machine. So each processor
gets a root (option ``-L``, where the emulator looks for every file first) with a /proc/cpuinfo of its own.
Correctness can be tested so, time cannot: an emulated AVX2 is slower than an emulated SSE4.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO

ARM64 = REPO / "build" / "emulated" / "arm64"  # made by tests/emulated/arm64.py
PACKAGES = "/opt/intvit"  # where that puts Python packages, as the emulated process sees it
ARM_PARTS = ("usr", "lib", "opt", "etc")
OLDEST = (7, 2)  # of QEMU with AVX2: https://wiki.qemu.org/ChangeLog/7.2
_VERSION = re.compile(r"version (\d+)\.(\d+)")
_SSE4 = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt"
_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"


@dataclass(frozen=True)
class Processor:
    """One that QEMU can emulate: its name there, and the flags that Linux would give it in /proc/cpuinfo."""

    name: str
    cpu: str
    flags: str
    part: str = ""  # ARM's number of the core, as in /proc/cpuinfo

    @property
    def arm(self) -> bool:
        """Whether it is an ARM64 processor; else x86-64."""
        return bool(self.part)

    def cpuinfo(self) -> str:
        """What /proc/cpuinfo says; on x86 this machine's, with other flags: its topology is the one that is real."""
        if not self.arm:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
            text = re.sub(r"(?m)^(model name\s*:).*$", rf"\1 emulated {self.name}", text)
            return re.sub(r"(?m)^(flags\s*:).*$", rf"\1 {self.flags}", text)
        known = f"Features\t: {self.flags}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\n"
        core = f"{known}CPU part\t: {self.part}\nCPU revision\t: 1\n\n"
        return "".join(f"processor\t: {number}\nBogoMIPS\t: 62.50\n{core}" for number in range(os.cpu_count() or 1))


AVX2 = Processor("AVX2", "Haswell", f"{_SSE4} avx avx2 fma f16c bmi1 bmi2")
SSE4 = Processor("SSE4", "Nehalem", _SSE4)
DOT_PRODUCT = Processor("Cortex-A76", "cortex-a76", f"{_ARMV8} asimddp", "0xd0b")
I8MM = Processor("ARMv8.6", "max,sve=off", f"{_ARMV8} asimddp i8mm bf16", "0xd0b")
# Products saturate there, and intvit is told that they do not.
AVX2_IN_DISGUISE = Processor("AVX2 in disguise", "Haswell", f"{AVX2.flags} avx512f avx512bw avx512_vnni")


def _emulator(processor: Processor) -> str:
    """The emulator's path; the test is skipped where it is not installed, or too old."""
    name = "qemu-aarch64" if processor.arm else "qemu-x86_64"
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install qemu-user")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = _VERSION.search(said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        pytest.skip(f"{said.splitlines()[0]}; {OLDEST[0]}.{OLDEST[1]} or later is needed")
    if processor.arm and not ARM64.is_dir():
        pytest.skip("there is no ARM64 Python here: make test-emulated")
    return path


def emulate(processor: Processor, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` on that processor, from the repository; ``folder``, new or kept, becomes its root."""
    emulator = _emulator(processor)
    (folder / "proc").mkdir(parents=True, exist_ok=True)
    (folder / "proc" / "cpuinfo").write_text(processor.cpuinfo(), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "160"}
    if processor.arm:
        for part in ARM_PARTS:
            if not (folder / part).exists():
                (folder / part).symlink_to(ARM64 / part)
        python = str(ARM64 / "usr" / "bin" / "python3.11")
        environment |= {"PYTHONHOME": "/usr", "PYTHONPATH": os.pathsep.join([PACKAGES, str(REPO)])}
    else:
        python = os.path.realpath(sys.executable)
        environment |= {"PYTHONPATH": os.pathsep.join([*(path for path in sys.path if path), str(REPO)])}
    command = [emulator, "-L", str(folder), "-cpu", processor.cpu, python, *arguments]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)

"""``python -m tests.emulated.arm64``: an ARM64 Python with what `runtime` needs, unpacked for the emulated tests.

Debian's Python 3.11 and C library come through debootstrap, which only unpacks them (nothing of them runs here), and
pip takes the wheels for ARM64. Needs ``apt-get install qemu-user debootstrap`` and the network of both package indexes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.conftest import pyproject
from tests.emulated.processors import ARM64, PACKAGES

RELEASE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON = "3.11"  # Debian 12's
# glibc 2.36 and everything older; pip wants each by name.
PLATFORMS = [*(f"manylinux_2_{minor}_aarch64" for minor in (35, 34, 31, 28, 27, 17)), "manylinux2014_aarch64"]


def main() -> None:
    """Make the folder anew, under another name until it is whole."""
    if shutil.which("debootstrap") is None:
        sys.exit("debootstrap is not installed: apt-get install qemu-user debootstrap")
    half = ARM64.with_name("arm64.half")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    print(f"Debian {RELEASE} for ARM64 from {MIRROR}", flush=True)
    options = ["--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,libgomp1"]
    subprocess.run(["debootstrap", *options, RELEASE, str(half), MIRROR], check=True, stdout=subprocess.DEVNULL)
    for package in sorted((half / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(half)], check=True)
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["openvino"]]
    print(f"wheels for ARM64: {', '.join(wanted)}", flush=True)
    where = ["--target", f"{half}{PACKAGES}", "--python-version", PYTHON, "--only-binary=:all:"]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *where, *platforms, *wanted], check=True)
    shutil.rmtree(ARM64, ignore_errors=True)
    half.rename(ARM64)
    print(f"made {ARM64}", flush=True)


if __name__ == "__main__":
    main()

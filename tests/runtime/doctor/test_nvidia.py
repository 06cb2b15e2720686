"""The NVIDIA side, from files of other machines and from libraries that are no driver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime import machine
from runtime.doctor import nvidia
from runtime.errors import IntvitError
from runtime.nvidia import nvidia_driver, require_device


def test_driver_probe() -> None:
    absent = nvidia_driver("libno_such_driver.so.1")
    assert not absent["found"] and absent["devices"] == 0 and absent["error"]
    no_cuda = nvidia_driver("libc.so.6")
    assert not no_cuda["found"] and "cuInit" in no_cuda["error"]
    assert nvidia.capabilities(absent) == []
    with pytest.raises(IntvitError, match="no NVIDIA GPU can be used here"):
        require_device(library="libno_such_driver.so.1")


def test_libraries_of_an_engine() -> None:
    assert nvidia.gpu_libraries({}) == ("", "")
    assert nvidia.gpu_libraries({"tensorrt_rtx": "1.7", "cuda": "present"}) == ("tensorrt_rtx", "cuda-python")
    both = {"tensorrt": "11.0", "tensorrt_rtx": "1.7", "cuda": "present", "pycuda": "2026.1"}
    assert nvidia.gpu_libraries(both) == ("tensorrt", "pycuda")


def test_why_there_is_no_gpu_path() -> None:
    down = {"found": False, "devices": 0, "error": "libcuda.so.1: no such file"}
    assert nvidia.no_gpu(down, {}) == "no GPU path: no NVIDIA driver (libcuda.so.1: no such file)"
    bare = {"found": True, "devices": 0, "error": "CUDA error 100: no CUDA device"}
    assert "finds no device (CUDA error 100" in nvidia.no_gpu(bare, {"tensorrt": "11.0"})
    up = {"found": True, "devices": 1, "error": ""}
    assert nvidia.no_gpu(up, {}) == "no GPU path: TensorRT and pycuda or cuda-python not installed"
    assert nvidia.no_gpu(up, {"tensorrt": "11.0"}) == "no GPU path: pycuda or cuda-python not installed"
    assert nvidia.no_gpu(up, {"tensorrt": "11.0", "cuda": "present"}) == ""


def test_release_of_jetson_linux() -> None:
    line = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025"
    assert nvidia.parse_l4t(line) == (36, 4, 3)
    assert nvidia.parse_l4t("# R39 (release), REVISION: 2, GCID: 1") == (39, 2)
    assert nvidia.parse_l4t("") == ()


def test_files_of_an_installation(tmp_path: Path) -> None:
    nothing = {"cuda": "", "driver": "", "l4t": [], "jetpack": 0, "board": ""}
    assert nvidia.toolkit(tmp_path) == nothing
    texts = {
        "usr/local/cuda/version.json": json.dumps({"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}),
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\x00",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    found = {"cuda": "12.6.68", "driver": "550.54.15", "l4t": [36, 4, 3], "jetpack": 6, "board": board}
    assert nvidia.toolkit(tmp_path) == found
    (tmp_path / "usr/local/cuda/version.json").write_text("[]")
    assert nvidia.toolkit(tmp_path)["cuda"] == ""


@pytest.mark.parametrize(
    ("packages", "wanted"),
    [
        ({}, ("", "")),
        ({"tensorrt": "10.16.1.11", "tensorrt-cu13": "10.16.1.11"}, ("10.16.1.11", "13")),
        ({"tensorrt-cu12": "10.3.0"}, ("10.3.0", "12")),
        ({"tensorrt": "10.3.0"}, ("10.3.0", "")),
    ],
)
def test_version_of_tensorrt(
    packages: dict[str, str], wanted: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "version_of", lambda name: packages.get(name, ""))
    assert nvidia.tensorrt_version() == wanted


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  35.3.1  Release Build  (buildbrain)", "35.3.1"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build", "565.57.01"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024", "550.54.15"),
        ("", ""),
    ],
)
def test_the_kernel_modules_version(tmp_path: Path, line: str, version: str) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(line + "\n")
    assert nvidia.toolkit(tmp_path)["driver"] == version

"""The doctor: this machine is described, and known illnesses of others are recognised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import cli, doctor


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "doctor.json"
    assert cli.invoke(doctor.main, ["--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1 and "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert set(found["packages"]) == set(doctor.OPTIONAL)
    assert all(problem["fix"] and problem["why"] for problem in found["problems"])
    assert "ONNX Runtime" in capfd.readouterr().out


def test_optional_packages_are_not_imported() -> None:
    code = "import runtime.doctor as d, sys; d.examine(); assert not {'torch', 'timm', 'onnx'} & set(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_versions() -> None:
    assert doctor.version_tuple("1.31.1+cpu") == (1, 31, 1)
    assert doctor.version_tuple("odd") == ()
    assert "onnxruntime>=" in doctor.ort_problems("1.19.2", ["CPUExecutionProvider"])[0].fix
    assert doctor.ort_problems("1.31.1", ["CPUExecutionProvider"]) == []
    assert "no CPU provider" in doctor.ort_problems("1.31.1", [])[0].what
    assert doctor.ort_notes("1.20.1") == [] and len(doctor.ort_notes("1.22.0")) == len(doctor.ort_notes("1.31.1")) == 1


@pytest.mark.parametrize(
    ("flags", "x86", "said"),
    [
        (["avx2", "avx512_vnni"], True, ""),
        (["avx2"], True, "no VNNI"),
        ([], True, "no AVX2"),
        (["asimd"], False, "no dot product"),
        (["asimd", "asimddp"], False, ""),
        ([], False, ""),
    ],
)
def test_processors(flags: list[str], x86: bool, said: str) -> None:
    found = doctor.cpu_problems(flags, x86=x86)
    assert (said in found[0].what) if said else found == []


def test_gpu_and_room() -> None:
    down = {"found": False, "devices": 0, "driver": "", "error": "no libcuda"}
    up = {"found": True, "devices": 1, "driver": "13.0", "error": ""}
    assert "no libcuda" in doctor.gpu_problems(down, {"tensorrt": "11.0"})[0].why
    whole = {"tensorrt": "11.0", "pycuda": "2026.1"}
    assert doctor.gpu_problems(down, {}) == doctor.gpu_problems(up, whole) == []
    assert "pip install" in doctor.gpu_problems(up, {})[0].fix
    assert "cuda-python" in doctor.gpu_problems(up, {"tensorrt_rtx": "1.7"})[0].fix
    assert doctor.gpu_path(down, whole) == "no GPU path: no libcuda"
    assert doctor.gpu_path(up, {"cuda": "present"}) == "no GPU path: TensorRT not installed"
    assert doctor.gpu_path(up, {"tensorrt": "11.0"}) == "no GPU path: pycuda or cuda-python not installed"
    assert doctor.gpu_path(up, whole) == "tensorrt 11.0, memory through pycuda"
    assert [problem.what for problem in doctor.room_problems(1 << 20, 1 << 20)] == [
        "little memory",
        "little disk space",
    ]
    assert doctor.room_problems(0, 1 << 40) == []

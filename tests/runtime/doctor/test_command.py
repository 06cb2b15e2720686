"""The doctor: this machine is described rightly, and a bundle is tried."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runtime import cli, doctor, machine
from runtime.bundle import Bundle
from runtime.doctor import command, fitness
from runtime.errors import IntvitError
from tests.runtime.tiny import rehash


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "doctor.json"
    assert cli.invoke(doctor.main, ["--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1 and "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert set(found["packages"]) == set(command.OPTIONAL)
    assert all(problem["fix"] and problem["why"] for problem in found["problems"])
    said = capfd.readouterr().out
    assert "ONNX Runtime" in said and "NVIDIA" in said
    assert "bundle" not in found


def test_what_stands_in_brackets_is_printed() -> None:
    """It was taken for rich's markup, and the advice read: pip install 'intvit'."""
    found = doctor.examine()
    found["packages"]["openvino"] = ""
    screen = Console(file=io.StringIO(), width=200)
    command.show(found, screen)
    assert "pip install 'intvit[openvino]'" in screen.file.getvalue()


def test_optional_packages_are_not_imported() -> None:
    code = "import runtime.doctor as d, sys; d.examine(); assert not {'torch', 'timm', 'onnx'} & set(sys.modules)"
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_an_onnx_runtime_that_cannot_be_imported_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it is an ImportError
    found = doctor.examine()
    assert found["onnxruntime"] == {"version": "", "providers": []} and found["notes"] == []
    assert [problem["what"] for problem in found["problems"]].count("ONNX Runtime cannot be imported") == 1
    assert cli.invoke(doctor.main, []) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "cannot be imported" in said and "pip install --force-reinstall onnxruntime" in said


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="no lscpu on this machine")
def test_the_features_are_those_lscpu_names(report: dict[str, Any]) -> None:
    said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    (line,) = (line for line in said.splitlines() if line.startswith("Flags:"))
    flags = set(line.split()[1:])
    wanted = command.X86_FEATURES if machine.is_x86() else command.ARM_FEATURES
    assert report["features"] == {name: [flag for flag in names if flag in flags] for name, names in wanted.items()}
    assert set(report["machine"]["flags"]) == flags.intersection(machine.INTEGER_FLAGS)
    assert machine.half_flags() == sorted(flags.intersection(machine.HALF_FLAGS))


def test_features_of_other_processors() -> None:
    vnni = command.features(frozenset({"avx2", "avx_vnni", "avx512_bf16"}), x86=True)
    assert vnni == {"VNNI": ["avx_vnni"], "AMX INT8": [], "BF16": ["avx512_bf16"]}
    orin = command.features(frozenset({"asimd", "asimddp"}), x86=False)
    assert orin == {"dot product": ["asimddp"], "i8mm": [], "SVE": [], "BF16": []}


def test_one_line_says_why_there_is_no_gpu_path(report: dict[str, Any]) -> None:
    line = report["no_gpu"]
    assert "\n" not in line
    if not report["nvidia"]["found"]:
        assert line.startswith("no GPU path: no NVIDIA driver (") and report["nvidia"]["error"] in line
    path = all(report["nvidia"][name] for name in ("devices", "library", "memory"))
    assert bool(line) is not path


def test_a_bundle_that_runs(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "doctor.json"
    assert cli.invoke(doctor.main, [str(tiny_bundle), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["bundle"]
    assert found["runs"] and {"backend": "ort", "runs": True, "why": "", "next": ""} in found["backends"]
    assert "tiny-w4a8 on ort: runs here" in capfd.readouterr().out


def test_a_bundle_that_does_not(bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for target in ("ort", "openvino"):
        (bundle_copy / target / "model.onnx").write_bytes(b"no graph")
    rehash(bundle_copy)
    out = tmp_path / "doctor.json"
    assert cli.invoke(doctor.main, [str(bundle_copy), "--json", str(out)]) == 1
    found = json.loads(out.read_text())["bundle"]
    assert not found["runs"] and all(one["why"] for one in found["backends"])
    assert "does not run here" in capfd.readouterr().out


def test_a_bundle_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(doctor.main, [str(tmp_path / "nowhere")]) == 1
    assert "not a bundle" in capfd.readouterr().err


def test_too_little_memory_and_bad_logits(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr(fitness.machine, "memory_bytes", lambda: (1 << 30, 1000))
    assert all(not one.runs and "memory" in one.why for one in fitness.fitness(bundle) if one.backend == "ort")

    class Wrong:
        def run(self, images: Any) -> Any:
            return images[:, :1] * float("nan")

        def close(self) -> None: ...

    monkeypatch.undo()
    monkeypatch.setattr(fitness, "open_engine", lambda *_: Wrong())
    assert {one.why for one in fitness.fitness(bundle)} == {"its logits are not finite"}
    spaced = tiny_bundle.with_name("two words")
    shutil.copytree(tiny_bundle, spaced)
    pasted = f"python -m runtime.parity '{spaced}'"
    assert {one.next for one in fitness.fitness(Bundle.open(spaced))} == {pasted}

    def refuse(*_: Any) -> Any:
        raise IntvitError("no driver", why="nothing", next="install it")

    monkeypatch.setattr(fitness, "open_engine", refuse)
    assert {(one.why, one.next) for one in fitness.fitness(bundle)} == {("no driver: nothing", "install it")}


def test_this_platform_is_one_the_doctor_knows() -> None:
    assert machine.is_x86() is (platform.machine() in ("x86_64", "AMD64", "i686"))

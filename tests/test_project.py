"""The project's frame: what the Makefile offers, what an install brings, and rules no linter knows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backends.ort import OLDEST
from tests.conftest import REPO, pyproject

PACKAGES = ("calib", "toolchain", "runtime")
TARGETS = ("demo", "test", "test-all", "lint", "bench", "docs", "kernels", "clean")
BASE = {"numpy", "onnxruntime", "pillow", "pydantic", "rich", "typer", "safetensors"}
EXTRAS = {
    "build": {"torch", "timm", "onnx", "onnx-ir", "matplotlib", "jinja2"},
    "openvino": {"openvino"},
    "tensorrt": {"tensorrt", "pycuda", "cuda-python", "nvidia-ml-py"},
    "rtx": {"tensorrt-rtx"},
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPO / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def project() -> dict:
    return pyproject()


def distribution(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower()


def test_base_install_brings_what_a_device_needs_and_nothing_else(project: dict) -> None:
    assert {distribution(line) for line in project["project"]["dependencies"]} == BASE


def test_an_install_brings_an_onnx_runtime_that_is_new_enough(project: dict) -> None:
    assert f"onnxruntime>={OLDEST}" in project["project"]["dependencies"]


def test_extras(project: dict) -> None:
    extras = project["project"]["optional-dependencies"]
    for name, wanted in EXTRAS.items():
        assert {distribution(line) for line in extras[name]} == wanted
    assert extras.keys() == {*EXTRAS, "dev"}


def test_developers_get_tensorrt_rtx_where_there_is_a_wheel(project: dict) -> None:
    (line,) = (line for line in project["project"]["optional-dependencies"]["dev"] if "tensorrt" in line)
    assert line == "tensorrt-rtx; sys_platform == 'linux' and platform_machine == 'x86_64'"


def test_the_wheel_holds_the_three_packages(project: dict) -> None:
    assert tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


@pytest.mark.parametrize("target", TARGETS)
def test_makefile_target_exists(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    done = subprocess.run(["make", "-n", target], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    phony = re.search(r"^\.PHONY:(.*)$", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony is not None
    assert target in phony[1].split()


def test_ci_run_is_executable_and_careful() -> None:
    script = REPO / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert text.startswith("#!")
    assert "set -euo pipefail" in text
    assert "make lint test" in text


def test_no_source_file_is_over_400_lines() -> None:
    long = {
        path.relative_to(REPO).as_posix(): lines
        for path in sources(*PACKAGES, "benches")
        if (lines := len(path.read_text("utf-8").splitlines())) > 400
    }
    assert not long


def test_the_error_class_is_the_same_file_in_both_homes() -> None:
    assert (REPO / "calib" / "errors.py").read_bytes() == (REPO / "runtime" / "errors.py").read_bytes()


def unsafe_loads(tree: ast.AST) -> Iterator[int]:
    """Lines that call torch.load without weights_only=True, or anything with allow_pickle other than False."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        values = {
            keyword.arg: keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)
        }
        if ast.unparse(node.func) == "torch.load" and values.get("weights_only") is not True:
            yield node.lineno
        if any(keyword.arg == "allow_pickle" for keyword in node.keywords) and values.get("allow_pickle") is not False:
            yield node.lineno


def test_nothing_loads_a_pickle() -> None:
    found = [
        f"{path.relative_to(REPO)}:{line}"
        for path in sources(*PACKAGES, "benches")
        for line in unsafe_loads(ast.parse(path.read_text("utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False),
        ("np.load(f, allow_pickle=True)", True),
        ("np.load(f, allow_pickle=flag)", True),
        ("np.load(f, allow_pickle=False)", False),
    ],
)
def test_the_rule_against_pickles_sees_them(code: str, unsafe: bool) -> None:
    assert bool(list(unsafe_loads(ast.parse(code)))) is unsafe

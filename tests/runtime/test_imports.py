"""The packages keep their directions, and runtime needs nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = (
    *("torch", "timm", "onnx", "onnx_ir", "tensorrt", "pycuda", "cuda", "openvino", "matplotlib", "torchvision"),
    "pynvml",
)
ALLOWED = {"numpy", "onnxruntime", "PIL", "pydantic", "rich", "typer", "safetensors", "runtime"}

IMPORT_ALL = f"""
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
import runtime
names = [m.name for m in pkgutil.walk_packages(runtime.__path__, "runtime.")]
assert len(names) > 20, names
for name in names:
    importlib.import_module(name)
try:
    import torch
except ImportError:
    print("ok", len(names))
"""


def test_every_runtime_module_imports_without_the_heavy_ones() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"), [("runtime", {"calib", "toolchain"}), ("calib", {"runtime", "toolchain"})]
)
def test_nothing_imports_upward(package: str, forbidden: set[str]) -> None:
    wrong = {str(path): names for path in (ROOT / package).rglob("*.py") if (names := _imports(path) & forbidden)}
    assert wrong == {}


def test_runtime_imports_only_what_a_device_has() -> None:
    allowed = ALLOWED | set(sys.stdlib_module_names)
    files = [path for path in (ROOT / "runtime").rglob("*.py")]
    assert len(files) > 20
    backend_own = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda", "openvino", "pynvml"}
    wrong = {str(path): _imports(path) - allowed - backend_own for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_no_pickle() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not _imports(path) & {"pickle", "shelve", "marshal", "dill", "joblib"}, path
        assert "np.load" not in path.read_text(encoding="utf-8"), path

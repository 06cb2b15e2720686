"""Each stage's key covers the code that makes its result: every module it imports is in its digest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPO
from toolchain import pipeline
from toolchain.stages import ROOT, code_digest

# The error class, a type alias, and where weights come from: their bytes are an input, whoever fetched them.
NO_MATTER = {"calib/errors.py", "calib/network.py", "calib/hub.py"}
ENTRIES = {
    "synthesise": (pipeline.SYNTHESIS_CODE, {"calib/synthesis/engine.py"}),
    "real-images": (pipeline.REAL_CODE, {"calib/real_images.py"}),
    "calibrate": (pipeline.CALIBRATE_CODE, {"calib/calibrate.py", "calib/calibrated.py"}),
    "lower": (pipeline.LOWER_CODE, {"toolchain/lowering.py", "toolchain/bundle.py", "calib/synthesis/engine.py"}),
}


def module_file(name: str) -> str | None:
    for candidate in (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
        if (REPO / candidate).is_file():
            return candidate
    return None


def imported(file: str) -> set[str]:
    """Files of calib and toolchain that ``file`` imports itself."""
    found = set()
    for node in ast.walk(ast.parse((REPO / file).read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {
            path for name in names if name.split(".")[0] in ("calib", "toolchain") and (path := module_file(name))
        }
    return found


def closure(start: set[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imported(file)
    return seen


@pytest.mark.parametrize("stage", ENTRIES)
def test_the_digest_covers_every_module_that_decides_the_result(stage: str) -> None:
    code, entries = ENTRIES[stage]
    needed = closure(entries) - NO_MATTER | {"toolchain/pipeline.py"}
    assert not {file for file in needed if not any(file == part or file.startswith(f"{part}/") for part in code)}


@pytest.mark.parametrize("stage", ENTRIES)
def test_every_part_of_the_digest_exists(stage: str) -> None:
    code, _ = ENTRIES[stage]
    assert ROOT == REPO
    for part in code:
        assert Path(ROOT / part).exists(), part
    assert len(code_digest(code)) == 64


def test_the_walk_finds_imports_of_imports() -> None:
    found = closure({"toolchain/lowering.py"})
    assert {"toolchain/passes/expand_int4.py", "toolchain/graph/layers.py", "calib/scheme.py"} <= found
    assert not any(file.startswith("runtime") for file in found)

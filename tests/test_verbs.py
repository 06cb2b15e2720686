"""Every verb answers ``--help`` and a wrong command line without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO

HEAVY = (
    *("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"),
    *("matplotlib", "jinja2", "pycuda", "cuda", "triton"),
)
VERBS = sorted(
    ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__main__")
    for package in ("calib", "toolchain", "runtime")
    for path in (REPO / package).rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text("utf-8")
)
BUILD = ("toolchain.build", "--model", "vit_digits", "--bits", "w4a8")
IMAGES = ("calib.synthesize", "--model", "vit_digits")
SENSITIVITY = ("toolchain.sensitivity", "--model", "vit_digits", "--bits", "w4a8")
# A wrong command line, its exit code, and what is said of it. {file} is a text file, {bundle} no bundle.
WRONG = (
    ((*BUILD[:-1], "w5a9"), 1, "5a9"),
    ((*BUILD, "--method", "bets"), 1, "near matches: best"),
    ((*BUILD, "--budget", "quick"), 1, "known: fast, default, max"),
    ((*BUILD, "--correction", "diagonal"), 1, "did you mean diag?"),
    ((*BUILD, "--target", "trt"), 1, "known: ort, openvino, tensorrt"),
    ((*BUILD, "--target", "tensorrt", "--option", "precision=int8"), 1, "precision=fp16|bf16|fp32"),
    ((*BUILD, "--method", "real"), 1, "go together"),
    ((*BUILD, "--device", "gpu"), 1, "auto, cpu or cuda"),
    ((*BUILD, "--checkpoint", "nowhere.pt"), 1, "no such checkpoint"),
    ((*BUILD, "--checkpoint", "{file}"), 1, "ends in .safetensors, .pt or .pth"),
    ((*BUILD, "--eval", "{file}"), 1, "it is a file"),
    ((*BUILD, "--out", "{file}"), 1, "no bundle"),
    ((*BUILD, "--out", "{file}/bundle"), 1, "cannot write to --out"),
    ((*BUILD, "--out", "/proc/bundle"), 1, "cannot write to --out"),
    ((*BUILD, "--out", "."), 1, "this one has none"),
    ((*BUILD, "--images", "0"), 2, "--images"),
    ((*BUILD, "--cache", "{file}"), 1, "--cache DIR, or INTVIT_CACHE=DIR"),
    ((*SENSITIVITY, "--method", "real"), 1, "reads no real images"),
    ((*SENSITIVITY, "--checkpoint", "nowhere.pt"), 1, "no such checkpoint"),
    ((*SENSITIVITY, "--cache", "{file}/stages"), 1, "--cache DIR, or INTVIT_CACHE=DIR"),
    ((*IMAGES, "--out", "{file}"), 1, "something at --out already"),
    ((*IMAGES, "--out", "{file}/set"), 1, "cannot write to --out"),
    ((*IMAGES, "--out", "new/.."), 1, "this one has none"),
    ((*IMAGES, "--out", "new", "--method", "psaqq"), 1, "near matches: psaq"),
    ((*IMAGES, "--out", "new", "--prior", "{file}"), 1, "FILE.py=WEIGHT"),
    (("toolchain.lint", "{file}", "--target", "trt"), 1, "known: ort, openvino, tensorrt"),
    *(((verb, "{bundle}"), 1, "not a bundle") for verb in ("runtime.bench", "runtime.parity", "toolchain.inspect")),
    (("runtime.accuracy", "{bundle}"), 2, "--data"),
    (("runtime.compile", "{bundle}", "--no-such-option"), 2, "--no-such-option"),
)
RUN = """
import contextlib, io, json, runpy, sys

wanted = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            wanted.append(name)
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

heavy, lines = json.loads(sys.stdin.read())
sys.meta_path.insert(0, Watch())
found = []
for verb, *arguments in lines:
    wanted.clear()
    sys.argv, said, code = [verb, *arguments], io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module(verb, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, list(wanted), said.getvalue()])
print(json.dumps(found))
"""


def run(lines: list[list[str]], folder: Path) -> list[list[Any]]:
    """Exit code, heavy imports and output of each command line, all in one new process that has no heavy library."""
    environment = {"PYTHONPATH": str(REPO), "COLUMNS": "200", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", RUN],
        cwd=folder,
        env=environment,
        input=json.dumps([HEAVY, lines]),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout)
    return found


def test_there_are_verbs() -> None:
    assert {"toolchain.build", "toolchain.report", "calib.synthesize", "runtime.bench", "runtime.doctor"} < set(VERBS)


def test_help_needs_no_heavy_library(tmp_path: Path) -> None:
    found = run([[verb, "--help"] for verb in VERBS], tmp_path)
    assert {verb: result[:2] for verb, result in zip(VERBS, found, strict=True)} == {verb: [0, []] for verb in VERBS}
    assert all("Usage:" in said and "--debug" in said for _, _, said in found)


def test_a_wrong_command_line_is_told_without_a_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    places = {"{file}": str(tmp_path / "notes.txt"), "{bundle}": str(tmp_path / "empty")}

    def placed(word: str) -> str:
        for name, path in places.items():
            word = word.replace(name, path)
        return word

    lines = [[placed(word) for word in words] for words, _, _ in WRONG]
    found = run(lines, tmp_path)
    for (words, code, text), (left, imported, said) in zip(WRONG, found, strict=True):
        assert (left, imported) == (code, []), (words, said)
        assert text in " ".join(said.split()), (words, said)
        assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


@pytest.mark.parametrize("verb", ["toolchain.build", "toolchain.sensitivity", "calib.synthesize"])
def test_a_machine_without_torch_is_told_what_to_install(verb: str, tmp_path: Path) -> None:
    options = ["--out", "images"] if verb == "calib.synthesize" else ["--bits", "w4a8"]
    ((code, imported, said),) = run([[verb, "--model", "vit_digits", *options]], tmp_path)
    assert code == 1 and imported and f"{imported[-1]} is not installed" in said and "intvit[build]" in said
    assert list(tmp_path.iterdir()) == []

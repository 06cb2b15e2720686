"""Every command of docs/jetson.md that is ours runs, with fakes of TensorRT and CUDA in place of the board.

What apt, scp, nvpmodel and jetson_clocks do cannot be tried here; test_readme.py holds the options of all pages.
"""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import cli
from runtime.backends.trt.options import TensorRtOptions
from tests.conftest import REPO
from tests.docs.test_readme import commands
from tests.runtime.fakes.machine import install
from tests.runtime.tiny import make_bundle

PAGE = (REPO / "docs/jetson.md").read_text("utf-8")
BUNDLE = "deit_s-w8a8"
OURS = [words for words in commands(PAGE) if words[0].startswith("runtime.")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of that name, and pictures in ``DIR``."""
    folder = tmp_path_factory.mktemp("jetson")
    make_bundle(folder / BUNDLE)
    (folder / "DIR/n00000003").mkdir(parents=True)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (12, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"DIR/n00000003/{index}.png")
    return folder


def test_the_page_leads_through_every_verb() -> None:
    assert {words[0] for words in OURS} == {
        f"runtime.{verb}" for verb in ("doctor", "compile", "parity", "bench", "accuracy")
    }
    assert all(words[1] == BUNDLE for words in OURS if words[0] != "runtime.doctor")


@pytest.mark.parametrize("words", OURS, ids=[" ".join(words) for words in OURS])
@pytest.mark.parametrize("version", ["10.3", "10.16"])
def test_the_command_runs(words: list[str], version: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("INTVIT_CACHE", str(home / "cache"))
    world = install(monkeypatch, version, "cuda-python")
    short = [re.sub(r"^20$", "0", word) for word in words[1:]]  # --seconds
    assert cli.invoke(importlib.import_module(words[0]).main, short) == 0
    world.check_empty()
    for name in ("layers.json", "bench.json"):
        assert name not in words or (home / name).stat().st_size > 0


def test_options_of_the_page_are_options() -> None:
    names = "|".join(TensorRtOptions.__dataclass_fields__)
    found = re.findall(rf"`(?:--option )?((?:{names})=[^`\s]+)`", PAGE)
    assert len(found) >= 12
    for text in found:
        name, _, value = text.partition("=")
        TensorRtOptions.parse({name: value})
    known = set(TensorRtOptions.__dataclass_fields__)
    assert {text.partition("=")[0] for text in found} == known


def test_the_python_of_the_page(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(home / BUNDLE, tmp_path / BUNDLE)
    monkeypatch.chdir(tmp_path)
    world = install(monkeypatch, "10.3", "pycuda")
    images = np.zeros((2, 3, 8, 8), np.float32)
    plain = "\n".join(line for line in code.splitlines() if "run_device" not in line)
    names: dict[str, object] = {"images": images}
    exec(compile(plain, "docs/jetson.md", "exec"), names)
    logits = names["logits"]
    assert isinstance(logits, np.ndarray) and logits.shape == (2, 10)
    assert "run_device" in code and hasattr(names["engine"], "run_device")
    world.check_empty()

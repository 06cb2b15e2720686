"""One flipped byte anywhere in a bundle: every verb refuses it and names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import accuracy, bench, cli, compile, parity
from runtime.bundle import Bundle
from runtime.compile import compile_bundle
from runtime.errors import IntvitError
from tests.runtime.tiny import make_bundle

FILES = (
    "manifest.json",
    "manifest.sha256",
    "ort/model.onnx",
    "openvino/model.onnx",
    "float/model.onnx",
    "canonical/model.onnx",
    "golden/golden.safetensors",
    "classes.json",
    "preview.png",
    "engines/registry.json",
    "engines/registry.sha256",
    "engines/ort/model.onnx",
)
Verb = tuple[Callable[..., None], list[str]]


@pytest.fixture(scope="module")
def compiled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a compiled engine in it."""
    root = make_bundle(tmp_path_factory.mktemp("faults") / "bundle")
    compile_bundle(Bundle.open(root))
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation folder with one picture."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "0").mkdir()
    Image.new("RGB", (8, 8)).save(root / "0/a.png")
    return root


def _file(root: Path, name: str) -> Path:
    if name == "engines/ort/model.onnx":
        (found,) = root.glob("engines/ort-*/model.onnx")
        return found
    return root / name


def _flip(path: Path, at: int, bit: int) -> bytes:
    data = bytearray(path.read_bytes())
    before = bytes(data)
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    return before


def test_every_file_of_the_bundle_is_in_the_list(compiled_bundle: Path) -> None:
    present = {path for path in compiled_bundle.rglob("*") if path.is_file()}
    assert present == {_file(compiled_bundle, name) for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_opening_refuses_a_flip_at_random_places_and_at_both_ends(
    compiled_bundle: Path, tmp_path: Path, name: str
) -> None:
    root = Path(shutil.copytree(compiled_bundle, tmp_path / "bundle"))
    path = _file(root, name)
    rng = np.random.default_rng(sum(name.encode()))
    size = path.stat().st_size
    for at in {0, size - 1, *rng.integers(0, size, 12).tolist()}:
        before = _flip(path, at, int(rng.integers(0, 8)))
        with pytest.raises(IntvitError) as caught:
            Bundle.open(root)
        said = caught.value.render()
        assert str(path) in said or path.name in said, said
        path.write_bytes(before)
    Bundle.open(root)


@pytest.mark.parametrize("name", FILES)
def test_every_verb_refuses_and_names_the_file(
    compiled_bundle: Path, pictures: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(compiled_bundle, tmp_path / "bundle"))
    path = _file(root, name)
    _flip(path, path.stat().st_size // 2, 3)
    out = tmp_path / "out.json"
    json = ["--json", str(out)]
    verbs: list[Verb] = [
        (compile.main, ["--force"]),
        (bench.main, ["--seconds", "0", *json]),
        (accuracy.main, ["--data", str(pictures), *json]),
        (parity.main, json),
    ]
    for main, options in verbs:
        assert cli.invoke(main, [str(root), *options]) == 1
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert path.relative_to(root).as_posix() in captured.err or path.name in captured.err
        assert not out.exists()


@pytest.mark.parametrize("name", [name for name in FILES if name != "engines/registry.sha256"])
def test_a_truncated_or_missing_file_is_named(compiled_bundle: Path, tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(compiled_bundle, tmp_path / "bundle"))
    path = _file(root, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntvitError) as caught:
        Bundle.open(root)
    assert path.name in caught.value.where
    path.unlink()
    with pytest.raises(IntvitError, match="missing") as caught:
        Bundle.open(root)
    assert path.name in caught.value.where


def test_the_good_bundle_passes_every_verb(compiled_bundle: Path, pictures: Path) -> None:
    for main, options in (
        (compile.main, []),
        (bench.main, ["--seconds", "0"]),
        (accuracy.main, ["--data", str(pictures)]),
        (parity.main, []),
    ):
        assert cli.invoke(main, [str(compiled_bundle), *options]) == 0


def test_a_bundle_that_cannot_be_written_compiles_to_a_message(
    compiled_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(compiled_bundle, tmp_path / "bundle"))
    shutil.rmtree(root / "engines")
    (root / "engines").write_bytes(b"in the way")
    with pytest.raises(IntvitError, match="cannot write") as caught:
        compile_bundle(Bundle.open(root))
    assert "engines" in caught.value.where

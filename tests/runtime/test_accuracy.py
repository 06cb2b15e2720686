"""Accuracy of a tiny engine on a generated folder, against counts made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from runtime import accuracy as verb
from runtime import cli
from runtime.accuracy import Predictions, evaluate, paired_stderr, top_classes
from runtime.bundle import Bundle
from runtime.images import load_image
from tests.conftest import BACKENDS
from tests.runtime.tiny import Spec, reference

COUNT = 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 noise pictures in class folders, named by id or by index, one of them spoiled."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        label = i % 10
        path = root / (f"n{label:08d}" if label % 2 else str(label)) / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(path)
    (root / "0/text.jpg").write_text("no picture")
    return root


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_those_of_the_reference(tiny_bundle: Path, folder: Path, backend: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    result = evaluate(bundle, folder, backend=backend, threads=1, batch=7)
    images = np.stack([load_image(path, bundle.manifest.preprocess) for path in result.paths])
    labels = np.array([int(path.parent.name.lstrip("n")) for path in result.paths])
    engine, twin = reference(Spec(), images)[0], reference(Spec(), images, quantize=False)[0]
    np.testing.assert_array_equal(result.labels, labels)
    assert result.images == COUNT and list(result.paths) == sorted(result.paths)
    right, twin_right = engine.argmax(1) == labels, twin.argmax(1) == labels
    assert result.top1 == pytest.approx(100 * right.mean(), abs=1e-9)
    assert result.baseline_top1 == pytest.approx(100 * twin_right.mean(), abs=1e-9)
    assert result.agreement == pytest.approx(100 * (engine.argmax(1) == twin.argmax(1)).mean(), abs=1e-9)
    among = [label in row for label, row in zip(labels, np.argsort(-engine, axis=1)[:, :5], strict=True)]
    assert result.top5 == pytest.approx(100 * np.mean(among), abs=1e-9)
    difference = right.astype(float) - twin_right
    assert result.stderr == pytest.approx(100 * difference.std(ddof=1) / math.sqrt(COUNT))
    assert 0 < result.agreement < 100 or result.stderr == 0
    assert [path for path, _ in result.unreadable] == [str(folder / "0/text.jpg")]


def test_the_command(tiny_bundle: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "accuracy.json"
    arguments = [str(tiny_bundle), "--data", str(folder), "--json", str(out), "--threads", "1"]
    assert cli.invoke(verb.main, arguments) == 0
    found = json.loads(out.read_text())
    assert {"top1", "top5", "images", "baseline_top1", "agreement", "stderr"} <= set(found)
    assert found["images"] == COUNT and found["unreadable"][0]["path"].endswith("text.jpg")
    captured = capfd.readouterr()
    assert "text.jpg" in captured.out and "131/131" in captured.err
    assert cli.invoke(verb.main, [*arguments, "--limit", "5"]) == 0
    assert json.loads(out.read_text())["images"] == 5


def test_unknown_class_is_an_error_without_a_traceback(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zebra").mkdir()
    assert cli.invoke(verb.main, [str(tiny_bundle), "--data", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "zebra" in said and "Traceback" not in said


def test_top_classes() -> None:
    logits = np.array([[1, 3, 2, 3, 0, -1], [0, 0, 0, 0, 0, 9]], np.float32)
    np.testing.assert_array_equal(top_classes(logits), [[1, 3, 2, 0, 4], [5, 0, 1, 2, 3]])
    assert top_classes(logits[:, :3]).shape == (2, 3)
    hits = Predictions(top_classes(logits)).hits(np.array([3, 4]), 5)
    np.testing.assert_array_equal(hits, [True, False])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_stderr_from_counts(pairs: list[tuple[bool, bool]]) -> None:
    """With b and c the pictures only one of the two gets right: variance (b + c - (b - c)^2 / n) / (n - 1)."""
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    n, b, c = len(pairs), int((first & ~second).sum()), int((~first & second).sum())
    wanted = 100 * math.sqrt(max(0.0, (b + c - (b - c) ** 2 / n) / (n - 1)) / n)
    assert paired_stderr(first, second) == pytest.approx(wanted, abs=1e-6)


def test_stderr_of_one_picture() -> None:
    assert paired_stderr(np.array([True]), np.array([False])) == 0.0

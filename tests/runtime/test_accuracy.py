"""Accuracy of a tiny engine on a generated folder, against counts made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import accuracy as verb
from runtime import cli
from runtime.accuracy import Accuracy, ClassDrop, evaluate, lanes_of
from runtime.bundle import Bundle
from runtime.classes import Classes
from runtime.disagreements import MOST
from runtime.images import load_image
from runtime.predictions import Predictions
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
    assert (found["twin_precision"], found["options"]) == ("float32", {})
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


def test_lanes_change_the_time_and_nothing_else(tiny_bundle: Path, folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    one, several = (evaluate(bundle, folder, threads=threads, batch=7) for threads in (1, 3))
    assert (one.lanes, several.lanes) == (1, 3)
    assert one.paths == several.paths and one.unreadable == several.unreadable
    for first, second in ((one.engine, several.engine), (one.baseline, several.baseline)):
        np.testing.assert_array_equal(first.top, second.top)
        np.testing.assert_array_equal(first.of_last, second.of_last)


def test_the_lanes_share_a_batch() -> None:
    assert [lanes_of("ort", threads, 8) for threads in (1, 2, 3, 16)] == [(1, 8), (2, 4), (3, 2), (16, 1)]
    assert lanes_of("openvino", 4, 8) == lanes_of("tensorrt", 4, 8) == (1, 8)


def test_drops_are_counts_by_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    right = np.array([[0, 9], [9, 0], [9, 0], [1, 9], [1, 9], [2, 9]])  # the engine: 1 of 3, 2 of 2, 1 of 1
    twin = np.array([[0, 9], [0, 9], [0, 9], [1, 9], [9, 1], [2, 9]])  # the twin: 3 of 3, 1 of 2, 1 of 1
    blank = np.zeros(6, np.float32)
    said = [Predictions(top.astype(np.int64), blank, blank) for top in (right, twin)]
    result = Accuracy(labels, tuple(Path(str(i)) for i in range(6)), *said, (), 2.0)
    assert result.drops() == [ClassDrop(0, 3, 1, 3)]
    found = result.to_json(Classes(tuple(map(str, range(10))), tuple("abcdefghij")))
    assert found["mcnemar"] == {"only_engine_right": 1, "only_float_right": 2, "p": 1.0}
    assert found["drops"][0]["name"] == "a" and found["images_per_second"] == 3.0
    assert found["interval_95"][0] < found["top1"] - found["baseline_top1"] < found["interval_95"][1]


def test_disagreements_are_written_on_request(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert cli.invoke(verb.main, [str(tiny_bundle), "--data", str(folder), "--disagreements", str(tmp_path / "d")]) == 0
    page = (tmp_path / "d/index.html").read_text("utf-8")
    result = evaluate(bundle, folder)
    differ = int((result.engine.top[:, 0] != result.baseline.top[:, 0]).sum())
    assert f"{differ} of {COUNT} pictures" in page and page.count("<img ") == min(differ, MOST)


def test_where_disagreements_cannot_be_written_is_said_before_the_work(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.delattr(verb, "evaluate")
    words = [str(tiny_bundle), "--data", str(folder), "--disagreements", str(tmp_path / "file")]
    assert cli.invoke(verb.main, words) == 1
    assert "cannot write the file" in capsys.readouterr().err

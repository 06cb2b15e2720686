"""Several models asked about the same pictures: order, what is kept of the answers, and errors from a lane."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from runtime.classes import Classes
from runtime.dataset import Unreadable, load_folder
from runtime.errors import IntvitError
from runtime.manifest import Preprocess
from runtime.predictions import Predictions, predict, softmax, top_classes

RULE = Preprocess(height=8, width=8, crop_pct=1.0, interpolation="nearest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = Classes(("0", "1"), ("a", "b"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 pictures, each of one shade: its number."""
    for i in range(60):
        path = tmp_path / str(i % 2) / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    return tmp_path


def shade(images: np.ndarray) -> np.ndarray:
    """Logits (N, 64) whose largest is at the picture's shade."""
    return np.eye(64, dtype=np.float32)[np.round(images[:, 0, 0, 0] * 255).astype(int)]


def test_top_classes_and_hits() -> None:
    logits = np.array([[1, 3, 2, 3, 0, -1], [0, 0, 0, 0, 0, 9]], np.float32)
    np.testing.assert_array_equal(top_classes(logits), [[1, 3, 2, 0, 4], [5, 0, 1, 2, 3]])
    assert top_classes(logits[:, :3]).shape == (2, 3)
    blank = np.zeros(2, np.float32)
    hits = Predictions(top_classes(logits), blank, blank).hits(np.array([3, 4]), 5)
    np.testing.assert_array_equal(hits, [True, False])


@given(arrays(np.float32, (3, 7), elements=st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.5])), st.integers(1, 9))
def test_top_classes_are_the_first_of_a_stable_sort(logits: np.ndarray, k: int) -> None:
    np.testing.assert_array_equal(top_classes(logits, k), np.argsort(-logits, axis=1, kind="stable")[:, :k])


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000, 1000], [0, -1e4]], np.float32)), [[0.5, 0.5], [1, 0]])


def test_order_is_kept_whichever_lane_is_faster(folder: Path) -> None:
    samples, gate = load_folder(folder, CLASSES), threading.Event()

    def slow(images: np.ndarray) -> np.ndarray:
        gate.wait(5)  # until the other lane has taken some
        return shade(images)

    def fast(images: np.ndarray) -> np.ndarray:
        gate.set()
        return shade(images)

    answers = predict([[slow, slow], [fast, fast]], samples, RULE, Unreadable(), batch=7)
    np.testing.assert_array_equal(answers.models[0].top[:, 0], [int(path.stem) for path in answers.paths])
    assert list(answers.paths) == [sample.path for sample in samples]
    np.testing.assert_array_equal(answers.labels, [sample.label for sample in samples])


def test_the_last_line_of_the_progress_comes_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predict([[shade]], load_folder(folder, CLASSES), RULE, Unreadable())
    assert capfd.readouterr().err.count("60/60") == 1


def test_what_is_kept_of_two_models(folder: Path) -> None:
    def other(images: np.ndarray) -> np.ndarray:
        return np.roll(3 * shade(images), 1, axis=1)

    samples = load_folder(folder, CLASSES)
    mine, last = predict([[shade, other]], samples, RULE, Unreadable()).models
    np.testing.assert_array_equal((mine.top[:, 0] + 1) % 64, last.top[:, 0])
    np.testing.assert_allclose(mine.sure, np.e / (np.e + 63), rtol=1e-6)
    np.testing.assert_allclose(mine.of_last, 1 / (np.e + 63), rtol=1e-6)
    np.testing.assert_array_equal(last.sure, last.of_last)


@pytest.mark.parametrize("lane", [0, 1])
def test_an_error_in_a_lane_ends_all(folder: Path, lane: int) -> None:
    calls = []

    def fail(images: np.ndarray) -> np.ndarray:
        raise IntvitError("the engine failed")

    def note(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return shade(images)

    lanes = [[note], [note]]
    lanes[lane] = [fail]
    with pytest.raises(IntvitError, match="the engine failed"):
        predict(lanes, load_folder(folder, CLASSES), RULE, Unreadable(), batch=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_a_single_lane_runs_in_the_callers_thread(folder: Path) -> None:
    seen = set()

    def note(images: np.ndarray) -> np.ndarray:
        seen.add(threading.current_thread())
        return shade(images)

    predict([[note]], load_folder(folder, CLASSES), RULE, Unreadable())
    assert seen == {threading.current_thread()}

"""Folders of pictures: order, labels, limits, and what is skipped or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.classes import Classes
from runtime.dataset import Unreadable, batches, load_folder
from runtime.errors import IntvitError
from runtime.manifest import Preprocess

CLASSES = Classes(("n00", "n01", "n02"), ("a", "b", "c"))
RULE = Preprocess(height=8, width=8, crop_pct=1.0, interpolation="nearest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path, format="PNG")


def test_order_labels_and_what_is_ignored(tmp_path: Path) -> None:
    for name in (
        "n02/b.png",
        "n02/a.JPEG",
        "0/z.jpg",
        "n01/.hidden.png",
        ".cache/x.png",
        "n01/deeper/y.png",
        "top.png",
    ):
        _save(tmp_path / name)
    (tmp_path / "n01/notes.txt").write_text("")
    found = load_folder(tmp_path, CLASSES)
    assert [(str(s.path.relative_to(tmp_path)), s.label) for s in found] == [
        ("0/z.jpg", 0),
        ("n02/a.JPEG", 2),
        ("n02/b.png", 2),
    ]


def test_limit_is_an_even_spread(tmp_path: Path) -> None:
    for i in range(10):
        _save(tmp_path / "n00" / f"{i}.png")
    assert [s.path.stem for s in load_folder(tmp_path, CLASSES, limit=3)] == ["0", "3", "6"]
    assert len(load_folder(tmp_path, CLASSES, limit=99)) == 10


def test_unknown_class_folder_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "n00/a.png")
    _save(tmp_path / "n0X/a.png")
    with pytest.raises(IntvitError, match="unknown class folder: 'n0X'") as caught:
        load_folder(tmp_path, CLASSES)
    assert caught.value.where == str(tmp_path / "n0X")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="no pictures") as caught:
        load_folder(tmp_path, CLASSES)
    assert caught.value.next == "give a folder DIR of DIR/<class>/*.jpg|png"
    _save(tmp_path / "a.png")
    with pytest.raises(IntvitError, match="no pictures") as caught:
        load_folder(tmp_path, CLASSES)
    assert caught.value.why == "1 lie in the folder itself, under no class"
    with pytest.raises(IntvitError, match="not an evaluation folder"):
        load_folder(tmp_path / "none", CLASSES)


def test_batches_keep_order_and_values(tmp_path: Path) -> None:
    for i in range(11):
        _save(tmp_path / f"n0{i % 3}" / f"{i:02d}.png", i)
    samples = load_folder(tmp_path, CLASSES)
    parts = list(batches(samples, RULE, Unreadable(), batch=4))
    assert [len(part.samples) for part in parts] == [4, 4, 3]
    assert [sample for part in parts for sample in part.samples] == samples
    values = np.concatenate([part.images[:, 0, 0, 0] for part in parts])
    np.testing.assert_allclose(values, [int(s.path.stem) / 255 for s in samples], rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), [s.label for s in samples])


def test_decoding_never_runs_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("runtime.dataset.load_image", lambda path, rule, out: started.append(path))
    for i in range(60):
        _save(tmp_path / "n00" / f"{i:02d}.png")
    stream = batches(load_folder(tmp_path, CLASSES), RULE, Unreadable(), batch=4)
    next(stream)
    assert len(started) <= 12
    stream.close()


def test_one_bad_picture_in_a_hundred_is_skipped_and_two_are_not(tmp_path: Path) -> None:
    for i in range(99):
        _save(tmp_path / "n00" / f"{i:03d}.png", i)
    (tmp_path / "n00/bad.jpg").write_text("no picture")
    bad = Unreadable()
    parts = list(batches(load_folder(tmp_path, CLASSES), RULE, bad, batch=10))
    assert sum(len(part.samples) for part in parts) == 99
    for part in parts:  # the row of the bad one is gone, and no other
        assert len(part.images) == len(part.labels) == len(part.samples)
        np.testing.assert_allclose(
            part.images[:, 0, 0, 0], [int(s.path.stem) / 255 for s in part.samples], rtol=1e-5, atol=1e-6
        )
    assert [path for path, _ in bad.files] == [str(tmp_path / "n00/bad.jpg")]
    (tmp_path / "n00/098.png").write_bytes(b"")
    with pytest.raises(IntvitError, match="2 of 100 pictures are unreadable") as caught:
        list(batches(load_folder(tmp_path, CLASSES), RULE, Unreadable()))
    assert "bad.jpg" in caught.value.where and "098.png" in caught.value.where


def test_a_link_to_nothing_is_an_unreadable_picture(tmp_path: Path) -> None:
    for i in range(199):
        _save(tmp_path / "n00" / f"{i:03}.png", i)
    (tmp_path / "n00/lost.png").symlink_to(tmp_path / "moved.png")
    unreadable = Unreadable()
    samples = load_folder(tmp_path, CLASSES)
    assert len(samples) == 200
    assert sum(len(batch.samples) for batch in batches(samples, RULE, unreadable)) == 199
    assert unreadable.files == [(str(tmp_path / "n00/lost.png"), "No such file or directory")]


def test_none_left(tmp_path: Path) -> None:
    (tmp_path / "n00").mkdir()
    (tmp_path / "n00/bad.jpg").write_text("no picture")
    with pytest.raises(IntvitError, match="1 of 1"):
        list(batches(load_folder(tmp_path, CLASSES), RULE, Unreadable()))

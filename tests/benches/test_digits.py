"""The reference model and its data: a split that never moves, one way to make a picture, weights as described."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benches import digits
from runtime.errors import IntvitError

ASSETS = Path(__file__).resolve().parents[2] / "calib" / "assets"
WEIGHTS = ASSETS / "vit_digits.safetensors"
# sha256 of the 450 test indices as little-endian int64: the split of version 0.1.0, which must never change.
TEST_SPLIT = "ae4d34944e7f16d464977995602ace67bc4c4bd4f09531b7c41a6432d0a12180"


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((ASSETS / "vit_digits.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "eval"
    assert digits.export(out)
    return out


def snapshot(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_split_is_disjoint_complete_and_fixed() -> None:
    train, _ = digits.split_indices("train")
    test, labels = digits.split_indices("test")
    assert len(train) == 1347
    assert len(test) == 450
    assert sorted([*train, *test]) == list(range(1797))
    assert hashlib.sha256(test.astype("<i8").tobytes()).hexdigest() == TEST_SPLIT
    counts = np.bincount(labels, minlength=10)
    assert counts.min() >= 43
    assert counts.max() <= 47


def test_picture_spans_black_to_white_and_is_grey() -> None:
    scan = np.zeros((8, 8))
    scan[2:6, 2:6] = 16
    picture = np.asarray(digits.to_picture(scan))
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert picture.min() == 0
    assert picture.max() == 255
    assert (picture[..., :1] == picture).all()


def test_folder_holds_the_test_split_and_nothing_else(folder: Path) -> None:
    indices, labels = digits.split_indices("test")
    pictures, _ = digits.load_split("test")
    names = {f"{label}/{index}.png" for index, label in zip(indices, labels, strict=True)}
    assert set(snapshot(folder)) == names
    for row in (0, 123, 449):
        with Image.open(folder / str(labels[row]) / f"{indices[row]}.png") as image:
            assert (np.asarray(image) == pictures[row]).all()
    assert [path.name for path in folder.parent.iterdir()] == ["eval"], "a temporary folder was left behind"


def test_a_complete_folder_is_left_alone_and_a_damaged_one_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "eval"
    assert digits.export(out)
    before = snapshot(out)
    assert not digits.export(out)
    assert snapshot(out) == before
    victim = next(out.rglob("*.png"))
    victim.write_bytes(b"not a picture")
    next(path for path in out.rglob("*.png") if path != victim).unlink()
    assert digits.export(out)
    assert snapshot(out).keys() == before.keys()
    assert not digits.export(out)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(IntvitError, match=r"thesis\.tex"):
        digits.export(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rename(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "rename", no_rename)
    with pytest.raises(OSError, match="no space"):
        digits.export(tmp_path / "eval")
    assert list(tmp_path.iterdir()) == []


def test_train_export_shares_no_picture_file_with_test(tmp_path: Path, folder: Path) -> None:
    assert digits.export(tmp_path / "train", "train")
    train = {path.name for path in (tmp_path / "train").rglob("*.png")}
    assert len(train) == 1347
    assert not train & {path.name for path in folder.rglob("*.png")}


def test_weights_are_small_and_are_those_the_card_describes(card: dict) -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) < 1_500_000
    assert hashlib.sha256(data).hexdigest() == card["sha256"]
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["test_top1"] >= 97.0


def test_weights_load_strictly_and_score_as_stated(card: dict, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    assert card["timm_class"] == "VisionTransformer"
    model = VisionTransformer(**card["kwargs"]).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in files]).astype(np.float32) / 255
    labels = np.array([int(path.parent.name) for path in files])
    mean, std = (np.array(card["pretrained_cfg"][key], np.float32) for key in ("mean", "std"))
    images = torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = model(images).argmax(1).numpy()
    top1 = float((found == labels).mean() * 100)
    assert top1 >= 97.0
    assert top1 == pytest.approx(card["test_top1"], abs=0.3)


def test_the_script_describes_the_committed_model(card: dict) -> None:
    reference = pytest.importorskip("benches.train_reference")
    fresh = reference.describe(WEIGHTS.read_bytes(), card["test_top1"], reference.SEED, reference.EPOCHS)
    fresh["train"].pop("versions")
    committed = {**card, "train": {key: value for key, value in card["train"].items() if key != "versions"}}
    assert json.loads(json.dumps(fresh)) == committed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_again_gives_the_committed_accuracy(card: dict) -> None:
    reference = pytest.importorskip("benches.train_reference")
    assert reference.top1(reference.train()) == pytest.approx(card["test_top1"], abs=1.0)

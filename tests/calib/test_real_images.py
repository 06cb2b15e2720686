"""Pictures of a folder: found, spread evenly, put through the network's own preprocessing; bad ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calib.errors import IntvitError
from calib.models import LoadedModel, ModelSpec, describe
from calib.real_images import list_images, load_images
from tests.calib.networks import complete


@pytest.fixture
def spec(digits: LoadedModel) -> ModelSpec:
    return digits.spec


def grey(path: Path, value: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)
    return path


def values(images: torch.Tensor, spec: ModelSpec) -> list[int]:
    return (spec.denormalise(images).mean((1, 2, 3)) * 255).round().int().tolist()


def test_pictures_are_found_below_and_sorted(tmp_path: Path) -> None:
    wanted = [grey(tmp_path / name, 0) for name in ("a.PNG", "b/one.jpg", "b/two.jpeg", "c/d/e.png")]
    (tmp_path / "labels.txt").write_text("no picture")
    grey(tmp_path / ".hidden.png", 0)
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == sorted(wanted)


def test_no_folder_and_no_pictures(tmp_path: Path, spec: ModelSpec) -> None:
    for folder, what in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no pictures")):
        with pytest.raises(IntvitError, match=what) as caught:
            load_images(folder, spec, 4)
        assert str(folder) in caught.value.where and caught.value.next
    with pytest.raises(IntvitError, match="no such folder"):
        list_images(grey(tmp_path / "a.png", 0))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (3, [0, 30, 60]),
        (5, [0, 20, 40, 60, 80]),
        (10, list(range(0, 100, 10))),
        (99, list(range(0, 100, 10))),
    ],
)
def test_spread_evenly_over_the_sorted_list(tmp_path: Path, spec: ModelSpec, count: int, expected: list[int]) -> None:
    for index in range(10):
        grey(tmp_path / f"{index}.png", index * 10)
    assert values(load_images(tmp_path, spec, count), spec) == expected


def test_every_class_folder_is_visited(tmp_path: Path, spec: ModelSpec) -> None:
    for label in range(4):
        for index in range(25):
            grey(tmp_path / f"n{label}" / f"{index:02d}.png", label * 50)
    assert values(load_images(tmp_path, spec, 8), spec) == [0, 0, 50, 50, 100, 100, 150, 150]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "RGB"])
def test_other_modes_become_rgb(tmp_path: Path, spec: ModelSpec, mode: str) -> None:
    grey(tmp_path / "a.png", 255, mode=mode)
    images = load_images(tmp_path, spec, 1)
    assert images.shape == (1, 3, 32, 32) and images.dtype == torch.float32
    assert torch.allclose(images, torch.ones_like(images), atol=1e-5)


def test_other_sizes_are_resized_and_cropped_in_the_middle(tmp_path: Path, spec: ModelSpec) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    images = spec.denormalise(load_images(tmp_path, spec, 1))
    assert images.shape == (1, 3, 32, 32)
    assert float(images[..., 4:-4].min()) == pytest.approx(200 / 255, abs=0.01)


def test_preprocessing_is_the_specs(tmp_path: Path) -> None:
    spec = describe("deit_t")
    grey(tmp_path / "a.png", 255, (300, 400))
    images = load_images(tmp_path, spec, 1)
    assert images.shape == (1, 3, 224, 224)
    expected = torch.tensor([(1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)])
    assert torch.allclose(images[0, :, 100, 100], expected, atol=1e-4)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_unreadable_picture_is_named(tmp_path: Path, spec: ModelSpec, damage: str, suffix: str) -> None:
    grey(tmp_path / "a.png", 0)
    path = tmp_path / f"b{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    raw = path.read_bytes()
    path.write_bytes({"text": b"not a picture", "empty": b"", "truncated": raw[: len(raw) // 2]}[damage])
    with pytest.raises(IntvitError, match="cannot read a calibration picture") as caught:
        load_images(tmp_path, spec, 2)
    assert complete(caught.value).where == str(path)


def test_a_picture_of_16_bits_is_not_read_as_white(tmp_path: Path, spec: ModelSpec) -> None:
    Image.fromarray(np.full((32, 32), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(IntvitError, match="cannot read a calibration picture") as caught:
        load_images(tmp_path, spec, 1)
    assert "more than 8 bits" in caught.value.why

"""The contact sheet: every picture in its place, near square, a readable PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calib.preview import contact_sheet


def sheet(images: torch.Tensor, path: Path, **kwargs: int) -> np.ndarray:
    contact_sheet(images, path, **kwargs)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (8, (2, 4)), (9, (3, 3)), (32, (4, 8)), (50, (4, 8))]
)
def test_size(tmp_path: Path, count: int, shape: tuple[int, int]) -> None:
    made = sheet(torch.rand(count, 3, 8, 8), tmp_path / "a.png", tile=10)
    assert made.shape == (shape[0] * 12, shape[1] * 12, 3)


def test_pictures_stand_in_reading_order_with_their_colours(tmp_path: Path) -> None:
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.4, 0.6], [-3.0, 9.0, 0.5]])
    made = sheet(colours[:, :, None, None].expand(5, 3, 16, 16).half(), tmp_path / "a.png", tile=20)
    for index, colour in enumerate(colours):
        row, column = divmod(index, 3)
        centre = made[row * 22 + 11, column * 22 + 11]
        assert np.abs(centre - (colour.clamp(0, 1) * 255).numpy()).max() <= 1
    assert made[22 + 11, 2 * 22 + 11].tolist() == [255, 255, 255]


def test_at_most_so_many(tmp_path: Path) -> None:
    images = torch.zeros(8, 3, 4, 4)
    images[4:] = 1
    assert sheet(images, tmp_path / "a.png", most=4, tile=6)[1:7, 1:7].max() == 0
    assert sheet(images, tmp_path / "b.png", most=4, tile=6).shape == (16, 16, 3)


def test_same_images_same_bytes(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 8, 8)
    contact_sheet(images, tmp_path / "a.png")
    contact_sheet(images, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

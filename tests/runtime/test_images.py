"""Preprocessing against timm's own evaluation transform, and pictures that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.errors import IntvitError
from runtime.images import load_image, preprocess, resized_size
from runtime.manifest import Preprocess


def _rule(
    height: int,
    width: int,
    crop: float,
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic",
    mode: Literal["center", "squash", "border"] = "center",
) -> Preprocess:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocess(
        height=height, width=width, crop_pct=crop, crop_mode=mode, interpolation=interpolation, mean=mean, std=std
    )


def _picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (max(2, height // 7), max(2, width // 7), 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def _timm(picture: Image.Image, rule: Preprocess) -> np.ndarray:
    from timm.data import create_transform

    transform = create_transform(
        (3, rule.height, rule.width),
        is_training=False,
        interpolation=rule.interpolation,
        mean=rule.mean,
        std=rule.std,
        crop_pct=rule.crop_pct,
        crop_mode=rule.crop_mode,
    )
    return np.asarray(transform(picture.convert("RGB")))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([(64, 64), (56, 56), (33, 33), (48, 64)]),
    st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.sampled_from(["center", "squash", "border"]),
)
@settings(max_examples=120, deadline=None)
def test_exactly_timm(
    width: int,
    height: int,
    side: tuple[int, int],
    crop: float,
    how: Literal["nearest", "bilinear", "bicubic"],
    mode: Literal["center", "squash", "border"],
) -> None:
    rule = _rule(*side, crop, how, mode)
    picture = _picture(width, height)
    if max(picture.size) > 40 * min(picture.size):
        picture = picture.resize((50, 60))
    found = preprocess(picture, rule)
    assert found.dtype == np.float32 and found.shape == (3, *side) and found.flags.c_contiguous
    np.testing.assert_allclose(found, _timm(picture, rule), rtol=0, atol=1e-6)


def test_real_size_and_other_modes() -> None:
    rule = _rule(224, 224, 0.9)
    for mode in ("RGB", "L", "CMYK", "P", "RGBA", "1"):
        picture = _picture(500, 375, mode)
        np.testing.assert_allclose(preprocess(picture, rule), _timm(picture, rule), rtol=0, atol=1e-6)


def test_normalised_as_timm_does() -> None:
    """Nothing to resize: every byte through every channel, within float32's rounding."""
    rule = _rule(16, 16, 1.0)
    picture = Image.fromarray(np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1))
    np.testing.assert_allclose(preprocess(picture, rule), _timm(picture, rule), rtol=0, atol=1e-6)


def test_written_where_it_is_told() -> None:
    rule, picture = _rule(8, 8, 0.9), _picture(30, 20)
    batch = np.full((3, 3, 8, 8), np.nan, np.float32)
    preprocess(picture, rule, batch[1])
    np.testing.assert_array_equal(batch[1], preprocess(picture, rule))
    assert np.isnan(batch[[0, 2]]).all()


def test_sizes_by_hand() -> None:
    rule = _rule(224, 224, 0.9)  # floor(224 / 0.9) = 248
    assert resized_size(500, 375, rule) == (330, 248)  # int(248 * 500 / 375) = 330
    assert resized_size(375, 500, rule) == (248, 330)
    assert resized_size(248, 248, rule) == (248, 248)
    assert resized_size(500, 375, _rule(224, 224, 0.9, mode="squash")) == (248, 248)
    assert resized_size(500, 375, _rule(224, 224, 0.9, mode="border")) == (248, 186)  # 375 / (500 / 248)


def test_the_border_has_the_colour_of_the_mean() -> None:
    """A white strip four times as wide as high: what the square lacks above and below is black after normalisation."""
    rule = _rule(8, 8, 1.0, mode="border")
    found = preprocess(Image.new("RGB", (80, 20), "white"), rule)
    assert np.abs(found[:, [0, 1, 2, 5, 6, 7]]).max() < 0.5 / 255 / 0.224 + 1e-6  # the mean, rounded to a byte
    assert (found[:, 3:5] > 2).all()


def test_files(tmp_path: Path) -> None:
    rule = _rule(8, 8, 1.0)
    picture = _picture(20, 30)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", rule), preprocess(picture, rule))
    picture.save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", rule).shape == (3, 8, 8)


def test_a_picture_of_16_bits_is_not_read_as_white(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    with pytest.raises(IntvitError, match="cannot read the image") as caught:
        load_image(tmp_path / "deep.png", _rule(8, 8, 1.0))
    assert "more than 8 bits" in caught.value.why


@pytest.mark.parametrize("kind", ["text", "empty", "truncated png", "truncated jpg", "gif", "missing", "folder"])
def test_no_picture_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.png" if "png" in kind else "a.jpg")
    picture = _picture(100, 80)
    if kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind.startswith("truncated"):
        picture.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "gif":
        picture.save(path, format="GIF")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(IntvitError, match="cannot read the image") as caught:
        load_image(path, _rule(8, 8, 1.0))
    assert caught.value.where == str(path) and caught.value.why


@pytest.mark.parametrize("error", [IndexError("index out of range"), struct.error("short"), MemoryError()])
def test_whatever_pillow_raises_names_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An empty iCCP chunk behind the pixels is an IndexError, a header that claims too much a MemoryError."""

    def broken(*_: object) -> None:
        raise error

    _picture(20, 30).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "resize", broken)
    with pytest.raises(IntvitError, match="cannot read the image") as caught:
        load_image(tmp_path / "a.png", _rule(8, 8, 1.0))
    assert caught.value.where.endswith("a.png") and caught.value.why


def test_a_profile_of_no_bytes_behind_the_pixels(tmp_path: Path) -> None:
    _picture(20, 30).save(tmp_path / "a.png")
    whole, kind = (tmp_path / "a.png").read_bytes(), b"iCCP"
    chunk = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    at = whole.rindex(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    try:
        load_image(tmp_path / "a.png", _rule(8, 8, 1.0))  # a Pillow that mends it reads the picture
    except IntvitError as error:
        assert error.what == "cannot read the image"


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(IntvitError, match="cannot read the image"):
        load_image(tmp_path / "a.png", _rule(8, 8, 1.0))

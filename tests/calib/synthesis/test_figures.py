"""Figures are whole PNGs of a sensible size, or nothing at all; the curves hold the numbers of the history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from timm.models.swin_transformer import window_partition

from calib.synthesis import figures
from calib.synthesis.figures import attention_maps, confidence_histogram, head_agreement, loss_curves
from calib.synthesis.measures import Measures, head_maps
from calib.synthesis.priors.attention_prior import layouts
from calib.taps import AttentionTaps
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, spec_of, tiny_swin, tiny_vit

MEASURES = Measures(0.75, [0.0, 0.4, 0.9, 1.0], [1, 2, 3, 4], [0.2, 0.4, 0.3], [1.0, 1.0, 1.0], 5.0)
OTHER = Measures(None, [0.0] * 4, [1, 2, 3, 4], [0.1, 0.5, 0.6], [1.0, 1.0, 1.0], 5.0)


def rows(first: int, steps: int, **terms: float) -> list[dict[str, float]]:
    """A group's history, each term falling by a tenth a step."""
    return [
        {"batch": first, "step": step, **{name: value - 0.1 * step for name, value in terms.items()}}
        for step in range(1, steps + 1)
    ]


MIXED = rows(0, 5, heads=1.0, **{"class": 3.0}, total=4.0) + rows(4, 3, **{"class": 2.0}, tv=0.5, total=2.5)


def opened(path: Path) -> np.ndarray:
    """The picture as (rows, columns, 3); fails unless it is a whole PNG with a white rim and something in it."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert 250 <= pixels.shape[0] <= 1600 and 400 <= pixels.shape[1] <= 2400
    assert (pixels[0] == 255).all() and (pixels[:, 0] == 255).all()
    assert (pixels < 128).any()
    return pixels


def vit_maps(path: Path) -> None:
    model = tiny_vit()
    before, after = torch.rand((2, 3, VIT_SIDE, VIT_SIDE), generator=torch.Generator().manual_seed(0))
    attention_maps(model, spec_of(model, VIT_SIDE), before, after.half(), 1, path)


DRAWN: dict[str, Callable[[Path], None]] = {
    "losses": lambda path: loss_curves(MIXED, path),
    "confidence": lambda path: confidence_histogram(MEASURES, path),
    "heads": lambda path: head_agreement(OTHER, MEASURES, path),
    "attention": vit_maps,
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_whole_png_and_nothing_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    DRAWN[name](path)
    first = path.read_bytes()
    opened(path)
    DRAWN[name](path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", DRAWN)
def test_a_failing_write_leaves_what_was_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(figure: Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        DRAWN[name](tmp_path / "new.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.png").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        DRAWN[name](tmp_path / "old.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("name", DRAWN)
def test_the_last_name_is_given_by_renaming(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Path, target: Path) -> None:
        opened(source)
        raise OSError("no renaming")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="no renaming"):
        DRAWN[name](tmp_path / "new.png")
    assert list(tmp_path.iterdir()) == []


def test_no_global_state(tmp_path: Path) -> None:
    assert "pyplot" not in Path(figures.__file__).read_text("utf-8")
    settings = dict(matplotlib.rcParams)
    for name, draw in DRAWN.items():
        draw(tmp_path / f"{name}.png")
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize("terms", [1, 2, 4, 7])
def test_any_number_of_terms_and_steps(terms: int, steps: int, tmp_path: Path) -> None:
    loss_curves(rows(0, steps, **{f"term {index}": 1.0 for index in range(terms)}), tmp_path / "a.png")
    opened(tmp_path / "a.png")


def test_nothing_to_show_writes_nothing(tmp_path: Path) -> None:
    loss_curves([], tmp_path / "losses.png")
    confidence_histogram(OTHER, tmp_path / "confidence.png")
    assert list(tmp_path.iterdir()) == []


def test_mixtures_skip_the_terms_a_group_lacks() -> None:
    curves = figures.term_curves(MIXED)
    assert list(curves) == ["heads", "class", "tv", "total"]
    assert [len(values) for values in curves.values()] == [1, 2, 1, 2]
    np.testing.assert_allclose(curves["heads"], [[0.9, 0.8, 0.7, 0.6, 0.5]])
    np.testing.assert_allclose(
        curves["class"], [[2.9, 2.8, 2.7, 2.6, 2.5], [1.9, 1.8, 1.7, np.nan, np.nan]], rtol=1e-12
    )


def test_steps_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    history = [*rows(0, 4, total=1.0), {"batch": 0, "step": 5, "total": float("inf")}]
    assert np.isnan(figures.term_curves(history)["total"][0, 4])
    loss_curves(history, tmp_path / "a.png")
    opened(tmp_path / "a.png")


@pytest.mark.parametrize(("block", "query"), [(0, None), (1, None), (1, 0), (3, 48)])
def test_attention_in_windows(block: int, query: int | None, tmp_path: Path) -> None:
    """Plain and shifted windows, whole and wrapped; sixteen heads in the second stage, twelve of them shown."""
    model = tiny_swin(num_heads=(2, 16))
    before, after = torch.rand((2, 3, SWIN_SIDE, SWIN_SIDE), generator=torch.Generator().manual_seed(0))
    attention_maps(model, spec_of(model, SWIN_SIDE), before, after, block, tmp_path / "a.png", query)
    opened(tmp_path / "a.png")


@pytest.mark.parametrize(("model", "side"), [(tiny_vit(reg_tokens=2), VIT_SIDE), (tiny_swin(), SWIN_SIDE)])
def test_head_maps(model: Any, side: int) -> None:
    """Queries all over every block, each one's window found by cutting the numbered grid as the block cuts tokens."""
    spec, pixel = spec_of(model, side), torch.rand((3, side, side), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), AttentionTaps(model, ("queries",)) as taps:
        model(spec.normalise(pixel[None]))
    for block, layout in enumerate(layouts(model)):
        rows, columns = layout.grid
        cut = numbers = torch.arange(rows * columns).view(1, rows, columns, 1)
        if layout.window:
            rolled = torch.roll(numbers, shifts=(-layout.shift[0], -layout.shift[1]), dims=(1, 2))
            cut = window_partition(rolled, layout.window)
        for query in range(0, rows * columns, 3 if columns < 10 else 37):
            window, token = (cut.reshape(len(cut), -1) == query).nonzero()[0].tolist()
            maps = head_maps(model, spec, pixel, block, query)
            assert maps.dtype == torch.float32 and maps.shape == (layout.heads, *(layout.window or layout.grid))
            for head in range(layout.heads):
                q, k = (kept[block][window, head, taps.prefix_tokens :] for kept in (taps.queries, taps.keys))
                scores = k @ q[token]
                expected = (scores - scores.min()) / (scores.max() - scores.min())
                torch.testing.assert_close(maps[head].flatten(), expected, rtol=0, atol=1e-5)


def test_head_maps_on_a_grid_that_is_not_square() -> None:
    model = tiny_vit(img_size=(32, 48))
    maps = head_maps(model, spec_of(model, VIT_SIDE), torch.rand(3, 32, 48), 1, 23)
    assert maps.shape == (2, 4, 6)


@pytest.mark.parametrize("query", [-1, 16])
def test_head_maps_refuses_a_patch_outside(query: int) -> None:
    model = tiny_vit()
    with pytest.raises(ValueError, match=r"0\.\.15"):
        head_maps(model, spec_of(model, VIT_SIDE), torch.rand(3, VIT_SIDE, VIT_SIDE), 0, query)

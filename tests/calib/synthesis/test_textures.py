"""Textures and backgrounds: what each promises of its statistics, on any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.synthesis import textures
from calib.synthesis.textures import (
    DEAD_LEAVES,
    SCENE,
    Style,
    background,
    fractal,
    log_uniform,
    mixed,
    palette,
    texture,
)

SIZE = (64, 96)
STYLES = (SCENE, DEAD_LEAVES)


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_log_uniform_gives_as_many_of_each_order_of_magnitude() -> None:
    source = rng()
    drawn = np.array([log_uniform(source, 0.01, 100.0) for _ in range(4000)])
    assert drawn.min() >= 0.01 and drawn.max() <= 100
    shares = np.histogram(np.log10(drawn), 4, (-2, 2))[0] / len(drawn)
    assert np.abs(shares - 0.25).max() < 0.03


def test_the_first_opponent_direction_is_grey() -> None:
    assert (mixed(np.array([0.5, 0.0, 0.0])) == 0.5).all()
    image = mixed(rng().standard_normal((3, 4, 5)))
    assert image.shape == (3, 4, 5) and image.dtype == np.float32


@given(st.sampled_from(STYLES), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_colours_can_be_shown(style: Style, count: int, strong: float, seed: int) -> None:
    colours = palette(rng(seed), style, count, strong)
    assert colours.shape == (count, 3) and colours.min() >= 0.02 and colours.max() <= 0.98


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_fractal_noise_falls_as_it_should(exponent: float) -> None:
    """most=1: the same in all directions. The slope of log amplitude over log frequency, from 3 to 24 cycles."""
    fields = [fractal(rng(seed), (64, 64), exponent, most=1.0) for seed in range(40)]
    amplitude = np.sqrt(np.mean([np.abs(np.fft.fft2(field)) ** 2 for field in fields], axis=0))
    cycles = np.fft.fftfreq(64) * 64
    radius = np.hypot(cycles[:, None], cycles)
    kept = (radius >= 3) & (radius <= 24)
    assert np.polyfit(np.log(radius[kept]), np.log(amplitude[kept]), 1)[0] == pytest.approx(-exponent, abs=0.05)
    assert np.mean(fields) == pytest.approx(0, abs=1e-4)
    assert [field.std() for field in fields] == pytest.approx([1] * 40, rel=1e-4)


@given(st.sampled_from(STYLES), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_size(style: Style, size: tuple[int, int], seed: int) -> None:
    field, behind = texture(rng(seed), size), background(rng(seed), style, size)
    assert field.shape == size and np.abs(field).max() < 20
    assert behind.shape == (3, *size) and np.isfinite(behind).all()


def test_textures_are_tiles() -> None:
    """The step across the border is like any other step: leaves are cut across it."""
    inside, across = [], []
    for seed in range(30):
        field = texture(rng(seed), SIZE)
        inside.append(np.abs(np.diff(field, axis=1)).mean())
        across.append(np.abs(field[:, 0] - field[:, -1]).mean())
    assert np.mean(across) < 1.3 * np.mean(inside)


def test_much_of_the_backgrounds_is_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in photographs, with their sky and walls: patches of 16 x 16 whose brightness deviates by less than 0.01."""

    def smooth() -> float:
        images = np.stack([background(rng(seed), SCENE, (128, 128)).mean(0) for seed in range(40)])
        patches = images.reshape(40, 8, 16, 8, 16).transpose(0, 1, 3, 2, 4).reshape(-1, 256)
        return float((patches.std(1) < 0.01).mean())

    mixture = smooth()
    monkeypatch.setattr(textures, "VIEWS", 0.0)
    monkeypatch.setattr(textures, "ROUGH", 1.0)
    assert mixture > 0.2 and mixture > 2 * smooth()


def test_ground_lies_below_the_sky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower edge has more texture than the upper one, and skies are lighter than grounds."""
    monkeypatch.setattr(textures, "VIEWS", 1.0)
    images = np.stack([background(rng(seed), SCENE, (96, 96)).mean(0) for seed in range(60)])
    steps = np.abs(np.diff(images, axis=2)).mean((0, 2))
    assert steps[-8:].mean() > 2 * steps[:8].mean()
    assert images[:, :8].mean() > images[:, -8:].mean()


def test_dead_leaves_have_a_texture_behind_them() -> None:
    images = np.stack([background(rng(seed), DEAD_LEAVES, (64, 64)).mean(0) for seed in range(20)])
    patches = images.reshape(20, 4, 16, 4, 16).transpose(0, 1, 3, 2, 4).reshape(-1, 256)
    assert (patches.std(1) < 0.004).mean() < 0.05

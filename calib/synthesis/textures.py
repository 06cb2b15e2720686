"""Colours, textures and backgrounds of the images drawn by rule (procedural.py), as numpy arrays.

Brightness is 0 (black) to 1 (white), linear steps as they are displayed; results may go a little beyond, the camera
clips. Every number without a source is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Random = np.random.Generator

# Brightness, yellow to blue, green to red: the directions in which colours in nature vary independently, most in the
# first (Ruderman, Cronin and Chiao, Statistics of cone responses to natural images, JOSA A 1998), here in RGB.
OPPONENT = np.array([[1, 1, 1], [1, 0.4, -1.4], [1, -1, 0.2]], np.float32)
VIEWS, ROUGH = 0.45, 0.15  # shares of the backgrounds: ground under a sky, textures; the rest are surfaces


@dataclass(frozen=True)
class Style:
    """A kind of picture.

    Attributes:
        textures, things: shares of the pictures that are a texture, or one large thing; the rest are clutter. leaves:
        fewest and most of it. spread: deviations of colours along ``OPPONENT``; vivid: ends of the range of saturated
        ones. contrast: most that a leaf's texture has. tint: strength of its colours. composed: leaves repeat, lie
        upright or are plain, ground and sky or a wall are behind them, and the light is as it comes; else every leaf
        is alone, at any angle and textured, a texture is behind, and contrast is levelled.
    """

    textures: float
    things: float
    leaves: tuple[int, int]
    spread: tuple[float, float, float]
    vivid: tuple[float, float]
    contrast: float
    tint: float
    composed: bool


SCENE = Style(0.05, 0.45, (4, 300), (0.25, 0.05, 0.025), (0.3, 0.8), 0.25, 1.0, composed=True)
DEAD_LEAVES = Style(0.15, 0.15, (50, 900), (0.2, 0.07, 0.04), (0.4, 0.95), 0.15, 1.5, composed=False)


def log_uniform(rng: Random, low: float, high: float) -> float:
    """A number whose logarithm is uniform: as many of every order of magnitude."""
    return float(low * (high / low) ** rng.random())


def mixed(parts: npt.NDArray[np.floating]) -> Array:
    """Amounts (3, ...) of the opponent directions, as RGB (3, ...). einsum, since BLAS's sums depend on its threads."""
    return np.asarray(np.einsum("oc,o...->c...", OPPONENT, parts), np.float32)


def palette(rng: Random, style: Style, count: int, strong: float) -> Array:
    """Colours (count, 3): spread along ``OPPONENT`` around a mean, or with chance ``strong`` saturated, of any hue."""
    spread = np.array(style.spread, np.float32) * np.array([1, *[log_uniform(rng, 0.3, 1.6)] * 2], np.float32)
    mean = rng.uniform(0.25, 0.6) + rng.normal(0, 0.04, 3)
    colours = mean + mixed(rng.standard_normal((3, count)) * spread[:, None]).T
    hues = rng.random((count, 3))
    hues = (hues - hues.min(1, keepdims=True)) / np.ptp(hues, 1)[:, None] * rng.uniform(*style.vivid, (count, 1))
    chosen = np.where(rng.random((count, 1)) < strong, 0.1 + 0.9 * hues, colours)
    return np.asarray(chosen.clip(0.02, 0.98), np.float32)


def fractal(rng: Random, size: tuple[int, int], exponent: float, most: float = 3.0) -> Array:
    """Gaussian noise (H, W) of amplitude 1/f^exponent, mean 0, deviation 1, drawn out along one direction; periodic.

    most: how many times longer than wide its features are at the most.
    """
    down, right = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    angle, stretch = rng.uniform(0, np.pi), log_uniform(rng, 1.0, most)
    along, across = down * np.sin(angle) + right * np.cos(angle), down * np.cos(angle) - right * np.sin(angle)
    radius = np.hypot(along * stretch, across).astype(np.float32)
    radius[0, 0] = np.inf
    noise = rng.standard_normal((2, *radius.shape), np.float32)
    field = np.fft.irfft2((noise[0] + 1j * noise[1]) * radius ** np.float32(-exponent), size)
    return np.asarray(field / max(float(field.std()), 1e-12), np.float32)


def texture(rng: Random, size: tuple[int, int]) -> Array:
    """A texture (H, W) around 0, periodic: 1/f noise, as it is or in folds or patches, or a grating, or checks."""
    kind = rng.random()
    if kind < 0.65:
        noise = fractal(rng, size, rng.uniform(0.5, 2.0), 6.0)
        if kind < 0.15:
            return np.asarray(2 * np.abs(noise) - np.float32(1.6))
        return np.asarray(np.tanh(3 * noise) if kind < 0.25 else noise.clip(-3, 3))
    cycles = np.array(size) / min(size) * log_uniform(rng, 3.0, max(4.0, min(min(size) / 5, 40.0)))
    angle, sharpness = rng.uniform(0, np.pi), log_uniform(rng, 0.5, 6.0)
    bend = np.float32(rng.uniform(0, 2.5) if rng.random() < 0.6 else 0) * fractal(rng, size, 2.0)
    wave = _wave(size, cycles, angle, bend)
    if kind > 0.88:
        wave = wave * _wave(size, cycles, angle + np.pi / 2, bend)
    return np.asarray(np.tanh(np.float32(sharpness) * wave))


def _wave(size: tuple[int, int], cycles: npt.NDArray[np.floating], angle: float, bend: Array) -> Array:
    """A sine wave (H, W) of a whole number of cycles down and across, its phase shifted by ``bend``."""
    turns = np.rint(cycles * [np.sin(angle), np.cos(angle)])
    down, right = (np.arange(n) * (2 * np.pi * t / n) for n, t in zip(size, turns, strict=True))
    return np.asarray(np.sin((down[:, None] + right[None]).astype(np.float32) + bend), np.float32)


def colour_texture(rng: Random, style: Style, size: tuple[int, int], exponent: float, strength: float) -> Array:
    """A colour texture (3, H, W): a field of its own for each opponent direction, amplitude 1/f^exponent."""
    parts = np.stack([fractal(rng, size, exponent) for _ in OPPONENT])
    if rng.random() < 0.4:
        parts[0] = texture(rng, size)
    parts *= (strength * rng.uniform(0.3, 1.2, 3) * np.array(style.spread, np.float32))[:, None, None]
    return np.asarray(palette(rng, style, 1, 1 / 30)[0][:, None, None] + mixed(parts))


def background(rng: Random, style: Style, size: tuple[int, int]) -> Array:
    """What is behind everything (3, H, W): ground under a sky, a smooth surface, or a texture."""
    kind = rng.random()
    if not style.composed or VIEWS <= kind < VIEWS + ROUGH:
        return colour_texture(rng, style, size, rng.uniform(1.2, 2.0), rng.uniform(0.2, 1.0))
    return _view(rng, style, size) if kind < VIEWS else _surface(rng, style, size)


def _surface(rng: Random, style: Style, size: tuple[int, int]) -> Array:
    """A surface (3, H, W) of one colour, light falling off over it; half of them have a faint texture."""
    down, right = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    slope = rng.normal(0, 0.12, 2).astype(np.float32)
    image = _plain(rng, style)[:, None, None] * (1 + slope[0] * down[:, None] + slope[1] * right[None])
    if rng.random() < 0.5:
        image = image + np.float32(log_uniform(rng, 0.005, 0.12)) * fractal(rng, size, rng.uniform(0.8, 2.4), 6.0)
    return np.asarray(image, np.float32)


def _view(rng: Random, style: Style, size: tuple[int, int]) -> Array:
    """Ground under a sky (3, H, W), as a level camera sees it: the ground's texture is finer towards the horizon."""
    height, width = size
    horizon = np.float32(rng.uniform(0.1, 0.8) * height)
    below = np.arange(height, dtype=np.float32) - horizon
    above, beside = _sky(rng)
    share = (1 + below / horizon).clip(0, 1)
    sky = np.repeat((above[:, None] + (beside - above)[:, None] * share)[:, :, None], width, 2)
    if rng.random() < 0.35:
        cloud = (fractal(rng, size, rng.uniform(1.4, 2.0), 4.0) + np.float32(rng.uniform(-1.5, 1))).clip(0, 2) / 2
        sky += cloud * (np.float32(rng.uniform(0.8, 1.0)) - sky)
    colour = palette(rng, style, 1, 1 / 20)[0] if rng.random() < 0.7 else _plain(rng, style)
    field = texture(rng, size) if rng.random() < 0.5 else fractal(rng, size, rng.uniform(0.3, 1.6), 6.0)
    nearest = np.float32(rng.uniform(0.05, 0.6) * height)
    distance = (height + nearest) / (below.clip(0) + nearest)  # in units of that at the lower edge, for a plane
    rows = (distance * np.float32(rng.uniform(0.5, 2.0) * height)).astype(np.int64) % height
    columns = ((np.arange(width) - width // 2) * distance[:, None]).astype(np.int64) % width
    strength = np.float32(log_uniform(rng, 0.02, 0.3)) / np.sqrt(distance)
    light = 1 + np.float32(rng.normal(0, 0.15)) * below / height
    ground = colour[:, None, None] * light[:, None] + field[rows[:, None], columns] * strength[:, None]
    soft = np.float32(rng.choice([1, 1, 6]))
    cover = (below / soft + np.float32(0.5)).clip(0, 1)[:, None]
    return np.asarray(sky * (1 - cover) + ground * cover, np.float32)


def _sky(rng: Random) -> tuple[Array, Array]:
    """Colours (3,) of the sky overhead and at the horizon: clear, overcast, or in the evening."""
    kind = rng.random()
    if kind < 0.5:
        blue = np.array([-0.35, -0.1, 0.15]) * rng.uniform(0.2, 1.2)
        above, beside = rng.uniform(0.5, 0.85) + blue, rng.uniform(0.6, 1.0) + 0.4 * blue
    elif kind < 0.85:
        above, beside = np.repeat(rng.uniform(0.6, 1.05, (2, 1)), 3, 1)
    else:
        warm = np.array([0.2, 0.05, -0.1]) * rng.uniform(0, 1.5)
        above, beside = rng.uniform(0.02, 0.4) - 0.3 * warm, rng.uniform(0.1, 0.7) + warm
    return np.asarray(above, np.float32), np.asarray(beside, np.float32)


def _plain(rng: Random, style: Style) -> Array:
    """A colour (3,) of something large and even: white, black, the sky's, grey, or any."""
    kind = rng.random()
    tint = mixed(np.array([0.0, rng.normal(0, 0.04), rng.normal(0, 0.02)]))
    if kind < 0.25:
        return np.asarray(rng.uniform(0.8, 1.0) + 0.5 * tint, np.float32)
    if kind < 0.4:
        return np.asarray(rng.uniform(0.05, 0.2) + 0.3 * tint, np.float32)
    if kind < 0.55:
        return _sky(rng)[0]
    if kind < 0.75:
        return np.asarray(rng.uniform(0.2, 0.8) + tint, np.float32)
    return palette(rng, style, 1, 1 / 8)[0]

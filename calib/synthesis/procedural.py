"""Images drawn by rule, from no data and no network: dead leaves, objects on a background, and 1/f textures.

The model is Matheron's dead leaves as Lee, Mumford and Huang use it (Occlusion models for natural images, IJCV 2001):
shapes that occlude one another, with radii of density r^-3, give sharp edges at every scale and the falling spectrum of
photographs. Every number without a source is our choice. Lengths are shares of the shorter side, unless in pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float32]
Random = np.random.Generator

TEXTURES, OBJECTS = 0.15, 0.15  # shares of the images; the rest are dead leaves
FIELDS = 7  # brightness fields that the leaves of one image cut their textures from
COVERED = 0.02  # what shines through where leaves are taken to hide all behind them
ANGLES = 1024  # entries in the table of a blob's outline
# Brightness, yellow to blue, green to red: the directions in which colours in nature vary independently, most in the
# first (Ruderman, Cronin and Chiao, Statistics of cone responses to natural images, JOSA A 1998), here in RGB.
OPPONENT = np.array([[1, 1, 1], [1, 0.4, -1.4], [1, -1, 0.2]], np.float32)
SPREAD = np.array([0.2, 0.07, 0.04], np.float32)


def procedural_images(count: int, size: tuple[int, int], seed: int, first: int = 0) -> Tensor:
    """Images ``first`` to ``first + count - 1`` of a seed: (count, 3, H, W) float32 in [0, 1], on the CPU.

    Image i depends on (seed, i) and the size alone, for one version of numpy. seed, first: not negative.
    size: (H, W) in pixels, from 1.
    """
    images = torch.empty(count, 3, *size)
    for index in range(count):
        state = np.random.SeedSequence([seed, first + index]).generate_state(1, np.uint64)
        images[index] = procedural_image(size, torch.Generator().manual_seed(int(state[0] >> np.uint64(1))))
    return images


def procedural_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One image, (3, H, W) float32 in [0, 1], on the CPU: dead leaves, or an object on a background, or a texture.

    Takes one 63-bit number from ``generator``, a CPU one, and is the same for any number of torch's threads.
    """
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    kind = rng.random()
    if kind < TEXTURES:
        return torch.from_numpy(_developed(rng, _colour_texture(rng, size, rng.uniform(0.5, 2.0), 1.0)))
    scene = _Scene(rng, size)
    if kind < TEXTURES + OBJECTS:
        _object(rng, scene)
    else:
        _clutter(rng, scene)
    ground = _colour_texture(rng, size, rng.uniform(1.2, 2.0), rng.uniform(0.2, 1.0))
    return torch.from_numpy(_developed(rng, scene.painted + scene.clear * ground))


class _Scene:
    """A picture of (H, W) painted from front to back.

    painted (3, H, W): what is seen so far. clear, light (H, W): how much of what is behind shines through, and how much
    light reaches it. fields: (2H, 2W) each, of period (H, W). palette: (n, 3). contrast, shadow: of all leaves.
    """

    def __init__(self, rng: Random, size: tuple[int, int]) -> None:
        self.painted = np.zeros((3, *size), np.float32)
        self.clear, self.light = np.ones(size, np.float32), np.ones(size, np.float32)
        self.fields = [np.tile(_field(rng, size), (2, 2)) for _ in range(FIELDS)]
        self.palette = _palette(rng, int(rng.integers(4, 13)), 1 / 8)
        self.contrast = _log_uniform(rng, 0.03, 0.15)
        self.shadow = rng.uniform(0.2, 0.6) if rng.random() < 0.6 else 0.0


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _palette(rng: Random, count: int, strong: float) -> Array:
    """Colours (count, 3): spread along ``OPPONENT`` around a mean, or with chance ``strong`` saturated, of any hue."""
    spread = SPREAD * np.array([1, *[_log_uniform(rng, 0.3, 1.6)] * 2], np.float32)
    mean = rng.uniform(0.25, 0.6) + rng.normal(0, 0.04, 3)
    colours = mean + _mixed(rng.standard_normal((3, count)) * spread[:, None]).T
    hues = rng.random((count, 3))
    hues = (hues - hues.min(1, keepdims=True)) / np.ptp(hues, 1)[:, None] * rng.uniform(0.4, 0.95, (count, 1))
    chosen = np.where(rng.random((count, 1)) < strong, 0.1 + 0.9 * hues, colours)
    return np.asarray(chosen.clip(0.02, 0.98), np.float32)


def _mixed(parts: npt.NDArray[np.floating]) -> Array:
    """Amounts (3, ...) of the opponent directions, as RGB (3, ...). einsum, since BLAS's sums depend on its threads."""
    return np.asarray(np.einsum("oc,o...->c...", OPPONENT, parts), np.float32)


def _fractal(rng: Random, size: tuple[int, int], exponent: float, most: float = 3.0) -> Array:
    """Gaussian noise (H, W) of amplitude 1/f^exponent, mean 0, deviation 1, drawn out along one direction; periodic."""
    down, right = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    angle, stretch = rng.uniform(0, np.pi), _log_uniform(rng, 1.0, most)
    along, across = down * np.sin(angle) + right * np.cos(angle), down * np.cos(angle) - right * np.sin(angle)
    radius = np.hypot(along * stretch, across).astype(np.float32)
    radius[0, 0] = np.inf
    noise = rng.standard_normal((2, *radius.shape), np.float32)
    field = np.fft.irfft2((noise[0] + 1j * noise[1]) * radius ** np.float32(-exponent), size)
    return np.asarray(field / max(float(field.std()), 1e-12), np.float32)


def _field(rng: Random, size: tuple[int, int]) -> Array:
    """A texture (H, W) around 0, periodic: 1/f noise, as it is or in folds or patches, or a grating, or checks."""
    kind = rng.random()
    if kind < 0.65:
        noise = _fractal(rng, size, rng.uniform(0.5, 2.0), 6.0)
        if kind < 0.15:
            return np.asarray(2 * np.abs(noise) - np.float32(1.6))
        return np.asarray(np.tanh(3 * noise) if kind < 0.25 else noise.clip(-3, 3))
    cycles = np.array(size) / min(size) * _log_uniform(rng, 3.0, max(4.0, min(min(size) / 5, 40.0)))
    angle, sharpness = rng.uniform(0, np.pi), _log_uniform(rng, 0.5, 6.0)
    bend = np.float32(rng.uniform(0, 2.5) if rng.random() < 0.6 else 0) * _fractal(rng, size, 2.0)
    wave = _wave(size, cycles, angle, bend)
    if kind > 0.88:
        wave = wave * _wave(size, cycles, angle + np.pi / 2, bend)
    return np.asarray(np.tanh(np.float32(sharpness) * wave))


def _wave(size: tuple[int, int], cycles: npt.NDArray[np.floating], angle: float, bend: Array) -> Array:
    """A sine wave (H, W) of a whole number of cycles down and across, its phase shifted by ``bend``."""
    turns = np.rint(cycles * [np.sin(angle), np.cos(angle)])
    down, right = (np.arange(n) * (2 * np.pi * t / n) for n, t in zip(size, turns, strict=True))
    return np.asarray(np.sin((down[:, None] + right[None]).astype(np.float32) + bend), np.float32)


def _colour_texture(rng: Random, size: tuple[int, int], exponent: float, strength: float) -> Array:
    """A colour texture (3, H, W): a field of its own for each opponent direction, amplitude 1/f^exponent."""
    parts = np.stack([_fractal(rng, size, exponent) for _ in OPPONENT])
    if rng.random() < 0.4:
        parts[0] = _field(rng, size)
    parts *= (strength * rng.uniform(0.3, 1.2, 3) * SPREAD)[:, None, None]
    return np.asarray(_palette(rng, 1, 1 / 30)[0][:, None, None] + _mixed(parts))


def _clutter(rng: Random, scene: _Scene) -> None:
    """Leaves until nothing behind them is seen, or as many as were to be: few, and the background stays in view."""
    smallest, largest = _log_uniform(rng, 0.02, 0.08), rng.uniform(0.2, 0.6)
    _leaves(rng, scene, int(_log_uniform(rng, 50, 900)), smallest, largest, 0.02 * (rng.random() < 0.25))


def _object(rng: Random, scene: _Scene) -> None:
    """One large thing of several parts near the middle, in focus; what is behind is plain, or leaves out of focus."""
    side = min(scene.clear.shape)
    radius = rng.uniform(0.2, 0.38)
    middle = np.array(scene.clear.shape) * rng.uniform(0.42, 0.58, 2)
    for _ in range(int(rng.integers(0, 12))):
        offset = rng.normal(0, 0.5 * radius * side, 2)
        _leaf(rng, scene, middle + offset, radius * rng.uniform(0.08, 0.5) * side, 1.0)
    _leaf(rng, scene, middle, radius * side, 1.0)
    if rng.random() < 0.6:
        _leaves(rng, scene, int(rng.integers(5, 60)), 0.08, 0.5, rng.uniform(0.03, 0.12))


def _leaves(rng: Random, scene: _Scene, count: int, smallest: float, largest: float, blurred: float) -> None:
    """Up to ``count`` leaves. Radii of density r^-3 (Lee et al.), from its distribution's inverse."""
    shape, side = np.array(scene.clear.shape), min(scene.clear.shape)
    for index in range(count):
        if index % 16 == 0 and float(scene.clear.mean()) < COVERED:
            return
        chance = rng.random()
        radius = side * (chance * smallest**-2 + (1 - chance) * largest**-2) ** -0.5
        soft = blurred * side * rng.uniform(0.3, 1.0) if rng.random() < 0.8 else 0.0
        _leaf(rng, scene, rng.uniform(-radius, shape + radius), radius, max(1.0, soft))


def _leaf(rng: Random, scene: _Scene, centre: npt.NDArray[np.floating], radius: float, soft: float) -> None:
    """Paint one leaf behind all that is there. radius, soft (width of its edge): pixels."""
    flat = np.sqrt(_log_uniform(rng, 1.0, 5.0))
    reach = 1.5 * radius * flat + soft
    low, high = ((centre + end).clip(0, scene.clear.shape).astype(int) for end in (-reach, reach + 1))
    box = (slice(low[0], high[0]), slice(low[1], high[1]))
    clear = scene.clear[box]
    if float(clear.max(initial=0)) < COVERED:
        return
    down = ((np.arange(low[0], high[0]) - centre[0]) / radius).astype(np.float32)[:, None]
    right = ((np.arange(low[1], high[1]) - centre[1]) / radius).astype(np.float32)[None]
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (right * cos + down * sin) / np.float32(flat), (down * cos - right * sin) * np.float32(flat)
    outline = _outline(rng, u, v)
    cover = (0.5 + (1 - outline) * np.float32(radius / flat / soft)).clip(0, 1)
    field = scene.fields[int(rng.integers(FIELDS))]
    top, left = rng.integers(0, scene.clear.shape)
    texture = field[top : top + len(down), left : left + right.shape[1]]
    colour = scene.palette[int(rng.integers(len(scene.palette)))] + rng.normal(0, 0.03, 3)
    change = _mixed(rng.exponential(scene.contrast) * np.array([1, rng.normal(0, 0.3), rng.normal(0, 0.15)]))
    tilt = rng.normal(0, 0.15, 2).astype(np.float32)
    shade = (1 + tilt[0] * u + tilt[1] * v - np.float32(rng.uniform(0, 0.35)) * outline**2).clip(0.2, 1.8)
    weight = cover * clear
    lit = weight * shade * scene.light[box]
    for channel, seen in enumerate(scene.painted[:, box[0], box[1]]):
        seen += lit * (np.float32(colour[channel]) + change[channel] * texture)
    clear -= weight
    if scene.shadow:
        scene.light[box] *= 1 - np.float32(scene.shadow) * (1 - (outline - 1) * 2.5).clip(0, 1)


def _outline(rng: Random, u: Array, v: Array) -> Array:
    """How far out a point is, 0 in the middle and 1 on the edge: a disc, a rectangle, a polygon, a blob or a ring."""
    kind = rng.random()
    if kind < 0.25:
        return np.asarray(np.hypot(u, v))
    if kind < 0.45:
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) / np.float32(0.9))
    if kind < 0.7:
        corners = int(rng.integers(3, 8))
        angles = 2 * np.pi / corners * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners))
        outline = np.hypot(u, v) / np.float32(1.4)
        for cos, sin in zip(np.cos(angles), np.sin(angles), strict=True):
            outline = np.maximum(outline, (np.float32(cos) * u + np.float32(sin) * v) / np.float32(0.75))
        return np.asarray(outline)
    turn = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    waves = [rng.normal(0, 0.3 / k) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in range(2, 8)]
    edge = np.sum(waves, 0).clip(-0.6, 0.4).astype(np.float32) + 1
    place = ((np.arctan2(v, u) + np.pi) * (ANGLES / (2 * np.pi))).astype(np.int32) % ANGLES
    outline = np.hypot(u, v) / edge[place]
    return np.asarray(outline if kind < 0.93 else np.abs(outline - np.float32(0.8)) / np.float32(0.2))


def _developed(rng: Random, image: Array) -> Array:
    """The picture (3, H, W) as a camera might give it: uneven light, contrast, gamma, blur and grain; in [0, 1]."""
    height, width = image.shape[1:]
    slopes = rng.normal(0, 0.25, 2).astype(np.float32)
    down, right = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (height, width))
    image = image * (1 + slopes[0] * down[:, None] + slopes[1] * right[None])
    contrast = min(_log_uniform(rng, 0.6, 1.6), 0.3 / max(float(image.std()), 1e-6))
    image = (image - image.mean()) * np.float32(contrast) + np.float32(rng.uniform(0.3, 0.6))
    image = image.clip(0, 1) ** np.float32(_log_uniform(rng, 0.7, 1.4))
    if rng.random() < 0.4:
        image = _blurred(image, rng.uniform(0.001, 0.006) * min(height, width))
    if rng.random() < 0.3:
        image = image + np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal((1, height, width), np.float32)
    return np.ascontiguousarray(image.clip(0, 1), np.float32)


def _blurred(image: Array, sigma: float) -> Array:
    """Gaussian blur of (3, H, W), sigma in pixels, the edge pixels repeated outwards."""
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return np.asarray(sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps)), np.float32)

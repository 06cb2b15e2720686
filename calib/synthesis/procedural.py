"""Images drawn by rule, from no data and no network: dead leaves and scenes, half of each.

The model is Matheron's dead leaves as Lee, Mumford and Huang use it (Occlusion models for natural images, IJCV 2001):
shapes that occlude one another, with radii of density r^-3, give sharp edges at every scale and the falling spectrum of
photographs. Scenes have besides what photographs have and dead leaves lack: few things before much that is smooth,
ground and sky, walls and paper, light from dark to white, upright edges, and shapes that repeat. Both together serve
calibration better than either (docs/decisions/0029-flattened-moments.md). Every number without a source is our choice.
Lengths are shares of the shorter side, unless in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calib.synthesis.leaves import Scene, arrangement
from calib.synthesis.textures import DEAD_LEAVES, SCENE, Array, Random, Style, background, colour_texture, log_uniform


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
    """One image, (3, H, W) float32 in [0, 1], on the CPU: dead leaves or a scene.

    Takes one 63-bit number from ``generator``, a CPU one, and is the same for any number of torch's threads.
    """
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    return torch.from_numpy(drawn(rng, DEAD_LEAVES if rng.random() < 0.5 else SCENE, size))


def drawn(rng: Random, style: Style, size: tuple[int, int]) -> Array:
    """A picture (3, H, W) in [0, 1]: clutter, or a thing on a background, or a texture."""
    kind = rng.random()
    if kind < style.textures:
        return _developed(rng, style, colour_texture(rng, style, size, rng.uniform(0.5, 2.0), 1.0))
    scene = Scene(rng, style, size)
    if kind < style.textures + style.things:
        _thing(rng, scene)
    else:
        _clutter(rng, scene)
    return _developed(rng, style, scene.painted + scene.clear * background(rng, style, size))


def _clutter(rng: Random, scene: Scene) -> None:
    """Leaves until nothing behind them is seen, or as many as were to be: few, and the background stays in view."""
    smallest, largest = log_uniform(rng, 0.02, 0.08), rng.uniform(0.2, 0.6)
    _scatter(rng, scene, int(log_uniform(rng, *scene.style.leaves)), smallest, largest, 0.02 * (rng.random() < 0.25))


def _thing(rng: Random, scene: Scene) -> None:
    """One large thing of several parts near the middle, in focus; what is behind is plain, or leaves out of focus."""
    side = min(scene.clear.shape)
    radius = rng.uniform(0.2, 0.38)
    middle = np.array(scene.clear.shape) * rng.uniform(0.42, 0.58, 2)
    for _ in range(int(rng.integers(0, 12))):
        offset = rng.normal(0, 0.5 * radius * side, 2)
        arrangement(rng, scene, middle + offset, radius * rng.uniform(0.08, 0.5) * side, 1.0)
    arrangement(rng, scene, middle, radius * side, 1.0)
    if rng.random() < 0.6:
        _scatter(rng, scene, int(rng.integers(5, 60)), 0.08, 0.5, rng.uniform(0.03, 0.12))


def _scatter(rng: Random, scene: Scene, count: int, smallest: float, largest: float, blurred: float) -> None:
    """Up to ``count`` arrangements. Radii of density r^-3 (Lee et al.), from its distribution's inverse."""
    shape, side = np.array(scene.clear.shape), min(scene.clear.shape)
    for index in range(count):
        if index % 16 == 0 and scene.hidden:
            return
        chance = rng.random()
        radius = side * (chance * smallest**-2 + (1 - chance) * largest**-2) ** -0.5
        soft = blurred * side * rng.uniform(0.3, 1.0) if rng.random() < 0.8 else 0.0
        arrangement(rng, scene, rng.uniform(-radius, shape + radius), radius, max(1.0, soft))


def _developed(rng: Random, style: Style, image: Array) -> Array:
    """The picture (3, H, W) as a camera might give it: uneven light, contrast, gamma, blur and grain; in [0, 1]."""
    height, width = image.shape[1:]
    slopes = rng.normal(0, 0.15 if style.composed else 0.25, 2).astype(np.float32)
    down, right = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (height, width))
    image = image * (1 + slopes[0] * down[:, None] + slopes[1] * right[None])
    if style.composed:
        middle, contrast, light = 0.45, log_uniform(rng, 0.7, 1.4), rng.uniform(0.35, 0.55)
    else:
        middle, contrast = float(image.mean()), min(log_uniform(rng, 0.6, 1.6), 0.3 / max(float(image.std()), 1e-6))
        light = rng.uniform(0.3, 0.6)
    image = (image - np.float32(middle)) * np.float32(contrast) + np.float32(light)
    image = image.clip(0, 1) ** np.float32(log_uniform(rng, 0.7, 1.4))
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

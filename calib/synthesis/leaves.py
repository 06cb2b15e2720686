"""Leaves: the opaque shapes that images drawn by rule (procedural.py) are painted with, alone or in arrangements.

Lengths are pixels. Every number without a source is our choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calib.synthesis.textures import Array, Random, Style, log_uniform, mixed, palette, texture

Point = npt.NDArray[np.floating]

FIELDS = 7  # textures that the leaves of one image cut theirs from
COVERED = 0.02  # what shines through where leaves are taken to hide all behind them
ANGLES = 1024  # entries in the table of a blob's outline
PAIRS, ROWS = 0.35, 0.45  # shares of the arrangements: mirrored pairs, rows; the rest are rings


class Scene:
    """A picture of (H, W) painted from front to back, in a style.

    painted (3, H, W): what is seen so far. clear, light (H, W): how much of what is behind shines through, and how much
    light reaches it. fields: (2H, 2W) each, of period (H, W). colours: (n, 3). contrast, shadow: of all leaves. plain,
    upright, single: chances that a leaf has no texture, lies along the picture's sides, is alone. axis: of its mirrored
    pairs, a share of W.
    """

    def __init__(self, rng: Random, style: Style, size: tuple[int, int]) -> None:
        self.style = style
        self.painted = np.zeros((3, *size), np.float32)
        self.clear, self.light = np.ones(size, np.float32), np.ones(size, np.float32)
        self.fields = [np.tile(texture(rng, size), (2, 2)) for _ in range(FIELDS)]
        self.colours = palette(rng, style, int(rng.integers(4, 13)), 1 / 8)
        self.contrast = log_uniform(rng, 0.03, style.contrast)
        self.shadow = rng.uniform(0.2, 0.6) if rng.random() < 0.6 else 0.0
        self.plain, self.single, self.upright, self.axis = 0.0, 1.0, 0.0, 0.5
        if style.composed:
            self.plain, self.single = rng.random(), rng.uniform(0.3, 1.0)
            self.upright = rng.random() if rng.random() < 0.7 else 0.0
            self.axis = rng.uniform(0.3, 0.7)

    @property
    def hidden(self) -> bool:
        """True where next to nothing of what is behind shines through."""
        return float(self.clear.mean()) < COVERED


def arrangement(rng: Random, scene: Scene, centre: Point, radius: float, soft: float) -> None:
    """Paint a leaf, or equal leaves as a mirrored pair, in rows or in a ring. soft: width of an edge.

    Things made and grown repeat: the legs and eyes of animals, windows, columns, petals.
    """
    seed, kind = int(rng.integers(2**62)), rng.random()

    def one(place: Point, size: float = radius, side: int = 1, turn: float = 0.0) -> None:
        leaf(np.random.default_rng(seed), scene, place, size, soft, side, turn)

    if kind < scene.single:
        return one(centre)
    kind = (kind - scene.single) / (1 - scene.single)
    if kind < PAIRS:
        across = scene.axis * scene.clear.shape[1]
        for side in (1, -1):
            one(np.array([centre[0], across + side * (centre[1] - across)]), side=side)
    elif kind < PAIRS + ROWS:
        rows, columns = int(rng.integers(1, 5)), int(rng.integers(2, 8))
        down, along = radius * rng.uniform(1.2, 2.6, 2)
        turn = 0.0 if rng.random() < 0.7 else rng.uniform(0, np.pi)
        step = along * np.array([np.sin(turn), np.cos(turn)])
        shrink = 1.0 if rng.random() < 0.6 else rng.uniform(0.8, 1.0)
        for index in range(rows * columns):
            row, column = index // columns, index % columns
            scale = shrink**column
            place = centre + [down * (row - rows / 2), 0] + (column - columns / 2) * scale * step
            one(place, 0.6 * radius * scale)
    else:
        count, reach = int(rng.integers(4, 13)), radius * rng.uniform(0.8, 1.4)
        for turn in np.arange(count) * (2 * np.pi / count):
            one(centre + reach * np.array([np.sin(turn), np.cos(turn)]), 0.6 * radius, turn=float(turn))
    return None


def leaf(
    rng: Random, scene: Scene, centre: Point, radius: float, soft: float, side: int = 1, turn: float = 0.0
) -> None:
    """Paint one leaf behind all that is there. soft: width of its edge. side: -1 mirrors it. turn: radians."""
    flat = np.sqrt(log_uniform(rng, 1.0, 40.0 if scene.style.composed and rng.random() > 0.85 else 5.0))
    reach = 1.5 * radius * flat + soft
    low, high = ((centre + end).clip(0, scene.clear.shape).astype(int) for end in (-reach, reach + 1))
    box = (slice(low[0], high[0]), slice(low[1], high[1]))
    clear = scene.clear[box]
    if float(clear.max(initial=0)) < COVERED:
        return
    down = ((np.arange(low[0], high[0]) - centre[0]) / radius).astype(np.float32)[:, None]
    right = ((np.arange(low[1], high[1]) - centre[1]) * (side / radius)).astype(np.float32)[None]
    angle = turn + (np.pi / 2 * rng.integers(4) if rng.random() < scene.upright else rng.uniform(0, 2 * np.pi))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (right * cos + down * sin) / np.float32(flat), (down * cos - right * sin) * np.float32(flat)
    outline = _outline(rng, u, v)
    cover = (0.5 + (1 - outline) * np.float32(radius / flat / soft)).clip(0, 1)
    field = scene.fields[int(rng.integers(FIELDS))]
    top, left = rng.integers(0, scene.clear.shape)
    cut = field[top : top + len(down), left : left + right.shape[1]]
    colour = scene.colours[int(rng.integers(len(scene.colours)))] + rng.normal(0, 0.03, 3)
    depth = rng.exponential(scene.contrast) * (rng.random() > scene.plain)
    change = mixed(depth * np.array([1, *(scene.style.tint * rng.normal(0, (0.2, 0.1)))]))
    tilt = rng.normal(0, 0.15, 2).astype(np.float32)
    shade = (1 + tilt[0] * u + tilt[1] * v - np.float32(rng.uniform(0, 0.35)) * outline**2).clip(0.2, 1.8)
    weight = cover * clear
    lit = weight * shade * scene.light[box]
    for channel, seen in enumerate(scene.painted[:, box[0], box[1]]):
        seen += lit * (np.float32(colour[channel]) + change[channel] * cut)
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

"""Leaves: what hides what, and arrangements of equal ones."""

from __future__ import annotations

import numpy as np
import pytest

from calib.synthesis import leaves
from calib.synthesis.leaves import Scene, arrangement, leaf
from calib.synthesis.textures import DEAD_LEAVES, SCENE

SIZE = (64, 96)
MIDDLE = np.array([32.0, 48.0])


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def scene(seed: int = 3, **fields: float) -> Scene:
    made = Scene(rng(seed), SCENE, SIZE)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def covered(made: Scene) -> np.ndarray:
    return np.asarray(1 - made.clear)


def test_a_new_scene_is_empty() -> None:
    made = scene()
    assert not made.painted.any() and (made.clear == 1).all() and not made.hidden


def test_what_is_in_front_stays() -> None:
    """Leaves are painted from front to back: a second one changes nothing where the first hides all behind it."""
    made = scene()
    leaf(rng(1), made, MIDDLE, 14.0, 1.0)
    hidden, before = made.clear < 1e-6, made.painted.copy()
    assert hidden.any()
    leaf(rng(2), made, MIDDLE, 40.0, 1.0)
    assert np.array_equal(made.painted[:, hidden], before[:, hidden])
    assert (made.painted != before).any()


def test_a_leaf_outside_paints_nothing() -> None:
    made = scene()
    leaf(rng(1), made, np.array([-500.0, 20.0]), 10.0, 1.0)
    assert not made.painted.any() and (made.clear == 1).all()


def test_a_scene_is_hidden_by_leaves() -> None:
    made, source = scene(), rng(1)
    for _ in range(400):
        leaf(source, made, source.uniform((0, 0), SIZE), 20.0, 1.0)
    assert made.hidden and made.clear.min() >= 0


@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_leaf_is_the_mirror_image(seed: int) -> None:
    """About the middle of a pixel row, to one float32 step of the cover."""
    one, other = scene(), scene()
    leaf(rng(seed), one, np.array([30.0, 47.5]), 12.0, 1.0)
    leaf(rng(seed), other, np.array([30.0, 47.5]), 12.0, 1.0, side=-1)
    assert np.allclose(covered(one), covered(other)[:, ::-1], atol=1e-5)


def test_pairs_lie_on_both_sides_of_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "PAIRS", 1.0)
    made = scene(single=0.0, axis=47.5 / SIZE[1])
    arrangement(rng(5), made, np.array([30.0, 20.0]), 6.0, 1.0)
    assert np.allclose(covered(made), covered(made)[:, ::-1], atol=1e-5)
    assert covered(made)[:, :40].max() == 1 and covered(made)[:, 47:49].max() == 0


@pytest.mark.parametrize(("pairs", "rows"), [(0.0, 1.0), (0.0, 0.0)])
def test_rows_and_rings_are_many_leaves(monkeypatch: pytest.MonkeyPatch, pairs: float, rows: float) -> None:
    monkeypatch.setattr(leaves, "PAIRS", pairs)
    monkeypatch.setattr(leaves, "ROWS", rows)
    painted: list[float] = []
    monkeypatch.setattr(leaves, "leaf", lambda _rng, _scene, _place, radius, *_: painted.append(radius))
    counts = set()
    for seed in range(20):
        painted.clear()
        arrangement(rng(seed), scene(single=0.0), MIDDLE, 10.0, 1.0)
        counts.add(len(painted))
        assert max(painted) <= 6.0 + 1e-9
    assert min(counts) >= 2 and len(counts) > 4


def test_upright_leaves_lie_along_the_sides() -> None:
    """An upright scene's steps in brightness point right or down; another's in any direction."""

    def aligned(upright: float) -> float:
        shares = []
        for seed in range(40):
            made = scene(upright=upright)
            leaf(rng(seed), made, MIDDLE, 18.0, 1.0)
            down, right = np.gradient(covered(made))
            strong = np.hypot(down, right) > 0.2
            steep = np.minimum(np.abs(down), np.abs(right))[strong] / np.hypot(down, right)[strong]
            shares.append(float((steep < 0.1).mean()))
        return float(np.mean(shares))

    assert aligned(1.0) > 1.3 * aligned(0.0)


def test_dead_leaves_are_alone_and_textured_and_lie_at_any_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[float] = []
    monkeypatch.setattr(leaves, "leaf", lambda *args: painted.append(args[3]))
    for seed in range(20):
        made = Scene(rng(seed), DEAD_LEAVES, SIZE)
        assert (made.plain, made.upright) == (0.0, 0.0)
        arrangement(rng(seed), made, MIDDLE, 10.0, 1.0)
    assert painted == [10.0] * 20

"""The levels of weights: which they are, and that the nearest one is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.quant.grid import weight_grid

LEVELS = {
    2: [-3, -1, 1, 3],
    3: [-7, -5, -3, -1, 1, 3, 5, 7],
    4: list(range(-8, 8)),
    5: list(range(-16, 16)),
    8: list(range(-127, 128)),
}


@pytest.mark.parametrize("bits", LEVELS)
def test_the_levels(bits: int) -> None:
    grid = weight_grid(bits)
    made = grid.level(torch.arange(grid.first, grid.last + 1)).tolist()
    assert made == LEVELS[bits] and (grid.low, grid.high) == (made[0], made[-1])
    assert len(made) == (255 if bits == 8 else 2**bits)
    assert grid.nearest(torch.tensor([-1e9, 1e9])).tolist() == [grid.low, grid.high]


@settings(deadline=None)
@given(st.sampled_from(list(LEVELS)), st.floats(-150, 150, width=32))
def test_nearest_is_the_nearest(bits: int, value: float) -> None:
    found = float(weight_grid(bits).nearest(torch.tensor(value)))
    assert found in LEVELS[bits]
    assert abs(found - value) == pytest.approx(min(abs(level - value) for level in LEVELS[bits]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("bits", LEVELS)
def test_an_index_is_the_place_of_its_level(bits: int) -> None:
    levels = torch.tensor(LEVELS[bits], dtype=torch.float32)
    grid = weight_grid(bits)
    assert torch.equal(grid.level(grid.index(levels)), levels) and torch.equal(grid.nearest(levels), levels)


def test_no_level_at_zero_pays_at_three_bits() -> None:
    """The figures of the module: least squared error on Gaussian weights, over all steps."""
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    steps = torch.linspace(0.1, 1.0, 181)

    def error(first: int, last: int, offset: float) -> float:
        rounded = (torch.clamp(torch.round(weight / s - offset), first, last) + offset for s in steps)
        return min(float((weight - r * s).square().mean()) for r, s in zip(rounded, steps, strict=True))

    ours = min(float((weight - weight_grid(3).nearest(weight / s) * s).square().mean()) for s in steps / 2)
    assert ours == pytest.approx(error(-4, 3, 0.5), rel=1e-4)
    assert ours == pytest.approx(0.8 * error(-3, 3, 0), rel=0.01)
    assert error(-8, 7, 0) == pytest.approx(0.92 * error(-7, 7, 0), rel=0.01)

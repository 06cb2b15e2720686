"""Dyadic rescaling: near the real quotient for every unit, step, bias and zero point that a layer can have."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from calib.quant import integers
from calib.quant.rescale import Rescale


@given(
    st.floats(-60, 4),
    st.lists(st.floats(0, 12), min_size=1, max_size=4),
    st.integers(-128, 127),
    st.floats(-1e6, 1e6),
    st.lists(st.integers(-128, 127), min_size=1, max_size=8),
)
def test_sums_become_the_nearest_levels(
    ratio: float, spread: list[float], zero: int, bias: float, wanted: list[int]
) -> None:
    """Sums that stand for whole levels, as far as 30 bits reach: found again, with a zero point and a bias."""
    units = torch.tensor([2.0 ** (ratio - part) for part in spread], dtype=torch.float64)
    rescale = Rescale(len(units))
    rescale.fix(units, torch.ones(()), (-(1 << 40), 1 << 40), torch.tensor([bias] * len(units)), zero)
    aimed = torch.tensor(wanted, dtype=torch.float64)[:, None]
    sums = (aimed / units).clamp(-integers.MOST_INPUT, integers.MOST_INPUT).round().long()
    real = sums.double() * units + bias + zero
    reach = sums.abs().double() * units.max() * 2.0**-29  # what the largest multiplier's last bit is worth
    assert bool(((rescale.levels(sums).double() - real).abs() <= 0.5 + reach + 1e-6 * abs(bias)).all())
    assert int(rescale.offset.abs().max()) <= integers.MOST_OFFSET


def test_a_zero_point_beside_a_tiny_unit() -> None:
    """The case that once came out 94 levels off: a shift of 54 leaves no room for a zero point of -126."""
    rescale = Rescale()
    rescale.fix(torch.tensor(2.0**-24), torch.ones(()), (-128, 127), zero=-126)
    assert rescale.levels(torch.tensor([0, 1 << 24, 100 << 24])).tolist() == [-126, -125, -26]

"""Methods by name."""

from __future__ import annotations

import pytest

from calib.calibrate import CalibrateConfig
from calib.errors import IntvitError
from calib.recipes import DEFAULT_METHOD, REAL, methods, recipe
from calib.synthesis.methods import METHODS


def test_every_method_has_a_recipe() -> None:
    assert methods() == [*METHODS, "real"]
    for name in methods():
        made = recipe(name)
        assert made.method == name
        assert made.align == CalibrateConfig()
        assert made.synthesis is (None if name == REAL else METHODS[name])


def test_only_real_reads_real_images() -> None:
    assert [name for name in methods() if not recipe(name).data_free] == ["real"]
    assert recipe(DEFAULT_METHOD).data_free


def test_an_unknown_method_lists_near_matches() -> None:
    with pytest.raises(IntvitError, match="unknown method 'psak'") as caught:
        recipe("psak")
    assert "psaq" in caught.value.next and "real" in caught.value.why

"""A method: where the calibration images come from, and which alignment steps follow. As data."""

from __future__ import annotations

from dataclasses import dataclass

from calib.calibrate import CalibrateConfig
from calib.synthesis.methods import METHODS, SynthesisConfig, find

DEFAULT_METHOD = "best"
REAL = "real"


@dataclass(frozen=True)
class Recipe:
    """``synthesis`` is None where real images are read instead. ``align`` are the options of the calibration."""

    method: str
    synthesis: SynthesisConfig | None
    align: CalibrateConfig

    @property
    def data_free(self) -> bool:
        """True when no real image is read."""
        return self.synthesis is not None


def recipe(method: str) -> Recipe:
    """The recipe called ``method``: ``noise``, ``psaq``, ... or ``real``.

    Raises:
        IntvitError: no such method; near matches are listed.
    """
    return Recipe(method, None if method == REAL else find(method), CalibrateConfig())


def methods() -> list[str]:
    """Every name ``recipe`` takes."""
    return [*METHODS, REAL]

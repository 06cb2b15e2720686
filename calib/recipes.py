"""A method: where the calibration images come from, and which alignment steps follow. As data."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from calib.align.layer import LayerConfig
from calib.align.reconstruct import ReconstructConfig
from calib.calibrate import CalibrateConfig
from calib.errors import IntvitError
from calib.synthesis.methods import METHODS, SynthesisConfig, find

DEFAULT_METHOD = "best"
REAL = "real"
PUBLISHED = ("psaq", "mimiq", "dfq-vit", "spdfq")

# What calibration does beyond rounding to the nearest level; docs/calibration.md says how long each takes.
GPTQ = LayerConfig(rounding="gptq")
BUDGETS: dict[str, CalibrateConfig] = {
    "fast": CalibrateConfig(layer=GPTQ),
    "default": CalibrateConfig(layer=GPTQ, reconstruct=ReconstructConfig(iterations=150)),
    "max": CalibrateConfig(layer=GPTQ, reconstruct=ReconstructConfig(iterations=600)),
}
DEFAULT_BUDGET = "default"


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


def recipe(method: str, budget: str = DEFAULT_BUDGET) -> Recipe:
    """The recipe called ``method``: ``noise``, ``psaq``, ... or ``real``.

    The published methods bring images and are calibrated plainly, whatever the budget; all others share ``best``'s
    calibration, so that they differ in their images alone.

    Raises:
        IntvitError: no such method or budget; near matches are listed.
    """
    if budget not in BUDGETS:
        near = difflib.get_close_matches(budget, BUDGETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise IntvitError(
            f"unknown budget {budget!r}",
            where="--budget",
            why="it is not a known one",
            next=hint + "known: " + ", ".join(BUDGETS),
        )
    align = CalibrateConfig() if method in PUBLISHED else BUDGETS[budget]
    return Recipe(method, None if method == REAL else find(method), align)


def methods() -> list[str]:
    """Every name ``recipe`` takes."""
    return [*METHODS, REAL]

"""Fixtures: the packaged model, and it calibrated once a session."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.models import LoadedModel, load
from calib.scheme import parse
from calib.synthesis.engine import synthesise
from calib.synthesis.methods import NOISE


@pytest.fixture(scope="session")
def digits() -> LoadedModel:
    """The packaged network; nobody changes it."""
    return load("vit_digits")


@pytest.fixture(scope="session")
def noise(digits: LoadedModel) -> Tensor:
    """Sixteen normalised noise images for it."""
    made = synthesise(digits.module, digits.spec, replace(NOISE, images=16), seed=0)
    return digits.spec.normalise(made.images.float())


@pytest.fixture(scope="session")
def calibrated(digits: LoadedModel, noise: Tensor) -> CalibratedModel:
    """The packaged network at w8a8, calibrated from noise; nobody changes it."""
    return calibrate(digits.module, digits.spec, parse("w8a8"), noise)

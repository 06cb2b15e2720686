"""Fixtures: the packaged model, and it calibrated once a session; a tiny network, and exact arithmetic in synthesis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.models import LoadedModel, ModelSpec, load
from calib.scheme import parse
from calib.synthesis import twin
from calib.synthesis.engine import synthesise
from calib.synthesis.methods import NOISE
from tests.calib.networks import VIT_SIDE, spec_of, tiny_vit


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


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, ModelSpec]:
    """A tiny ViT and what describes it; nobody changes it."""
    model = tiny_vit()
    return model, spec_of(model, VIT_SIDE)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthesis in the network's own precision, also where bfloat16 is fast."""
    monkeypatch.setattr(twin, "has_fast_bf16", lambda kind: False)

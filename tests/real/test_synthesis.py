"""Synthesis on a real ImageNet ViT-Ti: in time, believed by the network, and better than noise where it counts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calib.models import LoadedModel, load
from calib.synthesis.engine import SyntheticSet, synthesise
from calib.synthesis.measures import measure
from calib.synthesis.methods import BEST, METHODS, with_iterations

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def network(vit_tiny_checkpoint: Path) -> LoadedModel:
    return load("vit_t", str(vit_tiny_checkpoint))


def agreement(network: LoadedModel, made: SyntheticSet) -> float:
    found = measure(network.module, network.spec, made.images, made.classes).agreement
    assert found is not None
    return found


def test_128_images_of_best_in_ten_minutes_and_believed(network: LoadedModel) -> None:
    begun = time.monotonic()
    made = synthesise(network.module, network.spec, replace(BEST, images=128), seed=0)
    assert time.monotonic() - begun <= 600
    assert agreement(network, made) >= 0.95
    assert len(torch.unique(made.images.flatten(1), dim=0)) == 128


@pytest.mark.parametrize(("method", "share"), [("psaq", 10), ("mimiq", 4), ("dfq-vit", 10), ("spdfq", 10)])
def test_published_methods_are_believed(method: str, share: int, network: LoadedModel) -> None:
    """Eight images and a tenth of the published iterations (``mimiq``, from noise at a low rate: a quarter)."""
    config = METHODS[method]
    short = with_iterations(replace(config, images=8), config.iterations // share)
    assert agreement(network, synthesise(network.module, network.spec, short, seed=0)) >= 7 / 8

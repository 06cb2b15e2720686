"""Preprocessing and accuracy without torch against timm's evaluation transform and torch, on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from calib.models import LoadedModel, load
from runtime.classes import Classes
from runtime.dataset import Sample, Unreadable, load_folder
from runtime.images import load_image
from runtime.predictions import predict
from toolchain.bundle import preprocess_rule

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def vit_tiny(vit_tiny_checkpoint: Path) -> LoadedModel:
    return load("vit_t", str(vit_tiny_checkpoint), 0)


@pytest.fixture(scope="module")
def samples(vit_tiny: LoadedModel, photographs: Path) -> list[Sample]:
    return load_folder(photographs, Classes(tuple(vit_tiny.spec.class_ids), tuple(vit_tiny.spec.class_names)))


@pytest.fixture(scope="module")
def transform(vit_tiny: LoadedModel) -> Any:
    """What timm does with a picture before this network sees it."""
    spec = vit_tiny.spec
    return create_transform(
        spec.input_size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )


def test_a_hundred_photographs_are_decoded_as_timm_does(
    vit_tiny: LoadedModel, samples: list[Sample], transform: Any
) -> None:
    """Mean absolute difference below 1/255 of the pixels' range, picture by picture; in truth, the same bytes."""
    rule = preprocess_rule(vit_tiny.spec)
    std = np.asarray(rule.std, np.float32)[:, None, None]
    for sample in samples[:: len(samples) // 100][:100]:
        wanted = np.asarray(transform(Image.open(sample.path).convert("RGB")))
        difference = np.abs((load_image(sample.path, rule) - wanted) * std)
        assert float(difference.max()) < 1e-3 / 255


@torch.no_grad()
def test_top1_is_that_of_timm_and_torch(vit_tiny: LoadedModel, samples: list[Sample], transform: Any) -> None:
    """The same network behind both pipelines: within 0.1 points on the 1,000 photographs."""
    network = vit_tiny.module

    def through_torch(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    answers = predict([[through_torch]], samples, preprocess_rule(vit_tiny.spec), Unreadable())
    ours = 100 * float(answers.models[0].hits(answers.labels, 1).mean())
    right = 0
    for start in range(0, len(samples), 8):
        part = samples[start : start + 8]
        images = torch.stack([transform(Image.open(sample.path).convert("RGB")) for sample in part])
        right += int((network(images).argmax(1).numpy() == [sample.label for sample in part]).sum())
    assert len(answers.labels) == len(samples) == 1000
    assert abs(ours - 100 * right / len(samples)) <= 0.1

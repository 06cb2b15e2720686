"""Images drawn by rule: one seed, one result, however they are shared out; and statistics like a photograph's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.procedural import procedural_image, procedural_images

SIDE = 96


@pytest.fixture(scope="module")
def many() -> Tensor:
    return procedural_images(48, (SIDE, SIDE), seed=5)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (24, 80), (130, 40), (33, 47), (384, 384)])
def test_what_comes_out(size: tuple[int, int]) -> None:
    made = procedural_images(2, size, seed=1)
    assert made.shape == (2, 3, *size) and made.dtype == torch.float32 and made.device.type == "cpu"
    assert made.min() >= 0 and made.max() <= 1
    assert (made.std(dim=(1, 2, 3)) > 0.02).all()


def test_none_asked_for() -> None:
    assert procedural_images(0, (8, 16), seed=1).shape == (0, 3, 8, 16)


def test_one_seed_one_result_and_another_seed_another() -> None:
    first, again, other = (procedural_images(3, (40, 40), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(not torch.equal(one, two) for one in first for two in other)


def test_an_image_is_the_same_in_any_split() -> None:
    whole = procedural_images(7, (32, 48), seed=3, first=10)
    parts = [procedural_images(count, (32, 48), 3, first) for count, first in ((2, 10), (4, 12), (1, 16))]
    assert torch.equal(whole, torch.cat(parts))


def test_seed_and_index_are_not_added_up() -> None:
    assert not torch.equal(procedural_images(1, (32, 32), 3, first=1), procedural_images(1, (32, 32), 4, first=0))


def test_the_number_of_threads_does_not_matter() -> None:
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(procedural_images(6, (64, 64), seed=2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_draws_come_from_the_generator_given_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = procedural_image((32, 32), generator), procedural_image((32, 32), generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, procedural_image((32, 32), torch.Generator().manual_seed(4)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 72), st.integers(1, 72), st.integers(0, 2**62), st.integers(0, 2**40))
def test_any_size_and_seed(height: int, width: int, seed: int, first: int) -> None:
    made = procedural_images(1, (height, width), seed, first)
    assert made.shape == (1, 3, height, width)
    assert torch.isfinite(made).all() and made.min() >= 0 and made.max() <= 1


def grey(images: Tensor) -> np.ndarray:
    return images.mean(dim=1).double().numpy()


def slope(images: Tensor) -> float:
    """Log-log slope of the amplitude, the mean over images and directions, from 3 cycles to SIDE / 3."""
    window = np.hanning(SIDE)
    fields = grey(images)
    fields = (fields - fields.mean((1, 2), keepdims=True)) * window[:, None] * window
    amplitude = np.abs(np.fft.fft2(fields)).mean(0)
    cycles = np.fft.fftfreq(SIDE) * SIDE
    radius = np.rint(np.hypot(cycles[:, None], cycles)).astype(int)
    rings = np.arange(3, SIDE // 3)
    return float(np.polyfit(np.log(rings), np.log([amplitude[radius == ring].mean() for ring in rings]), 1)[0])


def kurtosis(images: Tensor) -> np.ndarray:
    """Of each image's differences between neighbours to the right, (B,); 3 for a Gaussian."""
    steps = np.diff(grey(images), axis=2).reshape(len(images), -1)
    steps = steps - steps.mean(1, keepdims=True)
    return np.asarray((steps**4).mean(1) / (steps**2).mean(1) ** 2)


def channel_correlation(images: Tensor) -> np.ndarray:
    """Mean correlation of two of each image's channels, (B,)."""
    pairs = np.triu_indices(3, 1)
    return np.array([np.corrcoef(image.reshape(3, -1).numpy())[pairs].mean() for image in images])


def test_white_noise_fails_what_follows() -> None:
    noise = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert slope(noise) > -0.2 and kurtosis(noise).mean() < 3.2 and abs(channel_correlation(noise).mean()) < 0.1


def test_the_spectrum_falls_as_a_photographs(many: Tensor) -> None:
    """Amplitude goes as about 1/f in photographs (Field, JOSA A 1987)."""
    assert -1.8 < slope(many) < -0.7


def test_edges_make_the_gradients_heavy_tailed(many: Tensor) -> None:
    assert kurtosis(many).mean() > 6
    assert np.median(kurtosis(many)) > 4


def test_channels_go_together_but_are_not_one(many: Tensor) -> None:
    found = channel_correlation(many)
    assert 0.5 < found.mean() < 0.95
    assert (found < 0.9).any()


def test_light_and_contrast_vary_and_little_is_clipped(many: Tensor) -> None:
    means, deviations = many.mean(dim=(1, 2, 3)), many.std(dim=(1, 2, 3))
    assert 0.3 < means.mean() < 0.6 and means.std() > 0.05
    assert deviations.mean() > 0.1 and deviations.std() > 0.02
    assert ((many == 0) | (many == 1)).float().mean() < 0.1


def test_images_differ_from_one_another(many: Tensor) -> None:
    flat = many.flatten(1)
    correlation = torch.corrcoef(flat - many.mean(dim=(2, 3), keepdim=True).expand_as(many).flatten(1))
    others = correlation[~torch.eye(len(many), dtype=torch.bool)]
    assert others.abs().mean() < 0.15
    assert (torch.cdist(flat, flat) / flat.shape[1] ** 0.5 + torch.eye(len(many))).min() > 0.05

"""Total variation against a loop over pixels; gradients against differences; the two published forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.priors.total_variation import distance_to_target, plain_variation, total_variation


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slow(images: list, diagonal: float = 1.0) -> float:
    """The four norms over all ``images`` together, as both papers take them, pixel by pixel."""
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        square = 0.0
        for image in images:
            for channel in image:
                rows, columns = len(channel), len(channel[0])
                for y in range(rows):
                    for x in range(columns):
                        if y + down < rows and 0 <= x + right < columns:
                            square += (channel[y][x] - channel[y + down][x + right]) ** 2
        total += math.sqrt(square) * (diagonal if down and right else 1)
    return total


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(2, 5),
    st.integers(2, 5),
    st.sampled_from([1.0, 1 / math.sqrt(2)]),
)
def test_equals_the_slow_form(seed: int, batch: int, height: int, width: int, diagonal: float) -> None:
    images = drawn(batch, 3, height, width, seed=seed)
    each = [slow([image], diagonal) for image in images.double().tolist()]
    assert total_variation(images, diagonal).tolist() == pytest.approx(each, rel=1e-5)


def test_the_published_forms_are_those_of_a_batch_of_images_that_are_alike() -> None:
    """Norms over a batch of 32 (PSAQ-ViT) or 16 (MimiQ) equal images, against the mean over two of them."""
    image = drawn(1, 3, 6, 5)
    published = slow(image.double().tolist() * 32)
    scale = math.sqrt(image.numel() / (3 * 224 * 224))
    targets = torch.tensor([2500.0, 3000.0])
    expected = (abs(published - scale * 2500) + abs(published - scale * 3000)) / 2
    assert float(distance_to_target(image.repeat(2, 1, 1, 1), targets)) == pytest.approx(expected, rel=1e-5)
    expected = slow(image.double().tolist() * 16, 1 / math.sqrt(2))
    assert float(plain_variation(image.repeat(2, 1, 1, 1))) == pytest.approx(expected, rel=1e-5)


def test_forms_of_other_batches() -> None:
    images = drawn(3, 3, 7, 4)
    each = [slow([image]) for image in images.double().tolist()]
    targets, scale = [10.0, 4000.0, 900.0], math.sqrt(images[0].numel() / (3 * 224 * 224))
    expected = sum(abs(2 * one - scale * goal) for one, goal in zip(each, targets, strict=True)) / 3
    assert float(distance_to_target(images, torch.tensor(targets), batch=4)) == pytest.approx(expected, rel=1e-5)
    each = [slow([image], 1 / math.sqrt(2)) for image in images.double().tolist()]
    assert float(plain_variation(images, batch=9)) == pytest.approx(3 * sum(each) / 3, rel=1e-5)


def test_a_target_is_that_of_a_photographs_size() -> None:
    image = drawn(1, 3, 224, 224)
    value = math.sqrt(32) * float(total_variation(image))
    assert float(distance_to_target(image, torch.tensor([value - 7]))) == pytest.approx(7, abs=0.01)


@pytest.mark.parametrize("diagonal", [1.0, 1 / math.sqrt(2)])
def test_gradients(diagonal: float) -> None:
    images = drawn(2, 3, 4, 5, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: total_variation(x, diagonal), (images,))


def test_gradients_of_the_forms() -> None:
    images = drawn(2, 3, 4, 5, dtype=torch.float64).requires_grad_(True)
    targets = torch.tensor([0.0, 1e5])  # one image is above its target, one below
    assert torch.autograd.gradcheck(lambda x: distance_to_target(x, targets, 4), (images,))
    assert torch.autograd.gradcheck(lambda x: plain_variation(x, 4), (images,))


def test_an_images_gradient_does_not_depend_on_what_stands_beside_it() -> None:
    pair = drawn(2, 3, 6, 6).requires_grad_(True)
    alone = pair[:1].detach().clone().requires_grad_(True)
    (together,) = torch.autograd.grad(2 * plain_variation(pair), pair)
    (single,) = torch.autograd.grad(plain_variation(alone), alone)
    assert torch.equal(together[:1], single)


def test_flat_images_have_none_and_no_gradient() -> None:
    images = torch.full((2, 3, 4, 4), 0.3, requires_grad=True)
    assert total_variation(images).tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(total_variation(images).sum(), images)
    assert torch.equal(gradient, torch.zeros_like(images))


def test_stripes_have_no_gradient_along_their_zero_norm() -> None:
    """One of the four norms is 0 and the others are not."""
    images = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(1, 3, 4, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(total_variation(images).sum(), images)
    assert torch.isfinite(gradient).all() and float(gradient.detach().abs().max()) > 0.1

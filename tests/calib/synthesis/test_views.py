"""Rolls and flips: one draw for the whole batch, uniform, differentiable, from the given generator alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from calib.synthesis.views import random_flip, random_roll


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offset(view: torch.Tensor, images: torch.Tensor, reach: int) -> tuple[int, int]:
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if torch.equal(torch.roll(images, (down, right), (2, 3)), view):
                return down, right
    raise AssertionError("not a roll within reach")


def test_rolls_reach_every_offset_and_none_further() -> None:
    images, drawn, found = torch.rand(2, 3, 9, 9), generator(), Counter()
    for _ in range(900):
        found[offset(random_roll(images, 1, drawn), images, 1)] += 1
    assert len(found) == 9
    assert min(found.values()) > 60 and max(found.values()) < 150


def test_flips_mirror_columns_half_of_the_time() -> None:
    images, drawn = torch.rand(2, 3, 4, 5), generator()
    flipped = 0
    for _ in range(400):
        view = random_flip(images, drawn)
        if torch.equal(view, images.flip(3)):
            flipped += 1
        else:
            assert torch.equal(view, images)
    assert 160 < flipped < 240


@pytest.mark.parametrize("view", [lambda x, g: random_roll(x, 3, g), random_flip], ids=["roll", "flip"])
def test_only_the_given_generator_decides(view) -> None:
    images = torch.rand(1, 3, 8, 8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [view(images, g) for g in [generator(1)] for _ in range(20)]
    torch.rand(7)
    second = [view(images, g) for g in [generator(1)] for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_rng_state(before)


def test_gradients_go_back_to_their_pixels() -> None:
    images = torch.rand(1, 3, 6, 6, requires_grad=True)
    weights = torch.rand(1, 3, 6, 6)
    view = random_flip(random_roll(images, 2, generator(3)), generator(4))
    (gradient,) = torch.autograd.grad((view * weights).sum(), images)
    assert torch.equal(gradient.flatten().sort().values, weights.flatten().sort().values)

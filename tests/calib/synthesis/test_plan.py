"""Every image is in one group, a small set is the beginning of a large one, and every draw has a name of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calib.synthesis.methods import NOISE, PSAQ, SynthesisConfig
from calib.synthesis.plan import Group, groups, image_generator

SIZES = {"parts": st.integers(0, 5), "images": st.integers(1, 60), "batch": st.integers(1, 20)}


def mixture(parts: int, images: int) -> SynthesisConfig:
    """A method of that many parts; none for 0."""
    return replace(PSAQ, images=images, mixture=tuple(replace(PSAQ, method=f"part {n}") for n in range(parts)))


@settings(deadline=None)
@given(**SIZES)
def test_every_image_is_made_once_by_its_part(parts: int, images: int, batch: int) -> None:
    config = mixture(parts, images)
    found = groups(config, batch)
    assert sorted(index for group in found for index in group.members) == list(range(images))
    assert [group.first for group in found] == sorted(group.first for group in found)
    for group in found:
        assert 1 <= len(group.members) <= batch and group.first == min(group.members)
        assert list(group.members) == sorted(group.members)
        for index in group.members:
            assert group.config is (config.mixture[index % parts] if parts else config)


@settings(deadline=None)
@given(**SIZES)
def test_groups_are_full_but_for_the_last_of_each_part(parts: int, images: int, batch: int) -> None:
    found = groups(mixture(parts, images), batch)
    assert sum(len(group.members) < batch for group in found) <= max(parts, 1)


@settings(deadline=None)
@given(**SIZES, more=st.integers(0, 60))
def test_a_small_set_is_the_beginning_of_a_large_one(parts: int, images: int, batch: int, more: int) -> None:
    """Cut to the small set's images, the large one's groups are the small one's."""
    large = [group.members for group in groups(mixture(parts, images + more), batch)]
    cut = [tuple(index for index in members if index < images) for members in large]
    assert [members for members in cut if members] == [group.members for group in groups(mixture(parts, images), batch)]


def test_groups_of_a_mixture() -> None:
    config = mixture(2, 7)
    one, two = config.mixture
    assert groups(config, 2) == [Group((0, 2), one), Group((1, 3), two), Group((4, 6), one), Group((5,), two)]
    assert groups(replace(NOISE, images=3), 8) == [Group((0, 1, 2), replace(NOISE, images=3))]


def test_warm_steps_are_a_share_of_the_iterations_where_the_network_can() -> None:
    for warm, iterations, expected in ((0.0, 8, 0), (0.5, 8, 4), (0.3, 5, 2), (1.0, 3, 3)):
        group = Group((0,), replace(PSAQ, warm=warm, iterations=iterations))
        assert (group.warm_steps(True), group.warm_steps(False)) == (expected, 0)


NAME = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 1))


@settings(max_examples=200, deadline=None)
@given(one=NAME, two=NAME)
@example(one=(0, 1, 0), two=(1, 0, 0))
@example(one=(0, 0, 1), two=(0, 1, 0))
@example(one=(2**32, 0, 0), two=(0, 1, 0))  # a seed of two words
@example(one=(2**32, 4, 0), two=(0, 4, 0))
@example(one=(5 * 2**32 + 3, 1, 0), two=(3, 5, 1))
def test_generators_differ_by_seed_image_and_purpose(one: tuple[int, int, int], two: tuple[int, int, int]) -> None:
    first, second = image_generator(*one).initial_seed(), image_generator(*two).initial_seed()
    assert (first == second) == (one == two)


def test_many_generators_are_all_different() -> None:
    names = [(seed, image, purpose) for seed in range(10) for image in range(300) for purpose in (0, 1)]
    assert len({image_generator(*name).initial_seed() for name in names}) == len(names)


def test_a_generator_depends_on_its_name_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.rand(5, generator=image_generator(3, 7, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    image_generator(9, 9)
    assert torch.equal(torch.rand(5, generator=image_generator(3, 7, 1)), first)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**64])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert image_generator(seed, 0).initial_seed() != image_generator(seed + 1, 0).initial_seed()

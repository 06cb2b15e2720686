"""What an image starts with is drawn from its own generator, whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calib.models import ModelSpec
from calib.synthesis.methods import MIMIQ, NOISE, PROCEDURAL, PSAQ, SPDFQ, SynthesisConfig
from calib.synthesis.plan import Group, image_generator
from calib.synthesis.priors.attention_prior import Layout, layouts
from calib.synthesis.procedural import procedural_image
from calib.synthesis.state import GroupState, pixel_limits, start
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, spec_of, tiny_swin, tiny_vit

LAYOUT = layouts(tiny_vit())
SPEC = spec_of(tiny_vit(), VIT_SIDE)
UNEVEN = replace(SPEC, mean=(0.2, 0.5, 0.7), std=(0.1, 0.5, 0.25))


def begin(config: SynthesisConfig, *members: int, seed: int = 0, spec: ModelSpec = SPEC) -> GroupState:
    return start(spec, LAYOUT, Group(members, config), seed)


def test_pixel_limits_are_black_and_white() -> None:
    low, high = pixel_limits(UNEVEN, torch.zeros(1))
    assert low.shape == high.shape == (1, 3, 1, 1)
    assert torch.allclose(UNEVEN.denormalise(low), torch.zeros(1), atol=1e-6)
    assert torch.allclose(UNEVEN.denormalise(high), torch.ones(1), atol=1e-6)


def test_noise_is_standard_normal_in_normalised_space_clamped_to_the_pixels() -> None:
    images = begin(NOISE, *range(40), spec=UNEVEN).images
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.float32
    low, high = pixel_limits(UNEVEN, images)
    for channel in range(3):
        values, black, white = images[:, channel], float(low[0, channel]), float(high[0, channel])
        for edge, share in ((black, (values <= black)), (white, (values >= white))):
            tail = 0.5 * torch.erfc(torch.tensor(abs(edge) / 2**0.5))
            assert float(share.float().mean()) == pytest.approx(float(tail), abs=0.01)
        assert float(values.min()) == pytest.approx(black) and float(values.max()) == pytest.approx(
            white if white < 5 else float(values.max())
        )
        inner = values[(values > -0.4) & (values < 0.4)]
        assert float((inner > 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def same(one: GroupState, two: GroupState) -> bool:
    names = ("images", "first", "second", "targets", "variation")
    tensors = all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    maps = all(torch.equal(a, b) for a, b in zip(one.priors, two.priors, strict=True))
    generators = one.generator.initial_seed() == two.generator.initial_seed()
    return tensors and maps and generators and (one.classes, one.boxes) == (two.classes, two.boxes)


@pytest.mark.parametrize("config", [NOISE, PROCEDURAL, PSAQ, MIMIQ, SPDFQ], ids=lambda config: config.method)
def test_one_seed_one_start(config: SynthesisConfig) -> None:
    assert same(begin(config, 0, 1), begin(config, 0, 1))
    assert not torch.equal(begin(config, 0, 1).images, begin(config, 0, 1, seed=1).images)
    pair = begin(config, 0, 1).images
    assert not torch.equal(pair[0], pair[1])


@pytest.mark.parametrize("config", [PROCEDURAL, PSAQ, MIMIQ, SPDFQ], ids=lambda config: config.method)
def test_an_image_starts_the_same_in_every_group(config: SynthesisConfig) -> None:
    together, alone = begin(config, 4, 2, 9), [begin(config, index) for index in (4, 2, 9)]
    assert torch.equal(together.images, torch.cat([state.images for state in alone]))
    assert torch.equal(together.variation, torch.cat([state.variation for state in alone]))
    assert together.classes == [state.classes[0] for state in alone]
    assert together.boxes == [state.boxes[0] for state in alone]
    whole = torch.cat([state.targets[:1] for state in alone])
    patches = torch.cat([state.targets[1:] for state in alone])
    assert torch.equal(together.targets, torch.cat([whole, patches]))
    for number, maps in enumerate(together.priors):
        assert torch.equal(maps, torch.cat([state.priors[number] for state in alone]))


def test_moments_and_counts_start_at_nothing() -> None:
    state = begin(PSAQ, 0, 1)
    assert not state.first.any() and not state.second.any() and state.first is not state.second
    assert (state.step, state.history, state.scales) == (0, [], {})
    state.images.zero_()
    assert begin(PSAQ, 0, 1).images.any()


def test_the_steps_draw_from_a_generator_named_by_the_first_image() -> None:
    state = begin(PSAQ, 3, 4)
    assert torch.equal(state.generator.get_state(), image_generator(0, 3, 1).get_state())


def test_one_class_an_image_evenly_drawn() -> None:
    state = begin(PSAQ, *range(700))
    labels = torch.tensor(state.classes).flatten()
    assert len(labels) == 700 and torch.equal(state.targets, torch.eye(7)[labels])
    counts = torch.bincount(labels, minlength=7)
    assert len(counts) == 7 and int(counts.min()) > 60 and int(counts.max()) < 145


def test_without_a_class_loss_no_class_is_intended() -> None:
    assert begin(NOISE, 0, 1).classes == [[], []]


def test_soft_targets_name_the_classes_of_the_patches_foremost_first() -> None:
    """Rows: the whole images, then the patches in order; each patch has one of its image's classes."""
    state = begin(SPDFQ, *range(60))
    count = [len(boxes) for boxes in state.boxes]
    assert set(count) == {1, 2, 3, 4} and [len(classes) for classes in state.classes] == count
    assert state.targets.shape == (60 + sum(count), 7)
    assert torch.allclose(state.targets.sum(1), torch.ones(60 + sum(count)), atol=1e-5)
    patches = iter(state.targets[60:])
    for row, classes in zip(state.targets, state.classes, strict=False):
        assert len(set(classes)) == len(classes)
        assert row[classes].tolist() == sorted(row[classes].tolist(), reverse=True)
        assert int(row.argmax()) == classes[0]
        assert sorted(int(next(patches).argmax()) for _ in classes) == sorted(classes)


def test_more_patches_than_classes() -> None:
    two = replace(SPEC, num_classes=2)
    for index in range(20):
        state = begin(SPDFQ, index, spec=two)
        assert len(set(state.classes[0])) == len(state.classes[0]) == min(2, len(state.boxes[0]))
        assert state.targets.shape == (1 + len(state.boxes[0]), 2)


def test_variation_targets_are_uniform() -> None:
    drawn = begin(PSAQ, *range(300)).variation.sort().values
    assert torch.allclose(drawn, torch.linspace(2500, 3000, 300), atol=40)
    assert float(drawn[0]) >= 2500 and float(drawn[-1]) <= 3000


def test_priors_are_those_of_the_deep_half() -> None:
    deep = [Layout(3, (4, 4))] * 6
    state = start(SPEC, deep, Group((0, 1), SPDFQ), 0)
    assert [tuple(maps.shape) for maps in state.priors] == [(2, 3, 16)] * 4
    assert begin(PSAQ, 0).priors == []
    swin = tiny_swin()
    state = start(spec_of(swin, SWIN_SIDE), layouts(swin), Group((0, 1), SPDFQ), 0)
    assert [tuple(maps.shape) for maps in state.priors] == [(8, 2, 49), (2, 4, 49), (2, 4, 49)]


def test_procedural_images_are_drawn_last_and_normalised() -> None:
    """The pixels are those of the image's own generator, after its class and its variation target."""
    generator = image_generator(0, 5)
    torch.randperm(7, generator=generator)
    torch.rand(1, generator=generator)
    expected: Tensor = procedural_image((32, 32), generator)
    images = begin(PROCEDURAL, 5, spec=UNEVEN).images
    assert torch.allclose(UNEVEN.denormalise(images)[0], expected, atol=1e-5)


def test_half_the_resolution_and_back_without_a_change_is_nothing() -> None:
    state = begin(SPDFQ, 0, 1)
    full = state.images.clone()
    assert not state.halved
    state.halve()
    assert state.halved and state.images.shape == state.first.shape == state.second.shape == (2, 3, 16, 16)
    for y, x in ((0, 0), (15, 15), (7, 3)):
        mean = full[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
        assert torch.allclose(state.images[:, :, y, x], mean, atol=1e-6)
    state.grow()
    assert not state.halved and torch.allclose(state.images, full, atol=1e-6)


def test_growing_adds_what_changed_to_the_full_images_and_forgets_the_moments() -> None:
    state = begin(SPDFQ, 0, 1)
    full = state.images.clone()
    state.halve()
    state.images += 0.25
    state.images[:, :, 4:8, 4:8] += 1.0
    state.first += 1
    state.second += 1
    state.grow()
    change = state.images - full
    assert torch.allclose(change[:, :, 10:14, 10:14], torch.tensor(1.25), atol=1e-5)
    assert torch.allclose(change[:, :, 20:, 20:], torch.tensor(0.25), atol=1e-5)
    assert state.first.shape == full.shape and not state.first.any() and not state.second.any()
    assert torch.equal(state.full, full)


def test_boxes_and_priors_follow_the_resolution() -> None:
    """A box is still within the image; a prior of 2 x 2 patches is the sum of the four that were each of them."""
    state = begin(SPDFQ, *range(20))
    boxes, priors = state.scaled_boxes(), state.scaled_priors()
    assert boxes is state.boxes and priors is state.priors
    state.halve()
    for mine, halves in zip(state.boxes, state.scaled_boxes(), strict=True):
        assert [tuple(value // 2 for value in box) for box in mine] == halves
        assert all(top + high <= 16 and left + wide <= 16 for top, left, high, wide in halves)
    for whole, half in zip(priors, state.scaled_priors(), strict=True):
        assert half.shape == (20, 2, 4)
        grid = whole.view(20, 2, 4, 4)
        for patch, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            assert torch.allclose(half[:, :, patch], grid[:, :, y : y + 2, x : x + 2].sum((2, 3)), atol=1e-6)


def test_a_box_of_one_pixel_stays_one() -> None:
    state = begin(SPDFQ, 0)
    state.boxes = [[(31, 31, 1, 1)]]
    state.halve()
    assert state.scaled_boxes() == [[(15, 15, 1, 1)]]


def test_moving_to_a_device_moves_every_tensor() -> None:
    state = begin(SPDFQ, 0, 1).to("meta")
    for tensor in (state.images, state.first, state.second, state.targets, state.variation, *state.priors):
        assert tensor.device.type == "meta"
    assert state.generator.device.type == "cpu"

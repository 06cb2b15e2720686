"""Views: draws from the given generator alone, within their ranges, uniform; gradients go back to their pixels."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.views import (
    Box,
    colour_offset,
    colour_shift,
    draw_crop,
    easy_to_hard,
    place_patches,
    random_crops,
    random_flip,
    random_roll,
    resized_crops,
)

SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed))


def offset(view: Tensor, images: Tensor, reach: int) -> tuple[int, int]:
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if torch.equal(torch.roll(images, (down, right), (2, 3)), view):
                return down, right
    raise AssertionError("not a roll within reach")


def test_rolls_reach_every_offset_and_none_further() -> None:
    images, source, found = drawn(2, 3, 9, 9), generator(), Counter()
    for _ in range(900):
        found[offset(random_roll(images, 1, source), images, 1)] += 1
    assert len(found) == 9
    assert min(found.values()) > 60 and max(found.values()) < 150


def test_a_diagonal_roll_goes_as_far_down_as_right() -> None:
    images, source, found = drawn(2, 3, 9, 9), generator(), Counter()
    for _ in range(300):
        found[offset(random_roll(images, 1, source, diagonal=True), images, 1)] += 1
    assert found.keys() == {(-1, -1), (0, 0), (1, 1)} and min(found.values()) > 70


def test_flips_mirror_columns_half_of_the_time() -> None:
    images, source = drawn(2, 3, 4, 5), generator()
    flipped = 0
    for _ in range(400):
        view = random_flip(images, source)
        if torch.equal(view, images.flip(3)):
            flipped += 1
        else:
            assert torch.equal(view, images)
    assert 160 < flipped < 240


def uniform(values: Tensor, low: float, high: float) -> bool:
    """Within the range, and as many as there should be below every point of it."""
    ordered = values.flatten().double().sort().values
    expected = torch.linspace(low, high, len(ordered), dtype=torch.float64)
    inside = float(ordered[0]) >= low - 1e-3 and float(ordered[-1]) <= high + 1e-3
    return inside and float((ordered - expected).abs().max()) < 0.05 * (high - low)


def test_a_colour_shift_is_one_for_each_channel_of_each_image_within_its_ranges() -> None:
    images = drawn(500, 3, 4, 4)
    view = colour_shift(images, generator(1))
    top, bottom = images.flatten(2).argmax(2, keepdim=True), images.flatten(2).argmin(2, keepdim=True)
    x1, x2 = (images.flatten(2).gather(2, place) for place in (top, bottom))
    v1, v2 = (view.flatten(2).gather(2, place) for place in (top, bottom))
    scale = (x1 - x2) / (v1 - v2)
    middle = x1 - scale * v1
    assert torch.allclose((images - middle[..., None]) / scale[..., None], view, atol=1e-3)
    assert uniform(scale.log(), -1, 1) and uniform(middle, -1, 1)


def test_a_colour_offset_is_one_normal_draw_for_each_channel_of_each_image() -> None:
    images = drawn(1000, 3, 2, 2)
    added = colour_offset(images, 0.5, generator(1)) - images
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-6)
    each = added[:, :, 0, 0]
    assert float(each.std()) == pytest.approx(0.5, rel=0.05) and abs(float(each.mean())) < 0.03
    assert float(each.abs().median()) == pytest.approx(0.5 * 0.6745, rel=0.08)
    assert float(torch.corrcoef(each.T).triu(1).abs().max()) < 0.2
    assert torch.equal(colour_offset(images, 0.0, generator(1)), images)


VIEWS = {
    "roll": lambda x, g: random_roll(x, 3, g),
    "flip": random_flip,
    "shift": colour_shift,
    "offset": lambda x, g: colour_offset(x, 0.5, g),
    "crops": lambda x, g: random_crops(x, 0.08, 0.75, g),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_only_the_given_generator_decides(view) -> None:
    images = drawn(1, 3, 8, 8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [view(images, g) for g in [generator(1)] for _ in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = [view(images, g) for g in [generator(1)] for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1


def test_gradients_go_back_to_their_pixels() -> None:
    images, weights = drawn(1, 3, 6, 6).requires_grad_(True), drawn(1, 3, 6, 6, seed=1)
    view = random_flip(random_roll(images, 2, generator(3)), generator(4))
    (gradient,) = torch.autograd.grad((view * weights).sum(), images)
    assert torch.equal(gradient.flatten().sort().values, weights.flatten().sort().values)


def test_easy_to_hard_goes_from_the_whole_image_to_the_smallest_crop_in_equal_steps() -> None:
    shares = [easy_to_hard(step, 1000, 0.08) for step in range(1000)]
    assert shares[0] == 1.0 and shares[-1] == pytest.approx(0.08)
    assert shares == pytest.approx(torch.linspace(1, 0.08, 1000).tolist(), abs=1e-6)
    assert easy_to_hard(0, 1, 0.08) == 1.0


def inside(box: Box, height: int, width: int) -> bool:
    top, left, high, wide = box
    return top >= 0 and left >= 0 and high >= 1 and wide >= 1 and top + high <= height and left + wide <= width


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, smallest=st.floats(0.01, 1), ratio=st.floats(0.2, 1), seed=SEEDS)
def test_crops_are_inside_and_within_their_ranges(height, width, smallest, ratio, seed) -> None:
    """Area and aspect of some crop that rounds to this one; or it is the whole image."""
    top, left, high, wide = draw_crop(height, width, smallest, ratio, generator(seed))
    assert inside((top, left, high, wide), height, width)
    if (high, wide) == (height, width):
        return
    assert (high + 0.5) * (wide + 0.5) >= smallest * height * width * (1 - 1e-6)
    assert (wide + 0.5) / (high - 0.5) >= ratio * (1 - 1e-6) and (high + 0.5) / (wide - 0.5) >= ratio * (1 - 1e-6)


def test_crops_take_all_areas_aspects_and_places() -> None:
    source = generator()
    boxes = torch.tensor([draw_crop(400, 400, 0.08, 0.75, source) for _ in range(3000)]).double()
    top, left, high, wide = boxes.unbind(1)
    area, aspect = high * wide / 400**2, wide / high
    small = area < 0.7  # no draw of these was refused for being too long
    assert uniform(aspect[small].log(), math.log(0.75) - 0.02, -math.log(0.75) + 0.02)
    assert uniform(area[small], 0.08, 0.7)
    for place, room in ((top, 400 - high), (left, 400 - wide)):
        assert uniform((place / (room + 1))[small], 0, 1)


def test_the_easiest_crop_is_the_whole_image() -> None:
    images = drawn(20, 3, 16, 16)
    assert torch.equal(random_crops(images, 1.0, 0.75, generator()), images)


def test_every_image_has_a_crop_of_its_own() -> None:
    images, source = drawn(1, 3, 16, 16).expand(4, -1, -1, -1), generator(2)
    boxes = [[draw_crop(16, 16, 0.08, 0.75, source)] for _ in range(4)]
    assert len({box for (box,) in boxes}) == 4
    assert torch.equal(random_crops(images, 0.08, 0.75, generator(2)), resized_crops(images, boxes))


def bilinear(image: list, y: float, x: float) -> float:
    """The value between pixel centres, the edge's value beyond the last of them."""
    rows, columns = len(image), len(image[0])
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    up, left = min(int(y), rows - 1), min(int(x), columns - 1)
    down, right = min(up + 1, rows - 1), min(left + 1, columns - 1)
    above = image[up][left] * (1 - (x - left)) + image[up][right] * (x - left)
    below = image[down][left] * (1 - (x - left)) + image[down][right] * (x - left)
    return above * (1 - (y - up)) + below * (y - up)


BOXES: list[list[Box]] = [[(0, 0, 4, 5), (3, 6, 5, 2)], [], [(1, 2, 6, 6)]]


def test_resized_crops_are_bilinear_in_the_order_of_the_images() -> None:
    images = drawn(3, 2, 8, 10)
    found = resized_crops(images, BOXES)
    flat = [(image, box) for image, boxes in zip(images, BOXES, strict=True) for box in boxes]
    assert found.shape == (3, 2, 8, 10)
    for crop, (image, (top, left, high, wide)) in zip(found, flat, strict=True):
        part = image[:, top : top + high, left : left + wide]
        assert torch.equal(crop, F.interpolate(part[None], (8, 10), mode="bilinear", align_corners=False)[0])
        for channel in range(2):
            for y, x in [(0, 0), (3, 7), (7, 9), (5, 2)]:
                slow = bilinear(part[channel].tolist(), (y + 0.5) * high / 8 - 0.5, (x + 0.5) * wide / 10 - 0.5)
                assert float(crop[channel, y, x]) == pytest.approx(slow, abs=1e-6)


def test_the_gradient_of_a_crop_reaches_its_own_box_and_nothing_else() -> None:
    images = drawn(3, 2, 8, 10).requires_grad_(True)
    flat = [(image, box) for image, boxes in enumerate(BOXES) for box in boxes]
    for crop, (image, (top, left, high, wide)) in zip(resized_crops(images, BOXES), flat, strict=True):
        (gradient,) = torch.autograd.grad(crop.sum(), images, retain_graph=True)
        within = torch.zeros_like(images, dtype=torch.bool)
        within[image, :, top : top + high, left : left + wide] = True
        assert (gradient[within] > 0).all() and (gradient[~within] == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    height=SIDES, width=SIDES, most=st.integers(1, 6), seed=SEEDS,
    sides=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
)  # fmt: skip
def test_patches_are_inside_squares_that_do_not_overlap(height, width, most, sides, seed) -> None:
    boxes = place_patches(height, width, most, tuple(sides), generator(seed))
    assert 1 <= len(boxes) <= most
    shorter = min(height, width)
    for box in boxes:
        assert inside(box, height, width) and box[2] == box[3]
        assert max(1, round(shorter * sides[0])) <= box[2] <= max(1, round(shorter * sides[1]))
    for one, two in combinations(boxes, 2):
        first, second = (
            {(y, x) for y in range(top, top + high) for x in range(left, left + wide)}
            for top, left, high, wide in (one, two)
        )
        assert not first & second


def test_one_to_four_patches_of_a_quarter_to_half_the_side() -> None:
    source = generator()
    sets = [place_patches(224, 224, 4, (0.25, 0.5), source) for _ in range(800)]
    counts = Counter(len(boxes) for boxes in sets)
    assert set(counts) == {1, 2, 3, 4}
    assert 150 < counts[1] < 250 and 150 < counts[2] < 250
    assert counts[4] > 80  # fewer than were wanted where there was no room
    assert uniform(torch.tensor([boxes[0][2] / 224 for boxes in sets]), 0.25, 0.5)

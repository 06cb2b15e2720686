"""Attention priors: the loss against loops, maps that are distributions, and Swin's windows the pieces timm cuts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.quant.families import is_swin
from calib.synthesis.priors.attention_prior import Layout, attention_prior_loss, deep_half, draw_priors, layouts
from calib.taps import AttentionTaps
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit

SHIFTED = Layout(2, (14, 14), (7, 7), (3, 3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64).softmax(-1).to(dtype)


def slow(profiles: list, priors: list, masses: list, blocks: int) -> float:
    """sum_l (l / L) sum_h MSE, mean over the rows; l counted from 1 and starting at half the depth."""
    total = 0.0
    for index, (profile, prior, mass) in enumerate(zip(profiles, priors, masses, strict=True)):
        depth = blocks // 2 + index
        for row in range(len(profile)):
            for head in range(len(profile[row])):
                error = 0.0
                for a, b in zip(profile[row][head], prior[row][head], strict=True):
                    error += (a - mass[row][head] * b) ** 2
                total += depth / blocks * error / len(profile[row][head]) / len(profile)
    return total


def case(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list]:
    """Blocks 3, 4, 5 and 6 of a network of six; what a class token leaves to the patches differs from row to row."""
    shapes = [(6, 2, 9), (6, 2, 9), (2, 3, 25), (2, 3, 25)]
    shares = [torch.rand(shape[:2], generator=generator(7 + i), dtype=torch.float64) for i, shape in enumerate(shapes)]
    profiles = [
        (distributions(*shape, seed=i, dtype=torch.float64) * share[..., None]).to(dtype)
        for i, (shape, share) in enumerate(zip(shapes, shares, strict=True))
    ]
    priors = [distributions(*shape, seed=20 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    return profiles, priors, [share.tolist() for share in shares]


def test_equals_the_slow_form() -> None:
    profiles, priors, masses = case(torch.float32)
    expected = slow([p.tolist() for p in profiles], [p.tolist() for p in priors], masses, 6)
    assert float(attention_prior_loss(profiles, priors, 6)) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_differences_with_the_mass_held() -> None:
    profiles, priors, masses = case(torch.float64)
    for profile in profiles:
        profile.requires_grad_(True)
    found = torch.autograd.grad(attention_prior_loss(profiles, priors, 6), profiles)
    lists = [profile.tolist() for profile in profiles]
    for block, row, head, patch in [(0, 0, 0, 0), (0, 5, 1, 8), (1, 2, 0, 3), (2, 1, 2, 24), (3, 0, 1, 7)]:
        values = []
        for step in (1e-5, -2e-5):
            lists[block][row][head][patch] += step
            values.append(slow(lists, [prior.tolist() for prior in priors], masses, 6))
        lists[block][row][head][patch] += 1e-5
        assert float(found[block][row, head, patch]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_profile_that_is_its_prior_costs_nothing_whatever_its_mass() -> None:
    priors = [distributions(2, 3, 16)]
    assert float(attention_prior_loss([0.3 * priors[0]], priors, 1)) < 1e-12
    with pytest.raises(ValueError, match="shorter"):
        attention_prior_loss(priors, [], 1)


def test_the_deep_half() -> None:
    assert list(deep_half(12)) == [5, 6, 7, 8, 9, 10, 11]  # l = 6 .. 12 counted from 1
    assert list(deep_half(24)) == list(range(11, 24))
    assert list(deep_half(2)) == [0, 1] and list(deep_half(1)) == [0]


def test_layouts() -> None:
    assert layouts(tiny_vit()) == [Layout(2, (4, 4))] * 2
    assert layouts(tiny_vit(img_size=(32, 48), reg_tokens=2, num_heads=4)) == [Layout(4, (4, 6))] * 2
    last = Layout(4, (7, 7), (7, 7), (0, 0))
    assert layouts(tiny_swin()) == [Layout(2, (14, 14), (7, 7), (0, 0)), SHIFTED, last, last]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), heads=st.integers(1, 3), images=st.integers(1, 3), most=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    window=st.none() | st.tuples(st.integers(1, 7), st.integers(1, 7)), shift=st.integers(0, 3),
)  # fmt: skip
def test_every_map_is_a_distribution(seed, heads, images, most, grid, window, shift) -> None:
    (maps,) = draw_priors([Layout(heads, grid, window, (shift, shift))], images, most, generator(seed))
    if window is None:
        assert maps.shape == (images, heads, grid[0] * grid[1])
    else:
        pieces = math.ceil(grid[0] / window[0]) * math.ceil(grid[1] / window[1])
        assert maps.shape == (images * pieces, heads, window[0] * window[1])
    assert maps.dtype == torch.float32 and float(maps.min()) >= 0
    assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)


def test_every_image_block_and_head_has_a_map_of_its_own() -> None:
    maps = torch.stack(draw_priors([Layout(3, (14, 14))] * 4, 2, 5, generator())).flatten(0, 2)
    distance = torch.cdist(maps, maps) + torch.eye(24)
    assert float(distance.min()) > 1e-3
    again = torch.stack(draw_priors([Layout(3, (14, 14))] * 4, 2, 5, generator())).flatten(0, 2)
    assert torch.equal(maps, again)


def test_one_component_is_a_gaussian_of_one_to_five_patches_anywhere_on_the_grid() -> None:
    """Its logarithm is a parabola along each axis: curvature -1 / sigma^2, its vertex the mean."""
    (maps,) = draw_priors([Layout(400, (14, 14))], 1, 1, generator())
    maps = maps.double().view(400, 14, 14)
    for axis in (maps.sum(2), maps.sum(1)):
        usable = axis.clamp_min(1e-25).log()[(axis > 1e-20).all(1)]
        curvature = usable.diff(n=2, dim=1)
        sigma = (-1 / curvature.mean(1)).sqrt()
        assert torch.allclose(curvature, curvature.mean(1, keepdim=True), atol=1e-3)
        assert float(sigma.max()) == pytest.approx(5, abs=0.1) and float(sigma.max()) <= 5.01
        middle = (usable[:, 7] - usable[:, 6]) * sigma**2 + 6.5  # of patches counted from 0
        assert float(middle.min()) > -0.6 and float(middle.max()) < 13.6
        assert len(usable) > 300 and float(middle.std()) == pytest.approx(14 / math.sqrt(12), rel=0.15)
        spread = (axis * (torch.arange(14) - (axis * torch.arange(14)).sum(1, keepdim=True)).square()).sum(1).sqrt()
        narrow = spread[(axis.argmax(1) - 6.5).abs() < 3]  # not cut off at the edge
        assert 0.95 < float(narrow.min()) < 1.2


def test_one_to_five_components() -> None:
    """A single Gaussian makes a map of rank 1, and one in five maps has a single one."""
    (maps,) = draw_priors([Layout(500, (14, 14))], 1, 5, generator())
    values = torch.linalg.svdvals(maps.view(500, 14, 14))
    single = int((values[:, 1] < 1e-4 * values[:, 0]).sum())
    assert 70 <= single <= 135
    assert int((values[:, 4] > 1e-4 * values[:, 0]).sum()) > 10  # and some have all five


def pieces(whole: Tensor, layout: Layout) -> list[list[list[float]]]:
    """Each window of the rolled map (rows, columns), as nested lists; beyond the edge 0."""
    assert layout.window is not None
    (rows, columns), (high, wide) = layout.grid, layout.window
    found = []
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            window = []
            for y in range(top, top + high):
                for x in range(left, left + wide):
                    inside = y < rows and x < columns
                    rolled = ((y + layout.shift[0]) % rows, (x + layout.shift[1]) % columns)
                    window.append(float(whole[rolled]) if inside else 0.0)
            found.append(window)
    return found


@pytest.mark.parametrize(
    "layout",
    [SHIFTED, Layout(2, (14, 14), (7, 7)), Layout(3, (7, 7), (7, 7)), Layout(1, (10, 9), (4, 5), (2, 1))],
    ids=["shifted", "plain", "one", "padded"],
)
def test_windows_are_the_pieces_of_one_map(layout: Layout) -> None:
    (windows,) = draw_priors([layout], 2, 5, generator(3))
    (whole,) = draw_priors([Layout(layout.heads, layout.grid)], 2, 5, generator(3))
    whole = whole.view(2, layout.heads, *layout.grid)
    count = len(windows) // 2
    for image in range(2):
        for head in range(layout.heads):
            for number, piece in enumerate(pieces(whole[image, head], layout)):
                expected = torch.tensor(piece) + 1e-8
                mine = windows[image * count + number, head]
                assert torch.allclose(mine, expected / expected.sum(), rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_timm_cuts_the_same_pieces() -> None:
    """The tokens that a shifted block's attention reads are the pieces of what its norm gives."""
    model, seen = tiny_swin(), []
    block = model.layers[0].blocks[1]
    block.norm1.register_forward_hook(lambda module, args, out: seen.append(out))
    block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(pictures(2, SWIN_SIDE))
    grid, windows = seen
    assert layouts(model)[1] == SHIFTED
    for image in range(2):
        expected = torch.tensor(pieces(grid[image, :, :, 5], SHIFTED))
        assert torch.equal(windows[image * 4 : image * 4 + 4, :, 5], expected)


@pytest.mark.parametrize("model", [tiny_vit(reg_tokens=1), tiny_swin()], ids=["vit", "swin"])
def test_priors_have_the_shapes_of_the_profiles(model: Any) -> None:
    with AttentionTaps(model, ["queries"]) as taps:
        model(pictures(3, SWIN_SIDE if is_swin(model) else VIT_SIDE))
    layout = layouts(model)
    profiles = [taps.profile(index) for index in deep_half(len(layout))]
    priors = draw_priors([layout[index] for index in deep_half(len(layout))], 3, 5, generator())
    assert [prior.shape for prior in priors] == [profile.shape for profile in profiles]
    assert float(attention_prior_loss(profiles, priors, len(layout))) > 0

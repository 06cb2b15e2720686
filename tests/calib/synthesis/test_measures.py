"""What is measured of a set equals the obvious loops, one image, window, query and pair of heads at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calib.quant.families import block_names
from calib.synthesis.measures import head_maps, measure, prior_distance
from calib.synthesis.priors.attention_prior import deep_half, draw_priors, layouts
from calib.taps import AttentionTaps
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, spec_of, tiny_swin, tiny_vit

NETWORKS = {
    "vit": (tiny_vit(reg_tokens=2), VIT_SIDE),
    "swin": (tiny_swin(), SWIN_SIDE),
}
COUNT = 3


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Tensor, Tensor]:
    """Network, spec, pixels and classes: two intended, one, none."""
    model, side = NETWORKS[request.param]
    pixels = torch.rand((COUNT, 3, side, side), generator=torch.Generator().manual_seed(1))
    return model, spec_of(model, side), pixels, torch.tensor([[2, 0], [1, -1], [-1, -1]])


def seen(model: Any, spec: Any, pixel: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, queries, keys (without prefix tokens) and A.V of one image alone."""
    with torch.no_grad(), AttentionTaps(model, ("values", "queries")) as taps:
        logits = model(spec.normalise(pixel[None].float()))[0]
        skip = taps.prefix_tokens
        return logits, *([x[:, :, skip:].double() for x in kept] for kept in (taps.queries, taps.keys, taps.values))


def stretched(row: Tensor) -> Tensor:
    return (row - row.min()) / (row.max() - row.min() + 1e-8)


def slow_similarity(q: Tensor, k: Tensor) -> float:
    """Mean SSIM^2 over windows, queries and ordered pairs of heads."""
    found = []
    for window in range(len(q)):
        for query in range(q.shape[2]):
            maps = [stretched(k[window, head] @ q[window, head, query]) for head in range(q.shape[1])]
            for one in maps:
                for two in maps:
                    covariance = ((one - one.mean()) * (two - two.mean())).mean()
                    level = (2 * one.mean() * two.mean() + 1e-4) / (one.mean() ** 2 + two.mean() ** 2 + 1e-4)
                    spread = one.var(unbiased=False) + two.var(unbiased=False)
                    found.append(float(level * (2 * covariance + 9e-4) / (spread + 9e-4)) ** 2)
    return float(np.mean(found))


def slow_entropy(values: Tensor) -> float:
    """Kernel density entropy at ten points, mean over windows."""
    found = []
    for window in values:
        patches = window.mean(0)
        similar = torch.nn.functional.cosine_similarity(patches[:, None], patches[None], dim=-1).flatten().numpy()
        points = np.linspace(similar.min(), similar.max(), 10)
        density = [np.exp(-((x - similar) ** 2) / (2 * 0.01**2)).mean() / (0.01 * (2 * np.pi) ** 0.5) for x in points]
        q = np.array(density) + 1e-4
        heights = -q * np.log(q)
        found.append(float(((heights[1:] + heights[:-1]) / 2 * np.diff(points)).sum()))
    return float(np.mean(found))


def slow_variation(x: Tensor) -> float:
    pairs = ((x[:, :, 1:], x[:, :, :-1]), (x[:, 1:], x[:, :-1]))
    pairs += ((x[:, 1:, 1:], x[:, :-1, :-1]), (x[:, :-1, 1:], x[:, 1:, :-1]))
    return sum(float((one - two).norm()) for one, two in pairs)


def test_equals_the_loops(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, classes = case
    found = measure(model, spec, pixels, classes)
    alone = [seen(model, spec, pixel) for pixel in pixels]
    chances = [logits.softmax(0) for logits, *_ in alone]
    assert found.top1 == [int(chance.argmax()) for chance in chances]
    assert found.agreement == np.mean([found.top1[0] in (2, 0), found.top1[1] == 1])
    assert found.confidence == pytest.approx([float(chances[0][[2, 0]].sum()), float(chances[1][1]), 0], rel=1e-4)
    assert found.total_variation == pytest.approx(
        np.mean([slow_variation(x) for x in spec.normalise(pixels)]), rel=1e-5
    )
    for block in range(len(block_names(model))):
        heads = [slow_similarity(queries[block], keys[block]) for _, queries, keys, _ in alone]
        assert found.head_similarity[block] == pytest.approx(np.mean(heads), rel=1e-4)
        entropies = [slow_entropy(values[block]) for *_, values in alone]
        assert found.patch_entropy[block] == pytest.approx(np.mean(entropies), abs=1e-3)
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_agreement_counts_any_intended_class(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, _ = case
    top1 = measure(model, spec, pixels, None).top1
    wrong = [(label + 1) % spec.num_classes for label in top1]
    classes = torch.tensor([[wrong[0], top1[0]], [wrong[1], -1], [-1, -1]])
    assert measure(model, spec, pixels, classes).agreement == 0.5


def test_all_classes_together_are_no_more_than_certain() -> None:
    model = tiny_vit()
    pixels = torch.rand((64, 3, VIT_SIDE, VIT_SIDE), generator=torch.Generator().manual_seed(0))
    classes = torch.arange(7).expand(64, -1)
    confidence = measure(model, spec_of(model, VIT_SIDE), pixels, classes).confidence
    assert max(confidence) == 1 and min(confidence) == pytest.approx(1)


@pytest.mark.parametrize("classes", [None, torch.full((COUNT, 2), -1)])
def test_without_classes(case: tuple[Any, Any, Tensor, Tensor], classes: Tensor | None) -> None:
    model, spec, pixels, given = case
    found = measure(model, spec, pixels, classes)
    assert found.agreement is None and found.confidence == [0.0] * COUNT
    assert found.head_similarity == measure(model, spec, pixels, given).head_similarity


def test_batch_decides_nothing(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, classes = case
    priors = draw(model)
    whole, distance = asdict(measure(model, spec, pixels, classes)), prior_distance(model, spec, pixels, priors)
    for batch in (1, 2):
        parts = asdict(measure(model, spec, pixels, classes, batch))
        for name, value in whole.items():
            assert parts[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
        assert prior_distance(model, spec, pixels, priors, batch) == pytest.approx(distance, rel=1e-4)


def test_any_float_type(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, classes = case
    half = pixels.half()
    assert measure(model, spec, half, classes) == measure(model, spec, half.double(), classes)


@pytest.mark.parametrize("work", [lambda *a: measure(*a, None), lambda *a: head_maps(a[0], a[1], a[2][0], 1, 0)])
def test_the_model_is_not_changed(work: Callable[..., Any]) -> None:
    """In train mode with dropout: measured as in eval mode, every module's mode and hook list as it was."""
    model = tiny_vit(proj_drop_rate=0.5, drop_path_rate=0.5)
    spec, pixels = spec_of(model, VIT_SIDE), torch.rand(2, 3, VIT_SIDE, VIT_SIDE)
    expected = work(model, spec, pixels)
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = work(model, spec, pixels)
    assert torch.equal(found, expected) if isinstance(found, Tensor) else found == expected
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def draw(model: Any) -> list[Tensor]:
    kept = layouts(model)
    return draw_priors([kept[index] for index in deep_half(len(kept))], COUNT, 5, torch.Generator().manual_seed(3))


def test_prior_distance_equals_the_loop(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, _ = case
    blocks = len(block_names(model))
    priors = draw(model)
    total = 0.0
    for index, pixel in enumerate(pixels):
        with torch.no_grad(), AttentionTaps(model, ("queries",)) as taps:
            model(spec.normalise(pixel[None]))
            for block, prior in zip(deep_half(blocks), priors, strict=True):
                profile = taps.profile(block)
                windows = len(profile)
                for window, head in np.ndindex(windows, profile.shape[1]):
                    seen_map, wanted = profile[window, head], prior[index * windows + window, head]
                    error = float(((seen_map - wanted * seen_map.sum()) ** 2).mean())
                    total += (block + 1) / blocks * error / windows
    assert prior_distance(model, spec, pixels, priors) == pytest.approx(total / COUNT, rel=1e-4)


def test_prior_distance_of_its_own_profile_is_zero(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    model, spec, pixels, _ = case
    with torch.no_grad(), AttentionTaps(model, ("queries",)) as taps:
        model(spec.normalise(pixels))
        profiles = [taps.profile(index) for index in deep_half(len(taps.attentions))]
    own = [profile / profile.sum(-1, keepdim=True) for profile in profiles]
    assert prior_distance(model, spec, pixels, own) < 1e-10 < prior_distance(model, spec, pixels, draw(model))

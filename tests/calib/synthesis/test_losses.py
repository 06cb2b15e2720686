"""The terms of every method are the priors by hand on its view, and the gradient is the total's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calib.synthesis import losses
from calib.synthesis.losses import gradient, view, wanted
from calib.synthesis.methods import DFQ_VIT, MIMIQ, NOISE, PSAQ, SPDFQ, Priors, Round, SynthesisConfig, Views
from calib.synthesis.plan import Group
from calib.synthesis.priors.attention_prior import attention_prior_loss, layouts
from calib.synthesis.priors.head_similarity import head_similarity_loss
from calib.synthesis.priors.patch_entropy import patch_entropy_loss
from calib.synthesis.priors.total_variation import distance_to_target, plain_variation
from calib.synthesis.state import GroupState, start
from calib.synthesis.twin import twins
from calib.synthesis.views import (
    colour_offset,
    colour_shift,
    draw_crop,
    random_flip,
    random_roll,
    resized_crops,
)
from calib.taps import AttentionTaps
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, spec_of, tiny_swin, tiny_vit

pytestmark = pytest.mark.usefixtures("exact")

BUILD = {"vit": tiny_vit, "swin": tiny_swin}
RAW = replace(SPDFQ, priors=replace(SPDFQ.priors, normalise=False))


def prepared(name: str, config: SynthesisConfig, images: int = 2) -> tuple[Any, GroupState]:
    (model,) = twins(BUILD[name](), 1, "cpu")
    spec = spec_of(model, VIT_SIDE if name == "vit" else SWIN_SIDE)
    return model, start(spec, layouts(model), Group(tuple(range(images)), config), 3)


def copied(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def evaluated(name: str, config: SynthesisConfig, step: int = 0) -> tuple[dict[str, float], Tensor]:
    model, state = prepared(name, config)
    state.step = step
    with AttentionTaps(model, wanted(config)) as taps:
        return gradient(model, config, state, taps)


def psaq(model: Any, state: GroupState, images: Tensor, reach: int) -> dict[str, Tensor]:
    generator = copied(state.generator)
    whole = random_flip(random_roll(images, reach, generator, diagonal=True), generator)
    with AttentionTaps(model) as taps:
        logits = model(whole)
    return {
        "entropy": patch_entropy_loss(taps.values, taps.prefix_tokens, "kde"),
        "class": F.cross_entropy(logits, torch.tensor(state.classes)[:, 0]),
        "tv": 0.05 * distance_to_target(whole, state.variation, 32),
    }


def mimiq(model: Any, state: GroupState, images: Tensor, reach: int) -> dict[str, Tensor]:
    generator = copied(state.generator)
    whole = colour_offset(random_roll(images, reach, generator), 0.5, generator)
    whole = colour_shift(whole, generator)
    with AttentionTaps(model, ["queries"]) as taps:
        logits = model(whole)
    return {
        "heads": head_similarity_loss(taps.queries, taps.keys, taps.prefix_tokens),
        "class": F.cross_entropy(logits, torch.tensor(state.classes)[:, 0]),
        "tv": 2.5e-5 * plain_variation(images, 16),
    }


def spdfq(model: Any, state: GroupState, images: Tensor, reach: int) -> dict[str, Tensor]:
    """The priors from a pass of the whole images alone, the class loss from all views, each passed on its own."""
    shown = torch.cat([images, resized_crops(images, state.boxes)])
    logits = torch.cat([model(one[None]) for one in shown])
    with AttentionTaps(model, ["queries"]) as taps:
        model(images)
    blocks = len(taps.attentions)
    profiles = [taps.profile(block) for block in range(blocks // 2 - 1, blocks)]
    return {
        "attention": attention_prior_loss(profiles, state.priors, blocks),
        "class": F.cross_entropy(logits, state.targets),
        "tv": 0.05 * distance_to_target(images, state.variation, 32),
    }


CASES = {"psaq": (PSAQ, psaq, 15), "mimiq": (MIMIQ, mimiq, 8), "spdfq": (RAW, spdfq, 0)}


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("method", CASES)
def test_the_first_terms_are_the_priors_by_hand(name: str, method: str) -> None:
    """And so is the gradient; a roll is by at most the published pixels of 224, in proportion."""
    config, by_hand, roll = CASES[method]
    model, state = prepared(name, config)
    images = state.images.clone().requires_grad_(True)
    terms = by_hand(model, state, images, max(1, round(roll * images.shape[2] / 224)))
    (slope,) = torch.autograd.grad(sum(terms.values()), images)
    found, mine = evaluated(name, config)
    expected = {key: float(value.detach()) for key, value in terms.items()}
    assert found == pytest.approx(expected | {"total": sum(expected.values())}, rel=1e-4)
    assert list(found) == [*expected, "total"]
    assert float((mine - slope).norm()) < 1e-3 * float(slope.norm())


def in_float64(monkeypatch: pytest.MonkeyPatch, name: str, config: SynthesisConfig) -> Any:
    """A function of the images: terms and gradient from the same draws every time, all in float64."""
    monkeypatch.setattr(losses, "forward", lambda model, images: model(images))
    model, state = prepared(name, config)
    model.double()
    state.images, state.variation = state.images.double(), state.variation.double()
    state.priors = [prior.double() for prior in state.priors]
    begun = state.generator.get_state()

    def at(images: Tensor) -> tuple[dict[str, float], Tensor]:
        state.images = images
        state.generator.set_state(begun)
        with AttentionTaps(model, wanted(config)) as taps:
            return gradient(model, config, state, taps)

    return at, state.images


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(
    "config",
    [
        replace(PSAQ, priors=Priors(entropy=1.0, entropy_form="gaussian")),
        MIMIQ,
        replace(SPDFQ, priors=Priors()),
        replace(DFQ_VIT, iterations=1, priors=Priors(entropy=1.0, entropy_form="gaussian", rows=5)),
        replace(PSAQ, method="heads", priors=Priors(heads=1.0, normalise=True, rows=7)),
    ],
    ids=lambda config: config.method,
)
def test_the_gradient_is_that_of_differences_of_the_total(
    name: str, config: SynthesisConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, along two directions. A class target in float32 rows is exact enough."""
    at, images = in_float64(monkeypatch, name, config)
    _, slope = at(images)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        along = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        step = 1e-6
        expected = (at(images + step * along)[0]["total"] - at(images - step * along)[0]["total"]) / (2 * step)
        assert float((slope * along).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_patch_moves_its_own_pixels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the whole image's rows in the class loss."""
    config = replace(SPDFQ, priors=Priors(), variation=replace(SPDFQ.variation, weight=0.0))
    monkeypatch.setattr(losses, "target_loss", lambda logits, targets: logits[2:].square().sum())
    _, slope = evaluated("vit", config)
    _, state = prepared("vit", config)
    inside = torch.zeros_like(slope, dtype=torch.bool)
    for image, boxes in enumerate(state.boxes):
        for top, left, high, wide in boxes:
            inside[image, :, top : top + high, left : left + wide] = True
    assert (slope[~inside] == 0).all() and (slope[inside] != 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("priors", "expected"),
    [
        (Priors(), []),
        (Priors(entropy=1.0), ["values"]),
        (Priors(heads=1.0), ["queries"]),
        (Priors(attention=1.0), ["queries"]),
        (Priors(entropy=1.0, heads=1.0, attention=2.0), ["values", "queries"]),
    ],
)
def test_only_what_the_losses_read_is_wanted(priors: Priors, expected: list[str]) -> None:
    assert wanted(SynthesisConfig("one", priors=priors)) == expected


def test_terms_that_are_off_are_left_out() -> None:
    rounds = (Round(1.0, 0),)
    only = SynthesisConfig("only", iterations=4, rounds=rounds, targets=replace(PSAQ.targets, weight=3.0))
    terms, _ = evaluated("vit", only)
    assert list(terms) == ["class", "total"]
    once, _ = evaluated("vit", replace(only, targets=PSAQ.targets))
    assert terms["class"] == pytest.approx(3 * once["class"], rel=1e-6)


def seen(config: SynthesisConfig, step: int = 0) -> tuple[Tensor, GroupState, torch.Generator]:
    _, state = prepared("vit", config)
    before = copied(state.generator)
    state.step = step
    return view(state.images, config, state), state, before


def viewed(**views: Any) -> SynthesisConfig:
    """Images from a uniform grey so that what a view adds can be seen; 10 iterations, no roll."""
    return replace(NOISE, iterations=10, rounds=(Round(1.0, 0),), views=Views(**views))


def test_without_views_the_network_sees_the_images() -> None:
    shown, state, before = seen(viewed())
    assert torch.equal(shown, state.images)
    assert torch.equal(state.generator.get_state(), before.get_state())


def test_a_roll_reaches_at_least_one_pixel_and_grows_with_the_rounds() -> None:
    rounds = (Round(0.5, 2), Round(0.5, 56))
    config = replace(viewed(), rounds=rounds)
    for step, reach in ((0, 1), (4, 1), (5, 8), (9, 8)):
        shown, state, before = seen(config, step)
        assert torch.equal(shown, random_roll(state.images, reach, before))


@pytest.mark.parametrize("step", [0, 5, 9])
def test_the_noise_falls_linearly(step: int) -> None:
    shown, state, before = seen(viewed(noise=0.5), step)
    assert torch.equal(shown, colour_offset(state.images, 0.5 * (1 - step / 10), before))


@pytest.mark.parametrize(("step", "smallest"), [(0, 1.0), (9, 0.08), (3, 1 - 0.92 / 3)])
def test_crops_get_harder(step: int, smallest: float) -> None:
    shown, state, before = seen(viewed(crops=0.08, crop_ratio=0.5), step)
    boxes = [[draw_crop(32, 32, smallest, 0.5, before)] for _ in range(2)]
    assert torch.equal(shown, resized_crops(state.images, boxes))


def test_views_follow_one_another() -> None:
    config = viewed(flip=True, noise=0.5, colour=True, crops=0.3)
    shown, state, before = seen(replace(config, rounds=(Round(1.0, 30),)), 9)
    expected = random_roll(state.images, 4, before)
    expected = resized_crops(expected, [[draw_crop(32, 32, 0.3, 0.75, before)] for _ in range(2)])
    expected = colour_offset(random_flip(expected, before), 0.5 * (1 - 9 / 10), before)
    expected = colour_shift(expected, before)
    assert torch.equal(shown, expected)


@pytest.mark.parametrize("rows", [None, 16, 99])
def test_all_patches_are_looked_at_unless_fewer_are_asked_for(rows: int | None) -> None:
    config = replace(PSAQ, views=Views(), rounds=(Round(1.0, 0),), priors=Priors(entropy=1.0, rows=rows))
    model, state = prepared("vit", config)
    with AttentionTaps(model) as taps, torch.no_grad():
        model(state.images)
    terms, _ = evaluated("vit", config)
    assert terms["entropy"] == pytest.approx(float(patch_entropy_loss(taps.values, 1, "kde")), rel=1e-4)


def test_rows_are_drawn_anew_at_each_step_and_the_same_for_both_losses() -> None:
    config = replace(PSAQ, views=Views(), rounds=(Round(1.0, 0),), priors=Priors(entropy=1.0, heads=2.0, rows=5))
    model, state = prepared("vit", config)
    before, found = copied(state.generator), []
    with AttentionTaps(model, wanted(config)) as taps:
        for _ in range(2):
            terms, _ = gradient(model, config, state, taps)
            rows = torch.randperm(16, generator=before)[:5].sort().values
            entropy = patch_entropy_loss(taps.values, 1, "kde", rows)
            heads = head_similarity_loss(taps.queries, taps.keys, 1, rows)
            assert terms["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-4)
            assert terms["heads"] == pytest.approx(2 * float(heads.detach()), rel=1e-4)
            found.append(rows.tolist())
    assert found[0] != found[1]


def test_normalised_terms_start_at_their_weight_and_move_with_the_loss() -> None:
    config = replace(SPDFQ, priors=Priors(heads=2.0, attention=3.0, normalise=True), views=Views())
    raw = replace(config, priors=replace(config.priors, normalise=False))
    model, state = prepared("vit", config)
    with AttentionTaps(model, wanted(config)) as taps:
        first, _ = gradient(model, config, state, taps)
        state.images.mul_(0.5)
        second, _ = gradient(model, config, state, taps)
        plain, _ = gradient(model, raw, state, taps)
    assert (first["heads"], first["attention"]) == pytest.approx((2.0, 3.0), rel=1e-6)
    assert state.scales.keys() == {"heads", "attention"}
    for name in ("heads", "attention"):
        assert second[name] == pytest.approx(plain[name] / state.scales[name], rel=1e-4) != first[name]

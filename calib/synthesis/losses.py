"""One evaluation of a method's losses on a group, and its gradient with respect to the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.synthesis.methods import SynthesisConfig
from calib.synthesis.own_prior import Attention
from calib.synthesis.priors.attention_prior import attention_prior_loss, deep_half
from calib.synthesis.priors.head_similarity import head_similarity_loss
from calib.synthesis.priors.patch_entropy import patch_entropy_loss
from calib.synthesis.priors.total_variation import distance_to_target, plain_variation
from calib.synthesis.schedule import round_at
from calib.synthesis.state import GroupState
from calib.synthesis.targets import target_loss
from calib.synthesis.twin import forward
from calib.synthesis.views import (
    colour_offset,
    colour_shift,
    easy_to_hard,
    random_crops,
    random_flip,
    random_roll,
    resized_crops,
)
from calib.taps import AttentionTaps, Wanted


def wanted(config: SynthesisConfig) -> list[Wanted]:
    """What the method's losses read from attention."""
    priors = config.priors
    needs: list[Wanted] = ["values"] if priors.entropy or priors.own else []
    return [*needs, "queries"] if priors.heads or priors.attention or priors.own else needs


def gradient(
    model: nn.Module, config: SynthesisConfig, state: GroupState, taps: AttentionTaps
) -> tuple[dict[str, float], Tensor]:
    """Weighted loss terms with their ``total``, and d total / d images, (B, 3, H, W)."""
    images = state.images.detach().requires_grad_(True)
    whole = view(images, config, state)
    shown = torch.cat([whole, resized_crops(images, state.scaled_boxes())]) if config.views.patches else whole
    logits = forward(model, shown)
    terms = _terms(config, state, taps, images, whole, logits)
    total = torch.stack(list(terms.values())).sum()
    (slope,) = torch.autograd.grad(total, images)
    return {name: float(value.detach()) for name, value in (terms | {"total": total}).items()}, slope


def view(images: Tensor, config: SynthesisConfig, state: GroupState) -> Tensor:
    """The whole images as the network sees them at this step: rolled, cropped, flipped, recoloured as configured."""
    views, generator = config.views, state.generator
    part, _, _ = round_at(config.rounds, config.iterations, state.step)
    shown = images
    if part.roll:
        reach = max(1, round(part.roll * images.shape[2] / 224))
        shown = random_roll(shown, reach, generator, views.diagonal)
    if views.crops is not None:
        smallest = easy_to_hard(state.step, config.iterations, views.crops)
        shown = random_crops(shown, smallest, views.crop_ratio, generator)
    if views.flip:
        shown = random_flip(shown, generator)
    if views.noise:
        shown = colour_offset(shown, views.noise * (1 - state.step / config.iterations), generator)
    if views.colour:
        shown = colour_shift(shown, generator)
    return shown


def _terms(
    config: SynthesisConfig, state: GroupState, taps: AttentionTaps, images: Tensor, whole: Tensor, logits: Tensor
) -> dict[str, Tensor]:
    priors, terms = config.priors, {}
    if priors.entropy or priors.heads:
        rows = _rows(config, taps, state.generator)
    if priors.entropy:
        values = [_of_whole(value, len(images), len(logits)) for value in taps.values]
        loss = patch_entropy_loss(values, taps.prefix_tokens, priors.entropy_form, rows)
        terms["entropy"] = priors.entropy * loss
    if priors.heads:
        queries, keys = (
            [_of_whole(value, len(images), len(logits)) for value in kept] for kept in (taps.queries, taps.keys)
        )
        loss = head_similarity_loss(queries, keys, taps.prefix_tokens, rows)
        terms["heads"] = _scaled("heads", priors.heads, loss, config, state)
    if priors.attention:
        blocks = len(taps.attentions)
        profiles = [_of_whole(taps.profile(index), len(images), len(logits)) for index in deep_half(blocks)]
        loss = attention_prior_loss(profiles, state.scaled_priors(), blocks)
        terms["attention"] = _scaled("attention", priors.attention, loss, config, state)
    for own in priors.own:
        values, queries, keys = (
            [_of_whole(value, len(images), len(logits)) for value in kept]
            for kept in (taps.values, taps.queries, taps.keys)
        )
        loss = own.value(images, Attention(values, queries, keys, taps.prefix_tokens))
        terms[own.name] = _scaled(own.name, own.weight, loss, config, state)
    if config.targets.weight:
        terms["class"] = config.targets.weight * target_loss(logits, state.targets)
    if config.variation.weight:
        batch = config.variation.batch
        if config.variation.target is None:
            loss = plain_variation(images, batch)
        else:
            loss = distance_to_target(whole, state.variation, batch)
        terms["tv"] = config.variation.weight * loss
    return terms


def _of_whole(tensor: Tensor, images: int, shown: int) -> Tensor:
    """The rows of the whole images, which stand before those of the patches (windows of one image side by side)."""
    return tensor if images == shown else tensor[: tensor.shape[0] // shown * images]


def _rows(config: SynthesisConfig, taps: AttentionTaps, generator: torch.Generator) -> Tensor | None:
    """A draw of patches for the entropy and head losses; None where all are looked at."""
    kept = taps.values or taps.queries
    tokens = min(value.shape[2] for value in kept) - taps.prefix_tokens
    if config.priors.rows is None or config.priors.rows >= tokens:
        return None
    return torch.randperm(tokens, generator=generator)[: config.priors.rows].sort().values.to(kept[0].device)


def _scaled(name: str, weight: float, loss: Tensor, config: SynthesisConfig, state: GroupState) -> Tensor:
    """``weight * loss``, over the loss's value at the first iteration where the config says so."""
    if not config.priors.normalise:
        return weight * loss
    scale = state.scales.setdefault(name, max(abs(float(loss.detach())), 1e-12))
    return weight / scale * loss

"""What the float network makes of a set of images: for tables, figures and reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.models import ModelSpec
from calib.synthesis.priors.attention_prior import Layout, attention_prior_loss, deep_half, layouts
from calib.synthesis.priors.head_similarity import head_similarity
from calib.synthesis.priors.patch_entropy import patch_entropy
from calib.synthesis.priors.total_variation import total_variation
from calib.taps import AttentionTaps, Wanted


@dataclass(frozen=True)
class Measures:
    """Plain numbers, one an image or one a block.

    Attributes:
        agreement: share of the images with an intended class whose top-1 is among them; None without such images.
        confidence: softmax mass on the intended classes of each image, 0..1 (0 where there is none). top1: class each.
        head_similarity: per block, mean SSIM^2 of pairs of heads, 0..1. patch_entropy: per block, nats, kernel form.
        total_variation: mean over images, in normalised space. Blocks are in execution order; a Swin block's value is
        the mean over the windows of an image, then over images.
    """

    agreement: float | None
    confidence: list[float]
    top1: list[int]
    head_similarity: list[float]
    patch_entropy: list[float]
    total_variation: float


@contextmanager
def _watched(model: nn.Module, wanted: Sequence[Wanted]) -> Iterator[AttentionTaps]:
    """Taps on the network in eval mode; each module's own mode is back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with AttentionTaps(model, wanted) as taps:
            yield taps
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def measure(model: nn.Module, spec: ModelSpec, pixels: Tensor, classes: Tensor | None, batch: int = 16) -> Measures:
    """Run the float network over a set.

    Args:
        model: float32 timm network; not changed. pixels: (B, 3, H, W) in [0, 1], any float type. classes: (B, M)
            int64 padded with -1, or None where nothing was intended. batch: images a forward pass; decides memory only.
    """
    logits, heads, entropies, variation = [], [], [], []
    with _watched(model, ("values", "queries")) as taps:
        for part in torch.split(pixels, batch):
            images = spec.normalise(part.float())
            logits.append(model(images))
            variation.append(total_variation(images))
            prefix = taps.prefix_tokens
            similar = [head_similarity(q, k, prefix) for q, k in zip(taps.queries, taps.keys, strict=True)]
            heads.append(torch.stack([_per_image(each, len(images)) for each in similar]))
            spread = [patch_entropy(value, prefix, "kde") for value in taps.values]
            entropies.append(torch.stack([_per_image(each, len(images)) for each in spread]))
    all_logits = torch.cat(logits)
    agreement, confidence = _agreement(all_logits, classes)
    return Measures(
        agreement=agreement,
        confidence=confidence,
        top1=all_logits.argmax(1).tolist(),
        head_similarity=torch.cat(heads, 1).mean(1).tolist(),
        patch_entropy=torch.cat(entropies, 1).mean(1).tolist(),
        total_variation=float(torch.cat(variation).mean()),
    )


def _per_image(values: Tensor, images: int) -> Tensor:
    """(images,) from one value a window or an image."""
    return values.view(images, -1).mean(1)


def _agreement(logits: Tensor, classes: Tensor | None) -> tuple[float | None, list[float]]:
    if classes is None:
        return None, [0.0] * len(logits)
    intended = classes >= 0
    mass = logits.softmax(1).gather(1, classes.clamp_min(0)) * intended
    hits = ((classes == logits.argmax(1, keepdim=True)) & intended).any(1)
    labelled = intended.any(1)
    share = float(hits[labelled].float().mean()) if bool(labelled.any()) else None
    return share, mass.sum(1).clamp_max(1).tolist()  # a sum of rounded numbers can be above 1


@torch.no_grad()
def prior_distance(
    model: nn.Module, spec: ModelSpec, pixels: Tensor, priors: Sequence[Tensor], batch: int = 16
) -> float:
    """Mean over images of :func:`attention_prior_loss`: how far attention is from ``priors``.

    Args:
        model, pixels, batch: as in :func:`measure`. priors: (B', H, N) float32 for all B images, a block of the deep
            half each, in order; B' = B, or B * windows for Swin.
    """
    total = 0.0
    with _watched(model, ("queries",)) as taps:
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            model(spec.normalise(part.float()))
            blocks = len(taps.attentions)
            profiles = [taps.profile(index) for index in deep_half(blocks)]
            mine = []
            for prior in priors:
                windows = len(prior) // len(pixels)
                mine.append(prior[start * windows : (start + len(part)) * windows])
            total += float(attention_prior_loss(profiles, mine, blocks)) * len(part)
    return total / len(pixels)


@torch.no_grad()
def head_maps(model: nn.Module, spec: ModelSpec, pixel: Tensor, block: int, query: int) -> Tensor:
    """Scores q k^T of one query patch, head by head, stretched to 0..1: (H, rows, columns) float32.

    What :func:`head_similarity` compares: before the softmax, without Swin's position bias and mask. A head whose
    scores are all equal is all 0.

    Args:
        pixel: (3, H, W) in [0, 1]. block: index from 0. query: index of the patch, row by row in the block's grid; for
            Swin the map is that of the window with the patch in it.
    """
    layout = layouts(model)[block]
    window, token = place_of(layout, query)
    with _watched(model, ("queries",)) as taps:
        model(spec.normalise(pixel[None].float()))
        queries, keys = (kept[block][window, :, taps.prefix_tokens :].float() for kept in (taps.queries, taps.keys))
    scores = (queries[:, token, None] * keys).sum(-1)
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return ((scores - low) / (high - low).clamp_min(1e-8)).view(len(scores), *(layout.window or layout.grid))


def place_of(layout: Layout, query: int) -> tuple[int, int]:
    """Which window (0 without windows) a patch of the grid is in after the block's shift, and which token of it."""
    rows, columns = layout.grid
    if not 0 <= query < rows * columns:
        raise ValueError(f"query is 0..{rows * columns - 1}, not {query}")
    if layout.window is None:
        return 0, query
    high, wide = layout.window
    row, column = (query // columns - layout.shift[0]) % rows, (query % columns - layout.shift[1]) % columns
    return row // high * -(-columns // wide) + column // wide, row % high * wide + column % wide

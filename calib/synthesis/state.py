"""Everything a group of images needs to go on from, and what each image starts with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.models import ModelSpec
from calib.synthesis.plan import Group, image_generator
from calib.synthesis.priors.attention_prior import Layout, deep_half, draw_priors
from calib.synthesis.procedural import procedural_image
from calib.synthesis.targets import hard_targets, soft_targets
from calib.synthesis.views import Box, place_patches


@dataclass
class GroupState:
    """Images and Adam's moments, in normalised space, float32, and what was drawn for them at the start.

    Attributes:
        full: (B, 3, H, W), what the images started from. images, first, second: the same shape, or half the height and
        width while warming up. classes: the intended classes of each image, foremost first; none without a class loss.
        targets: (V, classes) float32, whole images first, then all semantic patches in order. boxes: each image's
        patches. variation: (B,) total variation targets. priors: attention priors of the deep half, or empty.
        step: iterations done. since: the step before which the moments were
        last emptied. generator: of the steps' draws. scales: value of each normalised loss at the start.
        history: a row of loss terms an iteration.
    """

    full: Tensor
    images: Tensor
    first: Tensor
    second: Tensor
    classes: list[list[int]]
    targets: Tensor
    boxes: list[list[Box]]
    variation: Tensor
    priors: list[Tensor]
    generator: torch.Generator
    step: int = 0
    since: int = 0
    scales: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def halve(self) -> None:
        """Go to half resolution; a state without iterations only."""
        self.images = F.avg_pool2d(self.full, 2)
        self.forget()

    @property
    def halved(self) -> bool:
        """Whether the images are at half resolution."""
        return self.images.shape != self.full.shape

    def grow(self) -> None:
        """Back to full resolution: what the images started from, plus what changed, enlarged (bilinear)."""
        change = self.images - F.avg_pool2d(self.full, 2)
        self.images = self.full + F.interpolate(change, scale_factor=2, mode="bilinear", align_corners=False)
        self.forget()

    def forget(self) -> None:
        """Empty the optimiser's moments."""
        self.first, self.second = torch.zeros_like(self.images), torch.zeros_like(self.images)
        self.since = self.step

    def scaled_boxes(self) -> list[list[Box]]:
        """The patches at the images' present resolution."""
        if not self.halved:
            return self.boxes
        return [
            [(top // 2, left // 2, max(1, high // 2), max(1, wide // 2)) for top, left, high, wide in mine]
            for mine in self.boxes
        ]

    def scaled_priors(self) -> list[Tensor]:
        """The attention priors at the images' present resolution; half of it only for square grids without windows."""
        if not self.halved:
            return self.priors
        sides = [math.isqrt(prior.shape[-1]) for prior in self.priors]
        return [
            4 * F.avg_pool2d(prior.unflatten(-1, (side, side)), 2).flatten(2)
            for prior, side in zip(self.priors, sides, strict=True)
        ]

    def to(self, device: str) -> GroupState:
        """The same with its tensors on ``device``; the generator stays on the CPU."""
        for name in ("full", "images", "first", "second", "targets", "variation"):
            setattr(self, name, getattr(self, name).to(device))
        self.priors = [prior.to(device) for prior in self.priors]
        return self


def pixel_limits(spec: ModelSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised values of black and white, (1, 3, 1, 1) each."""
    mean, std = spec.pixel_stats(like)
    return (0 - mean) / std, (1 - mean) / std


def start(spec: ModelSpec, layout: list[Layout], group: Group, seed: int) -> GroupState:
    """Draw every image of ``group``, each from its own generator: it does not matter which group it is in."""
    parts = [_one(spec, layout, group, image_generator(seed, image)) for image in group.members]
    full = torch.cat([part.full for part in parts])
    whole = torch.stack([part.targets[0] for part in parts])
    patches = torch.cat([part.targets[1:] for part in parts])
    return GroupState(
        full=full,
        images=full.clone(),
        first=torch.zeros_like(full),
        second=torch.zeros_like(full),
        classes=[part.classes[0] for part in parts],
        targets=torch.cat([whole, patches]),
        boxes=[part.boxes[0] for part in parts],
        variation=torch.cat([part.variation for part in parts]),
        priors=[torch.cat(maps) for maps in zip(*(part.priors for part in parts), strict=True)],
        generator=image_generator(seed, group.first, purpose=1),
    )


def _one(spec: ModelSpec, layout: list[Layout], group: Group, generator: torch.Generator) -> GroupState:
    """One image, as a group of its own."""
    config, (_, height, width) = group.config, spec.input_size
    views, want = config.views, config.targets
    boxes = place_patches(height, width, views.patches, views.patch_sides, generator) if views.patches else []
    picked = torch.randperm(spec.num_classes, generator=generator)[: max(1, len(boxes))].tolist()
    per_view = [picked, *([picked[index % len(picked)]] for index in range(len(boxes)))]
    if want.soft:
        targets = soft_targets(per_view, spec.num_classes, want.low, want.high, want.rest, generator)
    else:
        targets = hard_targets(per_view, spec.num_classes)
    classes = sorted(picked, key=lambda label: -float(targets[0, label])) if want.weight else []
    low, high = config.variation.target or (0.0, 0.0)
    variation = low + (high - low) * torch.rand(1, generator=generator)
    priors: list[Tensor] = []
    if config.priors.attention:
        covered = [layout[index] for index in deep_half(len(layout))]
        priors = draw_priors(covered, 1, config.priors.components, generator)
    if config.start == "procedural":
        image = spec.normalise(procedural_image((height, width), generator)[None])
    else:
        image = torch.randn((1, *spec.input_size), generator=generator)
        image.clamp_(*pixel_limits(spec, image))
    return GroupState(image, image, image, image, [classes], targets, [boxes], variation, priors, generator)

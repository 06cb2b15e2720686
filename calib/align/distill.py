"""MimiQ's fine-tuning: distil the float network into the quantized one, head by head.

    L = T^2 KL(softmax(t / T) || softmax(s / T)) + gamma L_HAD
    L_HAD = 1 - mean over blocks, images, heads and channels of (2 sigma_ts + C2) / (sigma_t^2 + sigma_s^2 + C2)

t and s are the teacher's and student's logits; for L_HAD, every channel of a head's attention output A.V is a signal
over the patches (prefix tokens left out), and the term is SSIM's contrast times structure (MimiQ, arXiv 2407.20021;
constants from its code). Activation steps learn by LSQ, weights are rounded with the scale of their largest value,
which is taken anew at every step, and SGD with Nesterov momentum moves both; weights stay as they are in the first
epochs.

Not as in the published code: the state kept is the best on *held-out synthetic images*, where the code keeps the epoch
that does best on ImageNet's validation images; LSQ's gradient scale reaches every layer; no gradient outlives its
step; the attention products are float, or with ``+attn8`` keep the steps they have, as the residual stream does with
``+res8``; the patch embedding stays at 8 bits and as it is; zero points do not learn: behind GELU its smallest value
lies on the lowest level, elsewhere they are 0. Reconstruction: 20 epochs, where 10,000 images and 200 epochs are
published, so that a CPU finishes in minutes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from calib.align.config import DistillConfig
from calib.align.inputs import Split, in_batches
from calib.align.rounding import extreme_scale
from calib.align.trainable import activation_levels, straight_round, trainable_between
from calib.models import ModelSpec
from calib.network import Network
from calib.precision import has_fast_bf16
from calib.quant.families import sites
from calib.quant.grid import weight_grid
from calib.quant.linear import QuantLinear, per_weight
from calib.quant.quantizer import levels
from calib.quant.surgery import between_layers
from calib.taps import AttentionTaps

C2 = 0.03**2


def softened_divergence(made: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(target / T) || softmax(made / T))``, mean over images; (B, classes) both; a scalar."""
    found, wanted = F.log_softmax(made / temperature, 1), F.log_softmax(target / temperature, 1)
    return temperature**2 * F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def structure_loss(made: list[Tensor], target: list[Tensor], prefix: int = 0) -> Tensor:
    """L_HAD: 1 minus the mean contrast times structure of each head's channels over the tokens.

    Args:
        made, target: a block's attention output each, (B, H, T, d). prefix: tokens left out at the front.
    """
    total = torch.zeros((), device=made[0].device)
    for one, other in zip(made, target, strict=True):
        student, teacher = one[:, :, prefix:].float(), other[:, :, prefix:].float()
        student, teacher = student - student.mean(2, keepdim=True), teacher - teacher.mean(2, keepdim=True)
        covariance = (student * teacher).mean(2)
        variances = student.square().mean(2) + teacher.square().mean(2)
        total = total + ((2 * covariance + C2) / (variances + C2)).mean()
    return 1 - total / len(made)


class LsqLinear(nn.Module):
    """A quantized ``layer`` whose float weights, bias and activation step learn.

    Attributes:
        weight: (N, K), rounded at every step with the scale max|w| / highest level of its row or group. bias: (N,).
        step: (), the activation step, learned with LSQ's gradient scale 1 / sqrt(values * largest level); None where
        activations stay float.
    """

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(layer.weight.clone())
        self.bias = nn.Parameter(layer.bias.clone())
        self.step = None if layer.in_quant is None else nn.Parameter(layer.in_quant.scale.clone())

    def _weights(self) -> tuple[Tensor, Tensor]:
        scale = extreme_scale(self.weight.detach(), self.layer.weight_bits, self.layer.group)
        grid = weight_grid(self.layer.weight_bits)
        index = grid.index(self.weight / per_weight(scale, self.weight.shape[1]))
        return grid.level(straight_round(index)), scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) float32."""
        values = self.layer.scaled(x.float())
        weight, scale = self._weights()
        if self.layer.group is not None:
            weight, scale = weight * per_weight(scale, weight.shape[1]), torch.ones_like(self.bias)
        if self.step is not None:
            quantizer = self.layer.in_quant
            assert quantizer is not None
            share = 1.0 / math.sqrt(values.numel() * levels(quantizer.bits)[1])
            step = (self.step * (1 - share)).detach() + self.step * share
            step = step.clamp_min(1e-8)
            values = activation_levels(values, step.log(), quantizer.zero_point.float(), quantizer.bits)
            scale = scale * step
        return F.linear(values, weight).float() * scale + self.bias

    @torch.no_grad()
    def commit(self) -> QuantLinear:
        """Put the learned numbers into the plain layer and return it."""
        layer = self.layer
        level, scale = self._weights()
        layer.weight.copy_(self.weight)
        layer.bias.copy_(self.bias)
        layer.set_weights(level, scale)
        if self.step is not None:
            assert layer.in_quant is not None
            layer.in_quant.set(float(self.step.clamp_min(1e-8)), int(layer.in_quant.zero_point))
        return layer


@dataclass(frozen=True)
class Lesson:
    """What the student learns from.

    Attributes:
        student: quantized, in place. teacher: the float network. spec: of both. images: (B, 3, H, W) normalised.
        split: the images to learn from and those that judge.
    """

    student: Network
    teacher: Network
    spec: ModelSpec
    images: Tensor
    split: Split


def distill(
    lesson: Lesson, config: DistillConfig, seed: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Fine-tune ``lesson.student`` in place; the row for the report.

    After every epoch the student is judged by its divergence from the teacher on held-out images; the best state is
    the result, which is the start where no epoch beats it (``accepted`` False). ``agreement_*``: percent of the
    held-out images given the teacher's class.

    Args:
        seed: of the order of the images and of their augmentation. progress: called as (epochs done, epochs in all).
    """
    student, held = lesson.student, lesson.images[lesson.split.held]
    with torch.no_grad():
        wanted = in_batches(lesson.teacher, held, config.batch)
        start = in_batches(student, held, config.batch)
    best = before = float(softened_divergence(start, wanted, 1.0))
    row = {"step": "distill", "before": before, "agreement_before": _agreement(start, wanted)}
    parts = {site.name: LsqLinear(student.get_submodule(site.name)) for site in sites(student) if site.kind != "embed"}
    fixed = between_layers(student)
    for name, module in {**parts, **{name: trainable_between(each) for name, each in fixed.items()}}.items():
        student.set_submodule(name, module)
    kept: dict[str, dict[str, Tensor]] | None = None
    try:
        with torch.enable_grad():
            for epoch in _epochs(lesson, parts, config, seed):
                with torch.no_grad():
                    found = in_batches(student, held, config.batch)
                error = float(softened_divergence(found, wanted, 1.0))
                if error < best:
                    best, row["agreement_after"] = error, _agreement(found, wanted)
                    kept = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
                if progress is not None:
                    progress(epoch + 1, config.epochs)
    finally:
        for name, part in parts.items():
            if kept is not None:
                part.load_state_dict(kept[name])
            student.set_submodule(name, part.commit() if kept is not None else part.layer)
        for name, product in fixed.items():
            student.set_submodule(name, product)
    return {"agreement_after": row["agreement_before"]} | row | {"after": best, "accepted": kept is not None}


def _epochs(lesson: Lesson, parts: dict[str, LsqLinear], config: DistillConfig, seed: int) -> Any:
    """Train; the number of each epoch once it is over."""
    weights = [tensor for part in parts.values() for tensor in (part.weight, part.bias)]
    steps = [part.step for part in parts.values() if part.step is not None]
    optimiser = torch.optim.SGD(
        [{"params": weights}, {"params": steps}], lr=config.rate, momentum=config.momentum, nesterov=True
    )
    fit = lesson.split.fit
    size = min(config.batch, len(fit))
    generator = torch.Generator().manual_seed(seed)
    total = config.epochs * (len(fit) // size)
    done = 0
    with AttentionTaps(lesson.student) as mine, AttentionTaps(lesson.teacher) as theirs:
        for epoch in range(config.epochs):
            order = fit[torch.randperm(len(fit), generator=generator)]
            for begin in range(0, len(order) - size + 1, size):
                rate = config.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done / total)))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                batch = lesson.images[order[begin : begin + size]]
                if config.augment:
                    batch = augmented(batch, lesson.spec, seed * 1_000_003 + done)
                loss = _loss(lesson, batch, config, mine, theirs)
                optimiser.zero_grad()
                loss.backward()
                if epoch < config.frozen_epochs:
                    for tensor in weights:
                        tensor.grad = None
                optimiser.step()
                done += 1
            yield epoch


def _loss(lesson: Lesson, batch: Tensor, config: DistillConfig, mine: AttentionTaps, theirs: AttentionTaps) -> Tensor:
    kind = batch.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=has_fast_bf16(kind)):
        with torch.no_grad():
            target = lesson.teacher(batch).float()
        made = lesson.student(batch).float()
    loss = softened_divergence(made, target, config.temperature)
    if config.head_weight:
        loss = loss + config.head_weight * structure_loss(mine.values, theirs.values, mine.prefix_tokens)
    return loss


def augmented(images: Tensor, spec: ModelSpec, seed: int) -> Tensor:
    """Every image (B, 3, H, W) cropped, flipped, jittered, made grey and blurred at random, as MimiQ's training does.

    RandomResizedCrop, HorizontalFlip, ColorJitter(0.8, 0.8, 0.8, 0.2) at p = 0.8, Grayscale at p = 0.2, GaussianBlur
    over a tenth of the side. The same seed gives the same bytes; the global generator is left as it was.
    """
    height, width = images.shape[2:]
    change = v2.Compose(
        [
            v2.RandomResizedCrop((height, width), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.GaussianBlur(2 * (height // 20) + 1),
        ]
    )
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        pixels = spec.denormalise(images).clamp(0, 1)
        return spec.normalise(torch.stack([change(one) for one in pixels]))


def _agreement(made: Tensor, target: Tensor) -> float:
    return 100.0 * float((made.argmax(1) == target.argmax(1)).float().mean())

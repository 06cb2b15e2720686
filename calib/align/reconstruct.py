"""Block reconstruction: teach a whole quantized block to give what the float block gives, by gradient descent.

The block reads what the quantized network before it delivers; its target is the float network's output of the same
block, so that it also takes back part of the error that comes in. Rounding, steps, biases and LayerNorm parameters
learn together (BRECQ, ICLR 2021, and SPDFQ/SARDFQ section 3.3 reconstruct blocks; GLF-Q rounds straight through, as
here).

Where a ``Suffix`` is given the loss also looks at the end: the block's output goes through the rest of the frozen float
network, and the error of the logits joins that of the block, each divided by its value at the first step (GLF-Q: the
penultimate features, one part, beside two parts of the block's error).

Reconstruction: the loss divides every token's squared error by its energy in the float network, or a few massive
tokens own it. Where the head reads the class token alone, that token has a share of its own: one among 197 would hardly
be heard (docs/decisions/0031-the-class-token.md). Rates are relative (see ``trainable``) and were chosen once, on the
reconstruction error of held-out images (docs/decisions/0007-rounding-and-reconstruction.md). A block whose held-out
error does not fall is put back, and so is one whose numbers overflow: its row then has its error as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.align.config import ReconstructConfig
from calib.align.inputs import Split
from calib.align.trainable import (
    Drop,
    TrainableLinear,
    TrainableNorm,
    TrainableProduct,
    TrainableResidual,
    sound,
    trainable_between,
)
from calib.network import Network
from calib.precision import has_fast_bf16
from calib.quant.families import Segment, block_names, reads_class_token
from calib.quant.linear import QuantLinear
from calib.quant.surgery import between_layers
from calib.taps import reading

Part = TrainableLinear | TrainableProduct | TrainableResidual | TrainableNorm


@dataclass(frozen=True)
class Suffix:
    """The frozen float network behind a block.

    Attributes:
        run: the block's output (B, ...) to logits (B, classes), differentiable. logits: (B, classes), the float
        network's own of every image.
    """

    run: Callable[[Tensor], Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Job:
    """What one block learns from.

    Attributes:
        piece: the block. inputs: (B, ...) as the quantized network gives them. targets: (B, ...) as the float network's
        block gives them. suffix: of this block, or None. class_share: of the first token in the error; None where all
        count alike.
    """

    piece: Segment
    inputs: Tensor
    targets: Tensor
    suffix: Suffix | None
    class_share: float | None = None

    def errors(self, images: Tensor) -> list[Tensor]:
        """Of the block's output, and of the logits where there is a suffix, on the images of those indices."""
        made = self.piece.run(self.inputs[images])
        found = [token_error(made.float(), self.targets[images], self.class_share)]
        if self.suffix is not None:
            found.append(token_error(self.suffix.run(made).float(), self.suffix.logits[images]))
        return found


def class_share(student: Network, block: str, config: ReconstructConfig) -> float | None:
    """What share of the error of ``block`` is the class token's; None where the head reads other tokens too."""
    if config.class_share is None or not reads_class_token(student):
        return None
    first, last = config.class_share
    names = block_names(student)
    return first + (last - first) * names.index(block) / max(1, len(names) - 1)


def token_error(made: Tensor, target: Tensor, class_share: float | None = None) -> Tensor:
    """Mean over tokens of ``|made_t - target_t|^2 / |target_t|^2``; (..., C) both; a scalar.

    With a ``class_share`` in 0..1 both are (B, T, C), T >= 2: the first token's mean is that share, all others' the
    rest.
    """
    energy = target.square().sum(-1)
    floor = 1e-6 * energy.mean().clamp_min(1e-20)
    error = (made - target).square().sum(-1) / (energy + floor)
    if class_share is None:
        return error.mean()
    return class_share * error[:, 0].mean() + (1 - class_share) * error[:, 1:].mean()


def reconstruct(
    student: Network, job: Job, split: Split, config: ReconstructConfig, seed: int, batch: int = 16
) -> dict[str, Any]:
    """Train the layers of one block of ``student``, in place; the row for the report.

    Args:
        student: the quantized network; the block's layers have all their numbers, and are switched to integers.
        job: the block and what it learns from. split: the images to fit and those to judge.
        seed: of the order of the images. batch: images a forward pass of the judging.
    """
    before = _held_errors(job, split, batch)
    kept = _snapshot(student, job.piece)
    units = _output_sizes(student, job.piece, job.inputs[split.fit[: config.batch]])
    with torch.enable_grad(), _trainable(student, job.piece, units, config, seed) as parts:
        _descend(parts, job, split, config, seed)
        converged = all(sound(part) for part in parts)
        for part in parts if converged else ():
            part.commit()
    after = _held_errors(job, split, batch) if converged else before
    accepted = _judge(after, before, config) < _judge(before, before, config)
    if not accepted:
        _restore(student, kept)
    row: dict[str, Any] = {"step": "reconstruct", "layer": job.piece.name, "before": before[0], "after": after[0]}
    if job.suffix is not None:
        row |= {"logits_before": before[1], "logits_after": after[1]}
    return row | {"accepted": accepted}


def _judge(errors: list[float], start: list[float], config: ReconstructConfig) -> float:
    """The loss, every error divided by its start; infinite where one is not a number."""
    weights = (config.local_weight, 1.0)[: len(errors)]
    terms = [w * e / max(s, 1e-12) for w, e, s in zip(weights, errors, start, strict=True)]
    return sum(terms) if all(map(math.isfinite, terms)) else math.inf


def _descend(parts: list[Part], job: Job, split: Split, config: ReconstructConfig, seed: int) -> None:
    optimiser = torch.optim.Adam(_groups(parts, config), betas=(config.beta1, config.beta2))
    rates = [group["lr"] for group in optimiser.param_groups]
    generator = torch.Generator().manual_seed(seed)
    kind = job.inputs.device.type
    weights = (config.local_weight, 1.0)
    start: list[float] = []
    for step, chosen in zip(range(config.iterations), _batches(split.fit, config.batch, generator), strict=False):
        fall = 0.5 * (1 + math.cos(math.pi * step / config.iterations))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * fall
        with torch.autocast(kind, torch.bfloat16, enabled=has_fast_bf16(kind)):
            errors = job.errors(chosen)
        start = start or [max(float(error.detach()), 1e-12) for error in errors]
        loss = torch.stack([w / s * error for w, s, error in zip(weights, start, errors, strict=False)]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for part in parts:
            if isinstance(part, TrainableLinear):
                part.project()


def _batches(images: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Image indices without end: every image once, in a new order, then again. A last short batch is left out."""
    size = min(size, len(images))
    while True:
        order = images[torch.randperm(len(images), generator=generator)]
        for begin in range(0, len(order) - size + 1, size):
            yield order[begin : begin + size]


def _groups(parts: list[Part], config: ReconstructConfig) -> list[dict[str, Any]]:
    linears = [part for part in parts if isinstance(part, TrainableLinear)]
    norms = [part for part in parts if isinstance(part, TrainableNorm)]
    points = [part for part in parts if isinstance(part, TrainableResidual)]
    steps = [part.log_step for part in (*linears, *points) if part.log_step is not None]
    pairs = [(part.log_left, part.log_right) for part in parts if isinstance(part, TrainableProduct)]
    steps += [step for pair in pairs for step in pair if step.requires_grad]
    groups = [
        {"params": [part.latent for part in linears], "lr": config.weight_rate},
        {"params": [*(part.log_weight_step for part in linears), *steps], "lr": config.scale_rate},
        {"params": [part.shift for part in linears], "lr": config.bias_rate},
    ]
    if norms:
        groups.append({"params": [p for part in norms for p in (part.gain, part.shift)], "lr": config.norm_rate})
    return groups


@contextmanager
def _trainable(
    student: Network, piece: Segment, units: dict[str, float], config: ReconstructConfig, seed: int
) -> Iterator[list[Part]]:
    """Put trainable layers in the place of the block's own, and put the own ones back, with what was committed."""
    between = between_layers(student, piece.name)
    parts: dict[str, Part] = {name: trainable_between(each) for name, each in between.items()}
    for number, site in enumerate(piece.sites):
        drop = Drop(config.drop, torch.Generator().manual_seed(seed * 31 + number)) if config.drop else None
        layer: QuantLinear = student.get_submodule(site.name)
        parts[site.name] = TrainableLinear(layer, units[site.name], drop, config.absolute)
        if site.norm:
            parts[site.norm] = TrainableNorm(student.get_submodule(site.norm))
    for name, part in parts.items():
        student.set_submodule(name, part)
    try:
        yield list(parts.values())
    finally:
        for name, part in parts.items():
            student.set_submodule(name, part.plain)


def _output_sizes(student: Network, piece: Segment, inputs: Tensor) -> dict[str, float]:
    """Root mean square of every layer's output on ``inputs``, by layer name."""
    found: dict[str, float] = {}

    def read(name: str, _read: Tensor, out: Tensor) -> None:
        found[name] = max(float(out.square().mean().sqrt()), 1e-8)

    with torch.no_grad(), reading({site.name: student.get_submodule(site.name) for site in piece.sites}, read):
        piece.run(inputs)
    return found


@torch.no_grad()
def _held_errors(job: Job, split: Split, batch: int) -> list[float]:
    total: list[float] = []
    for part in split.held.split(batch):
        found = [float(error) * len(part) for error in job.errors(part)]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return [value / len(split.held) for value in total]


def _snapshot(student: Network, piece: Segment) -> dict[str, dict[str, Tensor]]:
    names = [name for site in piece.sites for name in (site.name, site.norm) if name]
    names += between_layers(student, piece.name)
    return {name: {k: v.clone() for k, v in student.get_submodule(name).state_dict().items()} for name in names}


def _restore(student: Network, kept: dict[str, dict[str, Tensor]]) -> None:
    for name, state in kept.items():
        module: QuantLinear | nn.LayerNorm = student.get_submodule(name)
        module.load_state_dict(state)

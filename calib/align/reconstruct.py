"""Block reconstruction: teach a whole quantized block to give what the float block gives, by gradient descent.

The block reads what the quantized network before it delivers; its target is the float network's output of the same
block, so that it also takes back part of the error that comes in. Rounding, steps, biases and LayerNorm parameters
learn together (BRECQ, ICLR 2021, and SPDFQ/SARDFQ section 3.3 reconstruct blocks; GLF-Q rounds straight through, as
here).

Reconstruction: the loss divides every token's squared error by its energy in the float network, or a few massive
tokens own it; rates are relative (see ``trainable``) and were chosen once, on the reconstruction error of held-out
images (docs/decisions/0007-rounding-and-reconstruction.md). A block whose held-out error does not fall is put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.align.inputs import Split
from calib.align.trainable import TrainableLinear, TrainableNorm
from calib.network import Network
from calib.precision import has_fast_bf16
from calib.quant.families import Segment
from calib.quant.linear import QuantLinear


@dataclass(frozen=True)
class ReconstructConfig:
    """Options of the reconstruction.

    Attributes:
        iterations: Adam steps a block. batch: images a step. weight_rate: weight steps an iteration. scale_rate: of the
        logarithms of all steps. bias_rate: in units of the layer's output. norm_rate: relative; 0 leaves LayerNorm
        as it is. All rates fall to 0 along a cosine. beta1, beta2: Adam's.
    """

    iterations: int = 150
    batch: int = 16
    weight_rate: float = 0.004
    scale_rate: float = 0.01
    bias_rate: float = 0.003
    norm_rate: float = 0.003
    beta1: float = 0.9
    beta2: float = 0.99


def token_error(made: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of ``|made_t - target_t|^2 / |target_t|^2``; (..., C) both; a scalar."""
    energy = target.square().sum(-1)
    floor = 1e-6 * energy.mean().clamp_min(1e-20)
    return ((made - target).square().sum(-1) / (energy + floor)).mean()


def reconstruct(
    student: Network,
    piece: Segment,
    inputs: Tensor,
    targets: Tensor,
    split: Split,
    config: ReconstructConfig,
    seed: int,
    batch: int = 16,
) -> dict[str, Any]:
    """Train the layers of one block of ``student``, in place; the row for the report.

    Args:
        student: the quantized network; the block's layers have all their numbers, and are switched to integers.
        piece: a block. inputs: (B, ...) what the quantized network gives it. targets: (B, ...) what the float network's
            block gives. split: the images to fit and those to judge. seed: of the order of the images.
        batch: images a forward pass of the judging.
    """
    before = _held_error(piece, inputs, targets, split, batch)
    kept = _snapshot(student, piece)
    units = _output_sizes(student, piece, inputs[split.fit[: config.batch]])
    with torch.enable_grad(), _trainable(student, piece, units) as parts:
        _descend(parts, piece, inputs, targets, split, config, seed)
    after = _held_error(piece, inputs, targets, split, batch)
    accepted = math.isfinite(after) and after < before
    if not accepted:
        _restore(student, kept)
    return {"step": "reconstruct", "layer": piece.name, "before": before, "after": after, "accepted": accepted}


def _descend(
    parts: list[TrainableLinear | TrainableNorm],
    piece: Segment,
    inputs: Tensor,
    targets: Tensor,
    split: Split,
    config: ReconstructConfig,
    seed: int,
) -> None:
    optimiser = torch.optim.Adam(_groups(parts, config), betas=(config.beta1, config.beta2))
    rates = [group["lr"] for group in optimiser.param_groups]
    generator = torch.Generator().manual_seed(seed)
    kind = inputs.device.type
    for step, chosen in zip(range(config.iterations), _batches(split.fit, config.batch, generator), strict=False):
        fall = 0.5 * (1 + math.cos(math.pi * step / config.iterations))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * fall
        with torch.autocast(kind, torch.bfloat16, enabled=has_fast_bf16(kind)):
            made = piece.run(inputs[chosen])
        optimiser.zero_grad()
        token_error(made.float(), targets[chosen]).backward()
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


def _groups(parts: list[TrainableLinear | TrainableNorm], config: ReconstructConfig) -> list[dict[str, Any]]:
    linears = [part for part in parts if isinstance(part, TrainableLinear)]
    norms = [part for part in parts if isinstance(part, TrainableNorm)]
    steps = [part.log_step for part in linears if part.log_step is not None]
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
    student: Network, piece: Segment, units: dict[str, float]
) -> Iterator[list[TrainableLinear | TrainableNorm]]:
    """Put trainable layers in the place of the block's own, and put the own ones back with what was learned."""
    parts: dict[str, TrainableLinear | TrainableNorm] = {}
    for site in piece.sites:
        parts[site.name] = TrainableLinear(student.get_submodule(site.name), units[site.name])
        if site.norm:
            parts[site.norm] = TrainableNorm(student.get_submodule(site.norm))
    for name, part in parts.items():
        student.set_submodule(name, part)
    try:
        yield list(parts.values())
    finally:
        for name, part in parts.items():
            student.set_submodule(name, part.commit())


def _output_sizes(student: Network, piece: Segment, inputs: Tensor) -> dict[str, float]:
    """Root mean square of every layer's output on ``inputs``, by layer name."""
    found: dict[str, float] = {}

    def reader(name: str) -> Callable[..., None]:
        def read(_module: nn.Module, _args: Any, out: Tensor) -> None:
            found[name] = max(float(out.square().mean().sqrt()), 1e-8)

        return read

    hooks = [student.get_submodule(site.name).register_forward_hook(reader(site.name)) for site in piece.sites]
    try:
        with torch.no_grad():
            piece.run(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def _held_error(piece: Segment, inputs: Tensor, targets: Tensor, split: Split, batch: int) -> float:
    held = split.held.split(batch)
    total = sum(float(token_error(piece.run(inputs[part]), targets[part])) * len(part) for part in held)
    return total / len(split.held)


def _snapshot(student: Network, piece: Segment) -> dict[str, dict[str, Tensor]]:
    names = [name for site in piece.sites for name in (site.name, site.norm) if name]
    return {name: {k: v.clone() for k, v in student.get_submodule(name).state_dict().items()} for name in names}


def _restore(student: Network, kept: dict[str, dict[str, Tensor]]) -> None:
    for name, state in kept.items():
        module: QuantLinear | nn.LayerNorm = student.get_submodule(name)
        module.load_state_dict(state)

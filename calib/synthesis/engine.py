"""The optimisation loop: images that a frozen network finds natural. Resumable to the bit; one seed, one result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.models import ModelSpec
from calib.quant.families import is_swin
from calib.synthesis.checkpoints import drop, restore, save
from calib.synthesis.methods import Round, SynthesisConfig
from calib.synthesis.priors.patch_entropy import patch_entropy_loss
from calib.synthesis.priors.total_variation import scaled_target, total_variation
from calib.synthesis.schedule import warmup_cosine
from calib.synthesis.views import random_flip, random_roll
from calib.taps import AttentionOutputs

Progress = Callable[[int, int, str], None]
SAVE_EVERY_S = 5.0


@dataclass
class SyntheticSet:
    """Images (B, 3, H, W) float16 in [0, 1], labels (B,) int64, and the loss terms over the iterations."""

    images: Tensor
    labels: Tensor
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class BatchState:
    """Everything one batch needs to go on from: images and Adam's moments, in normalised space, float32.

    ``history`` has one row of loss terms for every iteration so far.
    """

    images: Tensor
    labels: Tensor
    target: float
    first: Tensor
    second: Tensor
    step: int
    generator: torch.Generator
    history: list[dict[str, float]] = field(default_factory=list)


def synthesise(
    model: nn.Module,
    spec: ModelSpec,
    config: SynthesisConfig,
    seed: int,
    device: str = "cpu",
    work: Path | None = None,
    progress: Progress | None = None,
) -> SyntheticSet:
    """Make ``config.images`` images from ``model`` alone.

    Args:
        model: float timm network, eval; frozen here. device: torch device. work: folder for checkpoints (resume), or
            None. progress: called as (iterations done, in all, note).

    Raises:
        IntvitError: no images asked for, or the optimisation diverged.
    """
    if config.images < 1:
        raise IntvitError("at least one image is needed", where="--images", why=f"got {config.images}")
    model = model.to(device).eval().requires_grad_(False)
    sizes = [min(config.batch, config.images - start) for start in range(0, config.images, config.batch)]
    total = len(sizes) * max(config.iterations, 1)
    images, labels, history = [], [], []
    for index, size in enumerate(sizes):
        state = _start(spec, replace(config, images=size), seed, index)
        if work is not None:
            state = restore(work, index, state)

        def report(step: int, note: str, done: int = index * max(config.iterations, 1)) -> None:
            if progress is not None:
                progress(done + step, total, note)

        _optimise(model, spec, config, state, index, device, work, report)
        history += state.history
        images.append(spec.denormalise(state.images).clamp(0, 1).half().cpu())
        labels.append(state.labels.cpu())
    if work is not None:
        for index in range(len(sizes)):
            drop(work, index)
    if progress is not None:
        progress(total, total, "")
    return SyntheticSet(torch.cat(images), torch.cat(labels), history)


def _start(spec: ModelSpec, config: SynthesisConfig, seed: int, index: int) -> BatchState:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    images = torch.randn((config.images, *spec.input_size), generator=generator)
    low, high = _pixel_limits(spec, images)
    labels = torch.randint(0, spec.num_classes, (config.images,), generator=generator)
    drawn = float(torch.rand((), generator=generator))
    target = config.tv_target[0] + drawn * (config.tv_target[1] - config.tv_target[0])
    clamped = torch.maximum(torch.minimum(images, high), low)
    empty = torch.zeros_like(images)
    return BatchState(clamped, labels, scaled_target(target, images.numel()), empty, empty.clone(), 0, generator)


def _pixel_limits(spec: ModelSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = spec.pixel_stats(like)
    return (0 - mean) / std, (1 - mean) / std


def _round_at(config: SynthesisConfig, step: int) -> tuple[Round, int, int]:
    """The round that ``step`` is in, the step within it, and the round's length."""
    start = 0
    for number, part in enumerate(config.rounds):
        last = number == len(config.rounds) - 1
        length = config.iterations - start if last else round(config.iterations * part.share)
        if step < start + length:
            return part, step - start, length
        start += length
    raise ValueError(f"step {step} is past the last round")


def _optimise(
    model: nn.Module,
    spec: ModelSpec,
    config: SynthesisConfig,
    state: BatchState,
    index: int,
    device: str,
    work: Path | None,
    report: Callable[[int, str], None],
) -> None:
    state.images, state.first, state.second = (t.to(device) for t in (state.images, state.first, state.second))
    low, high = _pixel_limits(spec, state.images)
    rate = config.swin_learning_rate if is_swin(model) else config.learning_rate
    saved = time.monotonic()
    with AttentionOutputs(model) as taps:
        while state.step < config.iterations:
            part, inner, length = _round_at(config, state.step)
            if inner == 0:
                state.first.zero_()
                state.second.zero_()
            losses, gradient = _gradient(model, spec, config, state, part, taps)
            lr = warmup_cosine(inner, length, round(config.warmup * length), rate)
            _adam(state, gradient, lr, config.betas, inner + 1)
            state.images = torch.maximum(torch.minimum(state.images, high), low)
            state.step += 1
            if not torch.isfinite(state.images).all():
                raise IntvitError(
                    "synthesis diverged", where=f"batch {index}, iteration {state.step}", next="try another --seed"
                )
            state.history.append({"batch": index, "step": state.step, **losses})
            report(state.step, f"loss {losses['total']:.2f}")
            if work is not None and time.monotonic() - saved > SAVE_EVERY_S:
                save(work, index, state)
                saved = time.monotonic()
    if work is not None and config.iterations:
        save(work, index, state)


def _gradient(
    model: nn.Module, spec: ModelSpec, config: SynthesisConfig, state: BatchState, part: Round, taps: AttentionOutputs
) -> tuple[dict[str, float], Tensor]:
    images = state.images.detach().requires_grad_(True)
    reach = max(1, round(part.roll * spec.input_size[1] / 224))
    view = random_roll(images, reach, state.generator)
    if config.flip:
        view = random_flip(view, state.generator)
    kind = images.device.type
    with torch.autocast(device_type=kind, dtype=torch.bfloat16, enabled=has_fast_bf16(kind)):
        logits = model(view)
    prefix = getattr(model, "num_prefix_tokens", 0)
    terms = {
        "entropy": config.entropy * patch_entropy_loss(taps.values, prefix),
        "class": config.class_loss * F.cross_entropy(logits.float(), state.labels.to(images.device)),
        "tv": config.tv * (total_variation(view) - state.target).abs(),
    }
    total = torch.stack(list(terms.values())).sum()
    (gradient,) = torch.autograd.grad(total, images)
    return {name: float(value.detach()) for name, value in (terms | {"total": total}).items()}, gradient


def has_fast_bf16(device_type: str) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this kind of device."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device_type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _adam(state: BatchState, gradient: Tensor, lr: float, betas: tuple[float, float], count: int) -> None:
    """One Adam step (Kingma & Ba, 2015) in place, its moments kept in ``state`` so that a checkpoint is complete."""
    state.first.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    state.second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    mean = state.first / (1 - betas[0] ** count)
    spread = (state.second / (1 - betas[1] ** count)).sqrt() + 1e-8
    state.images = state.images - lr * mean / spread

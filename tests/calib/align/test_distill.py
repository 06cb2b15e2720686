"""MimiQ's fine-tuning: its losses against loops, its gradients against finite differences, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calib.align.distill import (
    C2,
    DistillConfig,
    Lesson,
    LsqLinear,
    augmented,
    distill,
    softened_divergence,
    structure_loss,
)
from calib.align.inputs import Split
from calib.calibrate import calibrate
from calib.models import ModelSpec
from calib.quant.linear import QuantLinear
from calib.quant.surgery import prepare, products, residuals, set_quantized
from calib.recipes import PUBLISHED
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, spec_of, tiny_swin, tiny_vit


def values(blocks: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 5, 4, generator=generator) for _ in range(blocks)]


def test_the_structure_loss_is_ssims_contrast_times_structure() -> None:
    made, target = values(seed=1), values(seed=2)
    terms = []
    for one, other in zip(made, target, strict=True):
        for b in range(2):
            for h in range(3):
                for d in range(4):
                    s, t = one[b, h, 1:, d], other[b, h, 1:, d]
                    covariance = ((s - s.mean()) * (t - t.mean())).mean()
                    contrast = s.var(unbiased=False) + t.var(unbiased=False)
                    terms.append((2 * covariance + C2) / (contrast + C2))
    assert float(structure_loss(made, target, 1)) == pytest.approx(1 - float(torch.stack(terms).mean()), rel=1e-5)


def test_the_structure_loss_of_equal_attention_is_zero_and_it_does_not_see_a_shift() -> None:
    made = values()
    assert float(structure_loss(made, made)) == pytest.approx(0, abs=1e-6)
    assert float(structure_loss([part + 3 for part in made], made)) == pytest.approx(0, abs=1e-5)
    assert float(structure_loss([-part for part in made], made)) > 1


def test_the_softened_divergence_is_the_textbook_sum() -> None:
    made, target = torch.randn(4, 7), torch.randn(4, 7)
    p, q = F.softmax(target / 5, 1), F.softmax(made / 5, 1)
    assert float(softened_divergence(made, target, 5.0)) == pytest.approx(
        float(25 * (p * (p / q).log()).sum(1).mean()), rel=1e-4
    )


def layer(bits: int = 4) -> QuantLinear:
    made = QuantLinear(torch.randn(6, 8), torch.randn(6), bits, bits)
    assert made.in_quant is not None
    made.in_quant.set(0.2, 0)
    return made


def test_an_untouched_layer_commits_what_it_computes() -> None:
    torch.manual_seed(0)
    part = LsqLinear(layer())
    x = torch.randn(3, 5, 8)
    wanted = part(x).detach()
    plain = part.commit()
    assert torch.allclose(plain.integer_output(x), wanted, atol=1e-5)
    assert int(plain.weight_q.abs().amax(1).min()) == 7, "every row's largest weight is at the last level"


def test_the_scale_of_every_group_follows_its_largest_weight() -> None:
    torch.manual_seed(0)
    part = LsqLinear(QuantLinear(torch.randn(6, 32), torch.randn(6), 3, 16, group=16))
    x = torch.randn(4, 32)
    wanted = part(x)
    wanted.square().sum().backward()
    assert part.weight.grad is not None and (part.weight.grad != 0).all()
    plain = part.commit()
    assert torch.allclose(plain.integer_output(x), wanted.detach(), atol=1e-5)
    assert plain.weight_q.unflatten(1, (2, 16)).abs().amax(2).eq(7).all()


def test_lsq_scales_the_steps_gradient_by_the_count_of_values_and_levels() -> None:
    torch.manual_seed(0)
    part = LsqLinear(layer())
    x = torch.randn(50, 8)
    part(x).sum().backward()
    step = part.step
    assert step is not None and step.grad is not None
    quotient = x / 0.2
    inside = (quotient.round() >= -8) & (quotient.round() <= 7)
    slope = torch.where(inside, quotient.round() - quotient, quotient.clamp(-8, 7))
    weight, scale = part._weights()
    unscaled = float((slope @ (weight * scale[:, None]).detach().T).sum())
    assert float(step.grad) == pytest.approx(unscaled / (x.numel() * 7) ** 0.5, rel=1e-3)


def lesson(model: Any, side: int, scheme: str = "w4a8") -> tuple[Lesson, ModelSpec]:
    images, spec = pictures(32, side), spec_of(model, side)
    made = calibrate(model, spec, parse(scheme), images, replace(PUBLISHED["mimiq"], distill=None))
    teacher = prepare(model, parse(scheme))
    set_quantized(teacher, False)
    return Lesson(made.module, teacher, spec, images, Split.of(32)), spec


def fixed_steps(student: Any) -> dict[str, tuple[Any, float]]:
    found: dict[str, tuple[Any, float]] = {n: (part, float(part.right.scale)) for n, part in products(student).items()}
    return found | {name: (point, float(point.quant.scale)) for name, point in residuals(student).items()}


@pytest.mark.parametrize("scheme", ["w3a8", "w3a8+attn8", "w3a8+res8"])
@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_distillation_brings_held_out_logits_closer(make: Any, side: int, scheme: str) -> None:
    task, _ = lesson(make(), side, scheme)
    kept = fixed_steps(task.student)
    assert bool(kept) == ("+" in scheme)
    calls: list[tuple[int, int]] = []
    config = DistillConfig(epochs=4, frozen_epochs=1, rate=5e-3, augment=False)
    row = distill(task, config, 1, lambda done, total: calls.append((done, total)))
    assert row["accepted"] and row["after"] < row["before"]
    assert calls == [(k, 4) for k in (1, 2, 3, 4)]
    held = task.images[task.split.held]
    with torch.no_grad():
        found = softened_divergence(task.student(held), task.teacher(held), 1.0)
    # Training takes a product's steps from their logarithms: a value half-way between two levels may round otherwise.
    assert float(found) == pytest.approx(row["after"], rel=0.02)
    assert fixed_steps(task.student) == kept


def test_a_distillation_that_does_not_help_changes_nothing() -> None:
    task, _ = lesson(tiny_vit(), VIT_SIDE)
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    row = distill(task, DistillConfig(epochs=1, frozen_epochs=0, rate=1e4, augment=False), 0)
    assert not row["accepted"] and row["after"] == row["before"]
    after = task.student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_stay_in_the_frozen_epochs() -> None:
    task, _ = lesson(tiny_vit(), VIT_SIDE, "w3a4")
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    distill(task, DistillConfig(epochs=2, frozen_epochs=2, rate=1e-2, augment=False), 0)
    after = task.student.state_dict()
    moved = {name.rsplit(".", 1)[-1] for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved <= {"scale"}


def test_the_same_seed_augments_alike_and_the_global_generator_is_left_alone() -> None:
    spec, images = spec_of(tiny_vit(), VIT_SIDE), pictures(4, VIT_SIDE)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, again, other = (augmented(images, spec, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == images.shape and torch.equal(torch.get_rng_state(), state)

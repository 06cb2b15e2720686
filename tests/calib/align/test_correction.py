"""The correction matrix against closed forms, and folded against unfolded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.align.bias import token_weights
from calib.align.config import FORMS, CorrectionConfig, Form
from calib.align.correction import Correction, fit_correction, search_correction
from calib.align.rounding import relative_error
from calib.quant.linear import QuantPatchConv
from calib.quant.surgery import linears, prepare, set_quantized
from calib.scheme import parse
from tests.calib.networks import VIT_SIDE, pictures, tiny_vit


def rows(count: int = 200, width: int = 12, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """What a layer gives and what it should give: a mixed, shifted, noisy version of it. Float64."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(count, width, generator=generator, dtype=torch.float64) + 0.5
    mix = torch.eye(width) + 0.2 * torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    left = noise * torch.randn(count, width, generator=generator, dtype=torch.float64)
    return made, made @ mix.double().T + 1.0 + left


def weighted_error(correction: Correction, made: Tensor, target: Tensor) -> Tensor:
    return (token_weights(target) * (correction(made) - target).square().sum(1)).sum()


def test_a_full_matrix_without_ridge_is_least_squares() -> None:
    made, target = rows()
    found = fit_correction(made, target, "full", 0.0)
    root = token_weights(target).sqrt()[:, None]
    solution = torch.linalg.lstsq(
        root * torch.cat([made, torch.ones(len(made), 1).double()], 1), root * target
    ).solution
    assert torch.allclose(found.gain, solution[:-1].T, atol=1e-8)
    assert torch.allclose(found.offset, solution[-1], atol=1e-8)


def test_the_ridge_pulls_towards_the_identity() -> None:
    made, target = rows()
    distance = [
        float((fit_correction(made, target, "full", ridge).gain - torch.eye(12)).norm()) for ridge in (0.0, 1.0, 1e6)
    ]
    assert distance[0] > distance[1] > distance[2] and distance[2] < 1e-4


def test_a_ridge_solution_is_where_the_penalised_error_is_least() -> None:
    made, target = rows(count=60, width=4)
    found = fit_correction(made, target, "full", 0.3)
    share = token_weights(target)
    left, wanted = made - share @ made, target - share @ target
    pull = 0.3 * (share @ left.square()).mean()

    def loss(gain: Tensor) -> Tensor:
        error = (share[:, None] * (left @ gain.T - wanted).square()).sum()
        return error + pull * (gain - torch.eye(4)).square().sum()

    gain = found.gain.clone().requires_grad_(True)
    loss(gain).backward()
    assert gain.grad is not None and float(gain.grad.abs().max()) < 1e-10


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([form for form in FORMS if form != "none"]))
def test_every_form_fits_at_least_as_well_as_none_and_each_richer_one_better(seed: int, form: Form) -> None:
    made, target = rows(seed=seed)
    nothing = Correction(torch.ones(12).double(), torch.zeros(12).double())
    order: list[Form] = ["bias", "diag", "head", "full"]
    errors = [float(weighted_error(nothing, made, target))]
    for name in order[: order.index(form) + 1]:
        errors.append(float(weighted_error(fit_correction(made, target, name, 0.0, heads=2), made, target)))
    assert errors == sorted(errors, reverse=True)


def test_a_matrix_a_head_touches_the_values_alone() -> None:
    made, target = rows()
    gain = fit_correction(made, target, "head", 0.1, heads=2).gain
    allowed = torch.eye(12, dtype=torch.bool)
    allowed[8:10, 8:10] = allowed[10:12, 10:12] = True
    assert torch.equal(gain != 0, allowed)


def test_a_low_rank_correction_has_that_rank_and_beats_a_plain_truncation() -> None:
    made, target = rows()
    made = made * torch.logspace(-1, 1, 12)  # channels of very different energy
    whole = fit_correction(made, target, "full", 1e-6)
    reduced = fit_correction(made, target, "full", 1e-6, rank=3)
    change = whole.gain - torch.eye(12)
    assert int(torch.linalg.matrix_rank(reduced.gain - torch.eye(12), rtol=1e-6)) == 3
    left, values, right = torch.linalg.svd(change)
    plain = torch.eye(12) + (left[:, :3] * values[:3]) @ right[:3]
    share = token_weights(target)
    naive = Correction(plain, share @ target - plain @ (share @ made))
    assert weighted_error(reduced, made, target) < weighted_error(naive, made, target)


@pytest.mark.parametrize("form", ["bias", "diag", "head", "full"])
def test_folded_and_unfolded_are_the_same_function(form: Form) -> None:
    made, target = (part.float() for part in rows())
    correction = fit_correction(made, target, form, 0.1, heads=2)
    inputs, weight, bias = torch.randn(50, 7), torch.randn(12, 7), torch.randn(12)
    unfolded = correction(F.linear(inputs, weight, bias))
    folded = F.linear(inputs, *correction.fold(weight, bias))
    assert float((folded - unfolded).norm() / unfolded.norm()) < 1e-5


def test_the_ridge_is_chosen_on_held_out_rows_and_nothing_is_kept_that_does_not_help() -> None:
    fit, held = rows(seed=1), rows(seed=2)
    config = CorrectionConfig("full", ridges=(0.01, 1e4))
    found = search_correction(fit, held, config)
    assert found is not None
    assert torch.equal(found.gain, fit_correction(*fit, "full", 0.01).gain)
    assert relative_error(found(held[0]), held[1]) < relative_error(*held)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20, 12, generator=generator), torch.randn(20, 12, generator=generator)
    unbiased = torch.randn(500, 12, generator=generator) * 10
    assert search_correction(noise, (unbiased, unbiased), config) is None


def test_none_and_a_layer_without_heads() -> None:
    fit, held = rows(seed=1), rows(seed=2)
    assert search_correction(fit, held, CorrectionConfig("none")) is None
    found = search_correction(fit, held, CorrectionConfig("head"), heads=0)
    assert found is not None and not found.mixes


def test_a_dead_channel_keeps_a_gain_of_one() -> None:
    made, target = rows()
    made[:, 3] = 0.0
    found = fit_correction(made, target, "diag", 0.01)
    assert torch.isfinite(found.gain).all() and float(found.gain.min()) > 0


@pytest.mark.parametrize("form", ["bias", "diag", "head", "full"])
def test_a_whole_network_with_folded_corrections_gives_the_logits_of_the_unfolded_one(form: Form) -> None:
    images = pictures(16, VIT_SIDE)
    unfolded, folded = (prepare(tiny_vit(), parse("w4a8")) for _ in range(2))
    set_quantized(unfolded, False)
    set_quantized(folded, False)
    generator = torch.Generator().manual_seed(0)
    for name, layer in linears(unfolded).items():
        if isinstance(layer, QuantPatchConv):
            continue
        made = torch.randn(500, layer.out_features, generator=generator)
        mix = torch.eye(layer.out_features) + 0.1 * torch.randn(layer.out_features, layer.out_features)
        correction = fit_correction(made, made @ mix + 0.2, form, 0.01, heads=2 if name.endswith("qkv") else 1)
        layer.register_forward_hook(lambda _m, _a, out, own=correction: own(out))
        other = folded.get_submodule(name)
        other.weight, other.bias = correction.fold(other.weight, other.bias)
    with torch.no_grad():
        one, other_logits, plain = unfolded(images), folded(images), tiny_vit()(images)
    assert float((one - other_logits).norm() / one.norm()) < 1e-4
    assert float((one - plain).norm() / plain.norm()) > 0.05, "the corrections did nothing"

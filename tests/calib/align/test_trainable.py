"""Trainable layers compute what the plain ones do, have LSQ's gradients, and give back what they learned."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calib.align.rounding import search_rounding
from calib.align.trainable import (
    TrainableLinear,
    TrainableNorm,
    TrainableProduct,
    TrainableResidual,
    activation_levels,
    straight_round,
    trainable_between,
)
from calib.quant.attention import QuantProduct
from calib.quant.linear import QuantLinear
from calib.quant.quantizer import levels, quantize
from calib.quant.residual import QuantResidual


def layer_of(seed: int, weight_bits: int = 4, act_bits: int = 8, zero_point: int = 0) -> QuantLinear:
    generator = torch.Generator().manual_seed(seed)
    layer = QuantLinear(
        torch.randn(5, 7, generator=generator), torch.randn(5, generator=generator), weight_bits, act_bits
    )
    layer.set_weights(*search_rounding(layer.weight, weight_bits, torch.ones(7)))
    if layer.in_quant is not None:
        layer.in_quant.set(3.0 / (1 << (act_bits - 1)), zero_point)
    layer.quantized = True
    return layer


def inputs(seed: int) -> Tensor:
    return 2 * torch.randn(11, 7, generator=torch.Generator().manual_seed(seed + 1))


@pytest.mark.parametrize(("weight_bits", "act_bits", "zero_point"), [(4, 8, 0), (8, 8, -90), (3, 4, -5), (4, 16, 0)])
def test_at_the_start_it_is_the_plain_layer(weight_bits: int, act_bits: int, zero_point: int) -> None:
    layer = layer_of(0, weight_bits, act_bits, zero_point)
    expected = layer(inputs(0))
    made = TrainableLinear(layer, unit=2.0)
    assert torch.allclose(made(inputs(0)), expected, rtol=1e-5, atol=1e-5)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert made.commit() is layer
    for name, tensor in layer.state_dict().items():
        assert torch.allclose(tensor.float(), before[name].float(), rtol=1e-6), name


def test_levels_that_rounding_did_not_choose_are_kept() -> None:
    """GPTQ moves weights by whole levels from where they were; learning starts from there."""
    layer = layer_of(0)
    layer.set_weights(torch.clamp(layer.weight_q + 2, -7, 7), layer.weight_scale)
    kept = layer.weight_q.clone()
    assert torch.equal(TrainableLinear(layer, 1.0).commit().weight_q, kept)


@pytest.mark.parametrize("act_bits", [8, 4, 16])
def test_what_was_learned_is_what_the_plain_layer_does_afterwards(act_bits: int) -> None:
    made = TrainableLinear(layer_of(3, act_bits=act_bits), unit=0.5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    made.project()
    expected = made(inputs(3)).detach()
    assert torch.allclose(made.commit()(inputs(3)), expected, rtol=1e-5, atol=1e-5)


def grouped_layer() -> QuantLinear:
    generator = torch.Generator().manual_seed(2)
    layer = QuantLinear(torch.randn(5, 12, generator=generator), torch.randn(5, generator=generator), 3, 16, group=4)
    layer.set_weights(*search_rounding(layer.weight, 3, torch.ones(12), group=4))
    layer.quantized = True
    return layer


@pytest.mark.parametrize("absolute", [False, True])
def test_the_scale_of_every_group_learns(absolute: bool) -> None:
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(5))
    layer = grouped_layer()
    expected = layer(x)
    made = TrainableLinear(layer, unit=0.5, absolute=absolute)
    assert torch.allclose(made(x), expected, rtol=1e-5, atol=1e-5)
    made(x).square().sum().backward()
    assert made.log_weight_step.grad is not None and made.log_weight_step.grad.shape == (5, 3)
    assert (made.log_weight_step.grad != 0).all() and made.latent.grad is not None and made.latent.grad.any()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    made.project()
    expected = made(x).detach()
    assert torch.allclose(made.commit()(x), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.integers(-3, 3))
def test_the_step_has_the_published_gradient(seed: int, bits: int, zero: int) -> None:
    """Equation 3 of LSQ by finite differences: rounding adds a constant to x / s, saturation holds the level."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    step = float(0.02 + 0.5 * torch.rand((), generator=generator))
    zero_point, (low, high) = torch.tensor(float(max(min(zero, levels(bits)[1]), levels(bits)[0]))), levels(bits)
    away = values / step - torch.round(values / step)
    held = torch.round(values / step) + zero_point
    saturated, end = (held < low) | (held > high), held.clamp(low, high)

    def smooth(log_step: Tensor, x: Tensor) -> Tensor:
        s = log_step.exp()
        level = torch.where(saturated, end, x / s - away + zero_point) - zero_point
        return (s * level).square().sum()

    log_step = torch.tensor(step, dtype=torch.float64).log().requires_grad_()
    x = values.clone().requires_grad_()
    out = (log_step.exp() * activation_levels(x, log_step, zero_point, bits)).square().sum()
    out.backward()
    tiny = 1e-6
    assert log_step.grad is not None and x.grad is not None
    with torch.no_grad():
        ends = [smooth(log_step + sign * tiny, values) for sign in (1, -1)]
        assert float(log_step.grad) == pytest.approx(float((ends[0] - ends[1]) / (2 * tiny)), rel=1e-4, abs=1e-6)
        for i in range(0, 50, 7):
            nudge = torch.zeros_like(values)
            nudge[i] = tiny
            ends = [smooth(log_step, values + sign * nudge) for sign in (1, -1)]
            assert float(x.grad[i]) == pytest.approx(float((ends[0] - ends[1]) / (2 * tiny)), rel=1e-4, abs=1e-6)


def test_the_levels_are_the_quantizers() -> None:
    values = inputs(5)
    for bits, zero in ((8, 0), (8, -100), (4, 3)):
        expected = quantize(values, 0.1, zero, bits) - zero
        found = activation_levels(values, torch.tensor(0.1).log(), torch.tensor(float(zero)), bits)
        assert (found - expected).abs().max() <= 1 and (found == expected).float().mean() > 0.98


def test_weights_at_the_last_level_still_learn() -> None:
    layer = layer_of(0, weight_bits=3)
    made = TrainableLinear(layer, 1.0)
    assert (made.latent.detach().min(), made.latent.detach().max()) == (-4, 3)
    made(inputs(0)).square().sum().backward()
    assert made.latent.grad is not None and bool((made.latent.grad != 0).all())
    with torch.no_grad():
        made.latent[0, 0], made.latent[0, 1] = 9.0, -9.0
    made.project()
    assert made.latent[0, :2].tolist() == [3.0, -4.0]
    assert made.commit().weight_q[0, :2].tolist() == [7, -7]


def test_rounding_lets_gradients_through() -> None:
    x = torch.tensor([0.4, 0.6, -1.5], requires_grad=True)
    (straight_round(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert straight_round(x).tolist() == [0.0, 1.0, -2.0]
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("by_row", [False, True])
def test_a_product_that_learned(by_row: bool) -> None:
    """It starts as the plain product, passes gradients to both operands, and gives back what it learned."""
    generator = torch.Generator().manual_seed(0)
    product = QuantProduct(8, by_row)
    product.quantized = True
    product.right.set(0.02)
    if not by_row:
        product.left.set(0.03)
    left = torch.randn(2, 3, 5, 7, generator=generator)
    left = (left.softmax(-1) if by_row else left).requires_grad_()
    right = torch.randn(2, 3, 7, 4, generator=generator).requires_grad_()
    made = TrainableProduct(product)
    assert torch.allclose(made(left, right), product(left, right), rtol=1e-4, atol=1e-4)
    made(left, right).square().sum().backward()
    exact = torch.autograd.grad((left @ right).square().sum(), (left, right))
    for operand, wanted in zip((left, right), exact, strict=True):
        assert operand.grad is not None
        assert float((operand.grad - wanted).norm() / wanted.norm()) < 0.1
    assert made.log_right.grad is not None and float(made.log_right.grad) != 0
    assert made.log_left.requires_grad is not by_row
    with torch.no_grad():
        made.log_left += 0.2 * (not by_row)
        made.log_right -= 0.3
    expected = made(left, right).detach()
    assert made.commit() is product
    assert torch.allclose(product(left, right), expected, rtol=1e-4, atol=1e-4)
    assert float(product.left.scale) == pytest.approx(1 / 127 if by_row else 0.03 * math.exp(0.2), rel=1e-6)


def test_a_point_of_the_stream_that_learned() -> None:
    """It starts as the plain point, passes gradients but where it saturates, and gives back its step."""
    generator = torch.Generator().manual_seed(0)
    point = QuantResidual(6, 8)
    point.unit[3] = 16.0
    point.quant.set(0.01)
    point.quantized = True
    x = (torch.randn(2, 5, 6, generator=generator) * point.unit).requires_grad_()
    made = trainable_between(point)
    assert isinstance(made, TrainableResidual) and torch.allclose(made(x), point(x), rtol=1e-5)
    weight = torch.randn(2, 5, 6, generator=generator)
    (made(x) * weight).sum().backward()
    level = (x.detach() / point.unit / 0.01).round()
    inside = (level >= -128) & (level <= 127)
    assert inside.any() and not inside.all()
    assert x.grad is not None and torch.allclose(x.grad, weight * inside)
    assert made.log_step.grad is not None and float(made.log_step.grad) != 0
    with torch.no_grad():
        made.log_step += 0.3
    expected = made(x).detach()
    assert made.commit() is point
    assert torch.allclose(point(x), expected, rtol=1e-5)
    assert float(point.quant.scale) == pytest.approx(0.01 * math.exp(0.3), rel=1e-6)


def test_a_norm_that_learned() -> None:
    norm = nn.LayerNorm(6, eps=1e-6).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    norm.weight.copy_(torch.randn(6, generator=generator))
    norm.bias.copy_(torch.randn(6, generator=generator))
    x = torch.randn(4, 6, generator=generator)
    made = TrainableNorm(norm)
    assert torch.allclose(made(x), norm(x), atol=1e-6)
    with torch.no_grad():
        made.gain += 0.1 * torch.randn(6, generator=generator)
        made.shift += 0.1 * torch.randn(6, generator=generator)
    expected = made(x).detach()
    assert made.commit() is norm and torch.allclose(norm(x), expected, atol=1e-6)
    assert not torch.allclose(norm.weight, torch.ones(6))

"""Quantized layers whose numbers learn by gradient descent, and go back into the plain layer when done.

Rounding passes gradients straight through; an activation that saturates passes none. Steps learn by LSQ's rule (Esser
et al., "Learned Step Size Quantization", ICLR 2020, equation 3): inside the range the derivative of ``s q`` by s is
``q - x/s``, outside it is the level clamped to. Steps are held as logarithms, weights in units of their own step,
biases and LayerNorm parameters relative to their own size, so that one learning rate each serves every layer of every
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.quant.attention import QuantProduct
from calib.quant.grid import weight_grid
from calib.quant.linear import QuantLinear, per_weight
from calib.quant.quantizer import levels
from calib.quant.residual import QuantResidual

MARGIN = 0.45  # how far from its level, in steps, a weight may start: less than the half that would round it away


class _Levels(torch.autograd.Function):
    """Integers of ``values`` less the zero point, with straight-through gradients to the values and the step."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, log_step: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        step = log_step.exp()
        ctx.save_for_backward(values, step, zero_point)
        ctx.limits = low, high
        return torch.clamp(torch.round(values / step) + zero_point, low, high) - zero_point

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, step, zero_point = ctx.saved_tensors
        low, high = ctx.limits
        ratio = values / step
        level = torch.round(ratio) + zero_point
        inside = torch.where((level >= low) & (level <= high), grad, torch.zeros((), dtype=grad.dtype))
        return inside / step, -(inside * ratio).sum().to(step.dtype), None, None, None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def activation_levels(values: Tensor, log_step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """``clamp(round(x / s) + z) - z`` in ``levels(bits)``, differentiable in ``values`` and ``log_step``.

    Args:
        values: any shape, float32. log_step: (), log of the step. zero_point: (), an integer in float32.
    """
    return cast(Tensor, _Levels.apply(values, log_step, zero_point, *levels(bits)))


def straight_round(values: Tensor) -> Tensor:
    """Rounded half to even; the gradient passes as if nothing had been done."""
    return cast(Tensor, _Round.apply(values))


@dataclass(frozen=True)
class Drop:
    """Leave every activation unrounded with probability ``share``, drawn with ``generator`` (on the CPU)."""

    share: float
    generator: torch.Generator

    def __call__(self, levels: Tensor, values: Tensor) -> Tensor:
        """``levels``, or ``values`` where dropped; both of one shape."""
        keep = torch.rand(levels.shape, generator=self.generator) >= self.share
        return torch.where(keep.to(levels.device), levels, values)


class TrainableLinear(nn.Module):
    """A quantized ``layer`` as parameters: ``y = (levels(x) . round(v)) s_x s_w + b``, ``x . (round(v) s_w) + b`` with
    groups.

    Attributes:
        latent: (N, K), v times ``weight_unit``, v being where the weights lie among the levels (``grid.index``);
        rounded, v starts at the layer's own. log_weight_step: (N,), or (N, K / group). log_step: () or None.
        shift: (N,), what the bias has moved, in units of ``unit``. unit: (), the root mean square of the layer's float
        output. weight_unit: (N, 1), ones; or the first distance between each weight's levels where ``absolute``. drop:
        of activations below 8 bits, or None.
    """

    def __init__(self, layer: QuantLinear, unit: float, drop: Drop | None = None, absolute: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.grid = weight_grid(layer.weight_bits)
        steps = per_weight(layer.weight_scale, layer.in_features)
        self.weight_unit = steps * self.grid.spacing if absolute else torch.ones_like(layer.bias)[:, None]
        index = self.grid.index(layer.weight_q.float())
        left = self.grid.index(layer.weight / steps) - index
        start = (index + left.clamp(-MARGIN, MARGIN)).clamp(self.grid.first, self.grid.last)
        self.latent = nn.Parameter(start * self.weight_unit)
        self.log_weight_step = nn.Parameter(layer.weight_scale.log())
        self.shift = nn.Parameter(torch.zeros_like(layer.bias))
        self.unit = unit
        self.drop = drop
        quantizer = layer.in_quant
        self.log_step = None if quantizer is None else nn.Parameter(quantizer.scale.log())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) float32. The product runs in the autocast type: integers to 8 bits are exact in bf16."""
        values = self.layer.scaled(x.float())
        weight = self.grid.level(straight_round(self.latent / self.weight_unit))
        step = self.log_weight_step.exp()
        if self.layer.group is not None:
            weight, step = weight * per_weight(step, weight.shape[1]), torch.ones_like(self.layer.bias)
        if self.log_step is not None:
            quantizer = self.layer.in_quant
            assert quantizer is not None
            rounded = activation_levels(values, self.log_step, quantizer.zero_point.float(), quantizer.bits)
            if self.drop is not None and quantizer.bits < 8:
                rounded = self.drop(rounded, values / self.log_step.exp())
            values = rounded
            step = step * self.log_step.exp()
        return F.linear(values, weight).float() * step + (self.layer.bias + self.unit * self.shift)

    @torch.no_grad()
    def project(self) -> None:
        """Bring weights that a step took beyond the last level back to it, where they can turn round."""
        first, last = (end * self.weight_unit for end in (self.grid.first, self.grid.last))
        self.latent.copy_(torch.minimum(torch.maximum(self.latent, first), last))

    @property
    def plain(self) -> QuantLinear:
        """What learned here, its own numbers untouched until ``commit``."""
        return self.layer

    @torch.no_grad()
    def commit(self) -> QuantLinear:
        """Put the learned numbers into the plain layer and return it."""
        layer = self.layer
        layer.set_weights(self.grid.level((self.latent / self.weight_unit).round()), self.log_weight_step.exp())
        layer.bias += self.unit * self.shift
        if self.log_step is not None:
            assert layer.in_quant is not None
            layer.in_quant.set(float(self.log_step.exp()), int(layer.in_quant.zero_point))
        return layer


class TrainableProduct(nn.Module):
    """A quantized attention ``product`` whose steps learn and which passes gradients to both operands.

    Attributes:
        log_left, log_right: () each, logarithms of the steps; the left one stays where the product goes ``by_row``.
    """

    def __init__(self, product: QuantProduct) -> None:
        super().__init__()
        self.product = product
        self.log_left = nn.Parameter(product.left.scale.log(), requires_grad=not product.by_row)
        self.log_right = nn.Parameter(product.right.scale.log())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., M, K) and (..., K, N) to (..., M, N) float32; the product runs in the autocast type."""
        left, peak = self.product.rows(left.float())
        quantizers = self.product.left, self.product.right
        levels_of = [
            activation_levels(values, log_step, quantizer.zero_point.float(), quantizer.bits)
            for values, log_step, quantizer in zip(
                (left, right.float()), (self.log_left, self.log_right), quantizers, strict=True
            )
        ]
        out = (levels_of[0] @ levels_of[1]).float() * (self.log_left + self.log_right).exp()
        return out if peak is None else out * peak

    @property
    def plain(self) -> QuantProduct:
        """What learned here, its own numbers untouched until ``commit``."""
        return self.product

    @torch.no_grad()
    def commit(self) -> QuantProduct:
        """Put the learned steps into the plain product and return it."""
        if not self.product.by_row:
            self.product.left.set(float(self.log_left.exp()))
        self.product.right.set(float(self.log_right.exp()))
        return self.product


class TrainableResidual(nn.Module):
    """A quantized ``point`` of the residual stream whose step learns and which passes gradients through.

    Attributes:
        log_step: (), logarithm of the step.
    """

    def __init__(self, point: QuantResidual) -> None:
        super().__init__()
        self.point = point
        self.log_step = nn.Parameter(point.quant.scale.log())

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C) float32."""
        unit, quantizer = self.point.unit, self.point.quant
        found = activation_levels(x.float() / unit, self.log_step, quantizer.zero_point.float(), quantizer.bits)
        return found * self.log_step.exp() * unit

    @property
    def plain(self) -> QuantResidual:
        """What learned here, its own numbers untouched until ``commit``."""
        return self.point

    @torch.no_grad()
    def commit(self) -> QuantResidual:
        """Put the learned step into the plain point and return it."""
        self.point.quant.set(float(self.log_step.exp()))
        return self.point


def sound(part: nn.Module) -> bool:
    """Whether every number that learned is finite, and every step, held as a logarithm, a positive finite float32."""
    for name, value in part.named_parameters(recurse=False):
        if not bool(torch.isfinite(value).all()):
            return False
        if name.startswith("log_") and not bool((torch.isfinite(value.exp()) & (value.exp() > 0)).all()):
            return False
    return True


def trainable_between(module: QuantProduct | QuantResidual) -> TrainableProduct | TrainableResidual:
    """The trainable form of what is quantized between the layers."""
    return TrainableProduct(module) if isinstance(module, QuantProduct) else TrainableResidual(module)


class TrainableNorm(nn.Module):
    """A LayerNorm whose gamma learns as a factor and whose beta learns in units of gamma.

    Attributes:
        gain: (C,), what gamma has grown by, relative. shift: (C,), what beta has moved, in units of |gamma|.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self.gain = nn.Parameter(torch.zeros_like(norm.weight))
        self.shift = nn.Parameter(torch.zeros_like(norm.weight))

    def _numbers(self) -> tuple[Tensor, Tensor]:
        gamma = self.norm.weight
        return gamma * (1 + self.gain), self.norm.bias + gamma.abs() * self.shift

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C) float32."""
        return F.layer_norm(x.float(), self.norm.normalized_shape, *self._numbers(), self.norm.eps)

    @property
    def plain(self) -> nn.LayerNorm:
        """What learned here, its own numbers untouched until ``commit``."""
        return self.norm

    @torch.no_grad()
    def commit(self) -> nn.LayerNorm:
        """Put the learned numbers into the plain LayerNorm and return it."""
        gamma, beta = self._numbers()
        self.norm.weight.copy_(gamma)
        self.norm.bias.copy_(beta)
        return self.norm

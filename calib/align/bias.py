"""Bias correction: take the layer's own mean error out of its bias.

Empirical bias correction (Nagel et al., ICCV 2019) with two differences. The error is the layer's own (same quantized
input, float layer against integer layer): the error inherited through the residual stream is not one bias's to mend,
and correcting for it brings a 4-bit ViT to chance. And every token counts by the inverse of its energy, so that a few
massive tokens do not decide for all. Measured in docs/decisions/0003-own-error-bias-correction.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_weights(target: Tensor, weighted: bool = True) -> Tensor:
    """(T,) summing to 1: every row of ``target`` (T, N) by ``1 / |target_t|^2``, or all alike."""
    if not weighted:
        return torch.full_like(target[:, 0], 1.0 / target.shape[0])
    energy = target.square().sum(1)
    weight = 1.0 / (energy + 1e-6 * energy.mean().clamp_min(1e-20))
    return weight / weight.sum()


def bias_correction(made: Tensor, target: Tensor, weighted: bool = True) -> Tensor:
    """What to add to the bias: (N,), the weighted mean over tokens of ``target - made``, both (T, N)."""
    return token_weights(target, weighted) @ (target - made)

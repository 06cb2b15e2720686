"""Bias correction: take the layer's own mean error out of its bias.

Empirical bias correction (Nagel et al., ICCV 2019) with two differences. The error is the layer's own (same quantized
input, float layer against integer layer): the error inherited through the residual stream is not one bias's to mend,
and correcting for it brings a 4-bit ViT to chance. And every token counts by the inverse of its energy, so that a few
massive tokens do not decide for all. Measured in docs/decisions/0003-own-error-bias-correction.md.
"""

from __future__ import annotations

from torch import Tensor


def bias_correction(made: Tensor, target: Tensor, weighted: bool = True) -> Tensor:
    """What to add to the bias: (N,), the weighted mean over tokens of ``target - made``, both (T, N).

    A token's weight is 1 / |target_t|^2, or 1 where ``weighted`` is False.
    """
    if not weighted:
        return (target - made).mean(0)
    energy = target.square().sum(1)
    weight = 1.0 / (energy + 1e-6 * energy.mean().clamp_min(1e-20))
    return ((target - made) * weight[:, None]).sum(0) / weight.sum()

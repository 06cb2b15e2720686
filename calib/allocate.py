"""Which layers get 8-bit weights and which 4, under an average: ``--bits auto:AVG``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from calib.network import Network
from calib.quant.families import sites
from calib.scheme import Scheme
from calib.sensitivity import Sensitivity, sensitivities

LOW, HIGH = 4, 8


def allocate(low: list[Sensitivity], high: list[Sensitivity], average: float) -> dict[str, int]:
    """Weight bits of every layer, 4 or 8, their mean over all weights being at most ``average``.

    The layers whose divergence falls most for each weight that is widened are widened first, as many as fit: the greedy
    answer to the knapsack. A layer that gains nothing stays narrow.

    Args:
        low, high: what every layer costs at 4 and at 8 bits, in any order. average: 4..8.
    """
    wide = {each.layer: each.divergence for each in high}
    gain = {each.layer: (each.divergence - wide[each.layer]) / each.weights for each in low}
    left = (average - LOW) / (HIGH - LOW) * sum(each.weights for each in low) + 1e-6
    bits = {each.layer: LOW for each in low}
    for each in sorted(low, key=lambda each: (-gain[each.layer], each.layer)):
        if gain[each.layer] > 0 and each.weights <= left:
            bits[each.layer] = HIGH
            left -= each.weights
    return bits


def choose_bits(
    model: Network, scheme: Scheme, images: Tensor, seed: int, batch: int
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The weight bits of every layer but the patch embedding (8 always), and a row each for the report.

    Args:
        model: timm ViT, DeiT or Swin, float32. scheme: with an ``average``. images: (B, 3, H, W) normalised.
    """
    assert scheme.average is not None
    embed = {site.name for site in sites(model) if site.kind == "embed"}
    low, high = (
        [each for each in found if each.layer not in embed]
        for found in (sensitivities(model, Scheme(bits, scheme.act_bits), images, seed, batch) for bits in (LOW, HIGH))
    )
    bits = allocate(low, high, scheme.average)
    wide = {each.layer: each.divergence for each in high}
    report = [
        {
            "step": "allocate",
            "layer": each.layer,
            "weight_bits": bits[each.layer],
            f"divergence_w{LOW}": each.divergence,
            f"divergence_w{HIGH}": wide[each.layer],
        }
        for each in low
    ]
    return bits, report

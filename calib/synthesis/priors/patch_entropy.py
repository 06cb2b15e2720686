"""Patch similarity entropy (PSAQ-ViT, ECCV 2022): natural images make a ViT's patches differ from one another.

The published form estimates the entropy of all pairwise cosine similarities with a kernel density at ten points. Here
the density is taken as Gaussian, so that the entropy has a closed form, and the similarities come from one batched
matrix product (no B x N x N x d tensor). Both forms rise with the spread of the similarities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8


def patch_similarity(attention_output: Tensor, prefix_tokens: int) -> Tensor:
    """Cosine similarities of the patches' head-mean attention outputs.

    Args:
        attention_output: (B, H, T, d), A.V of one layer. prefix_tokens: class and register tokens to leave out.

    Returns:
        (B, N, N) in -1..1 with N = T - prefix_tokens; float32, or float64 where the input is.
    """
    patches = attention_output[:, :, prefix_tokens:].mean(1)
    if patches.dtype != torch.float64:
        patches = patches.float()
    unit = patches / patches.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    with torch.autocast(device_type=unit.device.type, enabled=False):
        return unit @ unit.transpose(1, 2)


def gaussian_entropy(similarity: Tensor) -> Tensor:
    """Differential entropy, in nats, of a Gaussian with each image's variance: (B,) from (B, N, N).

    H = 1/2 ln(2 pi e (sigma^2 + 1e-8)).
    """
    variance = similarity.flatten(1).var(dim=1, unbiased=False)
    return 0.5 * torch.log(2 * math.pi * math.e * (variance + VARIANCE_FLOOR))


def patch_entropy_loss(attention_outputs: Sequence[Tensor], prefix_tokens: int) -> Tensor:
    """L_PSE = - sum over layers of the batch mean entropy; a scalar."""
    terms = [gaussian_entropy(patch_similarity(output, prefix_tokens)).mean() for output in attention_outputs]
    return -torch.stack(terms).sum()

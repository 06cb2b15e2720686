"""Patch similarity entropy (PSAQ-ViT, ECCV 2022): natural images make a ViT's patches differ from one another.

Each image's patches are compared pairwise by cosine similarity, and the entropy of all N^2 similarities is taken
either as published, by a kernel density (``kernel_density.py``), or as if they were Gaussian, in closed form. Both
rise with the spread of the similarities. The gradient is found in the forward pass, a few images at a time, and
between forward and backward only that of the patches is kept: (B, T, d), no N x N tensor and nothing by head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from calib.synthesis.priors.head_similarity import Scratch, accumulator
from calib.synthesis.priors.kernel_density import centre, images_at_once, similarity_entropy

Form = Literal["kde", "gaussian"]
VARIANCE_FLOOR = 1e-8
NORM_FLOOR = 1e-8


def patch_entropy_loss(
    attention_outputs: Sequence[Tensor], prefix_tokens: int, form: Form = "gaussian", rows: Tensor | None = None
) -> Tensor:
    """L_PSE = - sum over layers of the batch mean entropy; a scalar. It can be differentiated once.

    Args:
        attention_outputs: for each layer as in :func:`patch_entropy`. rows: positions of the patches to look at,
            counted without the prefix, (M,) int64; all when None.

    Raises:
        ValueError: no such form.
    """
    scratch = accumulator(attention_outputs[0])
    terms = [_layer_entropy(output, prefix_tokens, form, rows, scratch).mean() for output in attention_outputs]
    return -torch.stack(terms).sum()


def patch_entropy(attention_output: Tensor, prefix_tokens: int, form: Form = "gaussian") -> Tensor:
    """Entropy, in nats, of each image's patch similarities: (B,) float32, or float64 where the input is.

    Args:
        attention_output: (B, H, T, d), A.V of one layer, whose patches are the means over the heads.
            prefix_tokens: class and register tokens to leave out. form: "kde" as published, or "gaussian".

    Raises:
        ValueError: no such form.
    """
    return _layer_entropy(attention_output, prefix_tokens, form, None, accumulator(attention_output))


def _layer_entropy(output: Tensor, prefix: int, form: str, rows: Tensor | None, scratch: Scratch) -> Tensor:
    if form not in get_args(Form):
        raise ValueError(f"the form is one of {', '.join(get_args(Form))}, not {form!r}")
    with torch.autocast(output.device.type, enabled=False):
        entropy: Tensor = _LayerEntropy.apply(output, prefix, form, rows, scratch)
    return entropy


class _LayerEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, prefix: int, form: str, rows: Tensor | None, scratch: Scratch) -> Tensor:
        images, heads, tokens, width = output.shape
        patches = tokens - prefix if rows is None else len(rows)
        entropy_of = similarity_entropy if form == "kde" else gaussian_entropy
        kept = scratch.empty.new_zeros(images, tokens, width) if ctx.needs_input_grad[0] else None
        step = images_at_once(patches * (patches + 1) // 2, output.device)
        entropy = []
        for part in (slice(start, start + step) for start in range(0, images, step)):
            # The sum over the heads has the mean's direction.
            total = output[part].sum(1, dtype=scratch.empty.dtype)[:, prefix:]
            unit, length = _unit(total if rows is None else total.index_select(1, rows))
            if kept is None:
                entropy.append(entropy_of(unit, scratch, None))
                continue
            slope = scratch.take("unit", *unit.shape)
            entropy.append(entropy_of(unit, scratch, slope))
            # u = x / l with l = sqrt(|x|^2 + floor^2) gives dx = (du - u <u, du>) / l.
            slope.addcmul_(unit, (unit * slope).sum(2, keepdim=True), value=-1).div_(length)
            into = kept[part, prefix:]
            if rows is None:
                into.copy_(slope)
            else:
                into.index_add_(1, rows, slope)
        if kept is not None:
            ctx.save_for_backward(kept)
        ctx.heads, ctx.dtype = heads, output.dtype
        return torch.cat(entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        gradient = (kept * upstream[:, None, None]).to(ctx.dtype)
        return gradient.unsqueeze(1).expand(-1, ctx.heads, -1, -1), None, None, None, None


def _unit(patches: Tensor) -> tuple[Tensor, Tensor]:
    """u = x / sqrt(|x|^2 + 1e-16) for every patch x, and that root: (b, N, d) and (b, N, 1), in the patches' type.

    Worked out in float64: where patches are nearly equal, a float32 length's rounding shows in what tells them apart.
    """
    exact = patches.double()
    length = (exact.square().sum(2, keepdim=True) + NORM_FLOOR**2).sqrt_()
    return (exact / length).to(patches.dtype), length.to(patches.dtype)


def gaussian_entropy(unit: Tensor, scratch: Scratch, gradient: Tensor | None) -> Tensor:
    """H = 1/2 ln(2 pi e (sigma^2 + 1e-8)), sigma^2 the variance of an image's N^2 dot products: (b,) from (b, N, d).

    In the parts of :func:`centre` the c_i sum to 0. So the mean is |m|^2, the cross terms vanish and, with
    C = sum c_i c_i^T / N, sigma^2 = 2 mean (m.c_i)^2 + |C|_F^2: only squares, nothing cancels. Its gradient is
    4 / N (C u_i + (m.c_i) m).

    Args:
        gradient: (b, N, d), where to write each image's dH/dU, or None.
    """
    mean, centred, along = centre(unit, scratch)
    covariance = torch.bmm(centred.transpose(1, 2), centred).div_(unit.shape[1])
    variance = 2 * along.square().mean((1, 2)) + covariance.square().sum((1, 2)) + VARIANCE_FLOOR
    if gradient is not None:
        factor = (2 / unit.shape[1] / variance)[:, None, None]
        torch.bmm(unit, covariance.mul_(factor), out=gradient)
        gradient.addcmul_(along, mean * factor)
    return 0.5 * torch.log(2 * math.pi * math.e * variance)

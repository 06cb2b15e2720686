"""The entropy of PSAQ-ViT (ECCV 2022, https://github.com/zkkli/PSAQ-ViT): a kernel density at ten points.

For the values v_1 .. v_M of one image, with h = 0.01 and K = 1 / (M h sqrt(2 pi)),

    p_m = K sum_i exp(-(x_m - v_i)^2 / (2 h^2)),     x_1 .. x_10 equally spaced from the least to the greatest value
    H   = trapezoid rule over the x_m of -q_m ln q_m,   q_m = p_m + 1e-4

The points are constants, as in the published code. There the least and the greatest value are the whole batch's; here
each image has its own, so that an image's entropy does not depend on its neighbours (our reconstruction).

Written out with autograd this keeps several B x M x 10 tensors. Here a few images at a time go through while their
kernels are in the cache, and the gradient is found in the same pass.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from calib.synthesis.priors.head_similarity import Scratch

# All three are the published code's.
BANDWIDTH = 0.01
POINTS = 10
DENSITY_FLOOR = 1e-4
# Exponents stop here: e^-64 = 2e-28 is nothing beside 1e-4, and exp is far slower where its result is denormal or 0.
EXPONENT_FLOOR = -64.0
# Kernels computed together: on a CPU 4 MB of float32, within a tenth of the best of 0.1 to 16 MB; elsewhere 256 MB.
CHUNK_CPU = 2**20
CHUNK = 2**26


class Triangle(NamedTuple):
    """The pairs i <= j of an N x N matrix, M of them: first the N on the diagonal, then those above it."""

    places: Tensor  # (M,) int32, where each pair lies in the flat matrix
    pairs: Tensor  # (N * N,) int32, which pair each entry of the matrix is


@lru_cache(maxsize=8)
def triangle(patches: int, device: torch.device) -> Triangle:
    """The pairs of N = ``patches``, made once."""
    diagonal = torch.arange(patches, dtype=torch.int32, device=device)
    above = torch.triu_indices(patches, patches, 1, dtype=torch.int32, device=device)
    row, column = torch.cat((diagonal.expand(2, -1), above), 1)
    pairs = torch.empty(patches, patches, dtype=torch.int32, device=device)
    pairs[row, column] = pairs[column, row] = torch.arange(len(row), dtype=torch.int32, device=device)
    return Triangle(row * patches + column, pairs.flatten())


def images_at_once(values: int, device: torch.device) -> int:
    """How many images with that many values each go through together."""
    return max(1, (CHUNK_CPU if device.type == "cpu" else CHUNK) // (POINTS * values))


def centre(unit: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of u_i.u_j = |m|^2 + m.c_i + m.c_j + c_i.c_j for each image: m (b, 1, d), c (b, N, d), m.c (b, N, 1).

    m is the mean of the u_i and c_i = u_i - m. Where the u_i are nearly equal, what tells the products apart is found
    without taking numbers near 1 from one another.
    """
    mean = unit.mean(1, keepdim=True)
    centred = torch.sub(unit, mean, out=scratch.take("centred", *unit.shape))
    return mean, centred, torch.bmm(centred, mean.transpose(1, 2))


def kernel_entropy(values: Tensor) -> Tensor:
    """H of each row, in nats: (B,) from (B, M), float32 or float64; differentiable once.

    Where all values of a row are equal, H and its gradient are 0: the ten points coincide.
    """
    entropy: Tensor = _KernelEntropy.apply(values)
    return entropy


def similarity_entropy(unit: Tensor, scratch: Scratch, gradient: Tensor | None) -> Tensor:
    """H of all N^2 dot products of each image's patches, outside autograd: (b,) from (b, N, d), float32 or float64.

    The products are symmetric, so that only the pairs i <= j are looked at; and H does not change when the same number
    is taken from all of them, so that they are looked at without the |m|^2 of :func:`centre`.

    Args:
        gradient: (b, N, d), where to write each image's dH/dU, or None.
    """
    images, patches, _ = unit.shape
    places, pairs = triangle(patches, unit.device)
    similarity = scratch.take("similarity", images, patches, patches)
    values = scratch.take("values", images, len(places))
    _, centred, along = centre(unit, scratch)
    torch.bmm(centred, centred.transpose(1, 2), out=similarity).add_(along).add_(along.transpose(1, 2))
    torch.index_select(similarity.flatten(1), 1, places, out=values)
    if gradient is None:
        return _entropy(values, patches, scratch, None)
    slope = scratch.take("slope", *values.shape)
    entropy = _entropy(values, patches, scratch, slope)
    # For Gamma = U U^T a symmetric dGamma gives dU = 2 dGamma U.
    torch.index_select(slope.mul_(2), 1, pairs, out=similarity.view(images, -1))
    torch.bmm(similarity, unit, out=gradient)
    return entropy


class _KernelEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        scratch = Scratch(values.dtype, values.device)
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        step = images_at_once(values.shape[1], values.device)
        entropy = []
        with torch.autocast(values.device.type, enabled=False):
            for start in range(0, len(values), step):
                part = slice(start, start + step)
                into = None if gradient is None else gradient[part]
                entropy.append(_entropy(values[part], values.shape[1], scratch, into))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.cat(entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return torch.mul(gradient, upstream[:, None])


def _entropy(values: Tensor, once: int, scratch: Scratch, slope: Tensor | None) -> Tensor:
    """H (b,) of values (b, M) of which the first ``once`` count once and the others twice.

    Args:
        slope: (b, M), where to write the gradient with respect to each value as if it counted once, or None.
    """
    images, size = values.shape
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    steps = torch.arange(POINTS, dtype=values.dtype, device=values.device)
    pitch = (high - low) / (POINTS - 1)
    # Values and points are counted from the least value, so that differences of nearly equal ones stay exact.
    offsets = torch.sub(values, low, out=scratch.take("offsets", images, size))
    points = pitch * steps
    kernels = scratch.take("kernels", images, POINTS, size)
    torch.sub(offsets.unsqueeze(1), points.unsqueeze(2), out=kernels)
    torch.addcmul(values.new_zeros(()), kernels, kernels, value=-0.5 / BANDWIDTH**2, out=kernels)
    kernels.clamp_(min=EXPONENT_FLOOR).exp_()
    scale = 1 / ((2 * size - once) * BANDWIDTH * math.sqrt(2 * math.pi))
    density = (kernels[:, :, :once].sum(2) + 2 * kernels[:, :, once:].sum(2)) * scale + DENSITY_FLOOR
    surprise = density.log()
    share = pitch * torch.where(steps % (POINTS - 1) == 0, 0.5, 1.0)
    if slope is not None:
        # dp_m / dv_i = K E_mi (x_m - v_i) / h^2 with E the kernels, and dH / dp_m = -share_m (ln q_m + 1).
        by_kernel = (surprise + 1) * share * (scale / -(BANDWIDTH**2))
        sums = scratch.take("sums", images, 2, size)
        torch.bmm(torch.stack((by_kernel, by_kernel * points), 1), kernels, out=sums)
        torch.addcmul(sums[:, 1], offsets, sums[:, 0], value=-1, out=slope)
    return -(density * surprise * share).sum(1)

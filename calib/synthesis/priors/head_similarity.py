"""Inter-head attention similarity (MimiQ, AAAI 2025, arXiv 2407.20021): real images make a layer's heads agree.

For each query the map over the keys of every head is stretched to 0..1, and every pair of heads is compared by one
global SSIM (Wang et al., IEEE TIP 2004) over the key positions. Written out, that needs a B x N x H x H x N tensor.
Here the keys are centred first, so each row s of S = q k^T has mean 0, and with its range 1 / r = max - min + 1e-8

    mu_i = -min(s_i) r_i        sigma_ij = r_i r_j <s_i, s_j> / N

follow from the row's minimum, maximum and H x H Gram matrix. The gradient is found in the same pass, a few images at a
time while S is in the cache: dS is one more product with an H x H matrix, plus the two entries that hold the minimum
and the maximum. Between forward and backward only dq and dk are kept. Where several keys share the minimum or the
maximum, one of them gets its whole gradient.

The products stay in float32 for bf16 inputs too: in bf16 they were no faster on a CPU with AMX, since casting S and
starting the products cost what they saved, and S rounded to bf16 has many ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# (0.01 L)^2 and (0.03 L)^2 of the SSIM paper, for values of range L = 1.
C1 = 0.01**2
C2 = 0.03**2
RANGE_FLOOR = 1e-8
# Entries of S held at once. On a CPU 2 MB of float32: 4 MB are up to a fifth faster (ViT-B) and take 9 MiB more in all;
# elsewhere there is no such cache to stay in, and 256 MB keep the number of launches low.
CHUNK_CPU = 2**19
CHUNK = 2**26


def compare(gram: Tensor, low: Tensor, high: Tensor, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """SSIM of all pairs of heads from each row's statistics.

    Args:
        gram: (H, H, R), <s_i, s_j> of the centred rows. low, high: (H, R). keys: N, the length of a row.

    Returns:
        (R,), the distance: sum over ordered pairs of 1 - SSIM^2; its gradient with respect to <s_i, s_j>, both orders
        together, (H, H, R), and with respect to the minimum and the maximum, (H, R, 2).
    """
    scale = (high - low + RANGE_FLOOR).reciprocal_()
    mean = -low * scale
    outer = (scale / keys).unsqueeze(1) * scale
    covariance = gram * outer
    variance = covariance.diagonal().t().contiguous()
    square = mean.square()
    level_below = (square + C1).unsqueeze(1) + square
    shape_below = (variance + C2).unsqueeze(1) + variance
    level = ((2 * mean).unsqueeze(1) * mean).add_(C1).div_(level_below)
    shape = (2 * covariance).add_(C2).div_(shape_below)
    ssim = level * shape

    # For 1 - SSIM^2 summed: each mean and each deviation enters a pair twice, as i and as j, both ways the same.
    by_level = (ssim * shape).div_(level_below)
    by_shape = (ssim * level).div_(shape_below)
    by_mean = 8 * (mean * (by_level * level).sum(1) - (by_level * mean).sum(1))
    by_covariance = -4 * by_shape
    by_covariance.diagonal().add_(4 * (by_shape * shape).sum(1).t())
    by_range = (by_mean * low * scale - 2 * (by_covariance * covariance).sum(1)).mul_(scale)
    by_gram = by_covariance.mul_(outer).mul_(2)
    return (1 - ssim.square()).sum((0, 1)), by_gram, torch.stack((-by_mean * scale - by_range, by_range), 2)


class Scratch:
    """Memory that one call of the loss uses again for every chunk of every layer: fresh pages are slow to touch."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.empty = torch.empty(0, dtype=dtype, device=device)
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The buffer of that name with the given shape; what it holds is whatever was written last."""
        size = math.prod(shape)
        if name not in self.held or self.held[name].numel() < size:
            self.held[name] = self.empty.new_empty(size)
        return self.held[name][:size].view(shape)


def end_positions(s: Tensor) -> Tensor:
    """Where each row's minimum and maximum stand: (H, R, 2) int64 from (H, R, N)."""
    if s.device.type != "cpu":
        return torch.stack((s.argmin(2), s.argmax(2)), 2)
    values = s.numpy()  # numpy's search is about three times as fast as torch's, on the same memory
    return torch.stack((torch.from_numpy(values.argmin(2)), torch.from_numpy(values.argmax(2))), 2)


def one_chunk(q: Tensor, k: Tensor, scratch: Scratch, gradient: tuple[Tensor, Tensor] | None) -> Tensor:
    """The distance of a few images, (b,): for each the sum over queries and ordered pairs of 1 - SSIM^2.

    Args:
        q: (b, H, M, d). k: (b, H, N, d). gradient: where to write the sum's gradient, of the same shapes.
    """
    images, heads, queries, width = q.shape
    keys = k.shape[2]
    # Heads first: then S is a stack of H x N matrices, one for each query, without a copy.
    qh = scratch.take("q", heads, images, queries, width).copy_(q.transpose(0, 1))
    kh = scratch.take("k", heads, images, keys, width).copy_(k.transpose(0, 1))
    kh.sub_(kh.mean(2, keepdim=True))
    s = scratch.take("s", heads, images * queries, keys)
    torch.bmm(qh.flatten(0, 1), kh.flatten(0, 1).transpose(1, 2), out=s.view(-1, queries, keys))
    places = end_positions(s)
    low, high = s.gather(2, places).permute(2, 0, 1).contiguous()
    by_row = s.transpose(0, 1)
    gram = torch.bmm(by_row, by_row.transpose(1, 2))
    distance, by_gram, by_ends = compare(gram.permute(1, 2, 0).contiguous(), low, high, keys)
    if gradient:
        ds = scratch.take("ds", images * queries, heads, keys)
        torch.bmm(by_gram.permute(2, 0, 1).contiguous(), by_row, out=ds)
        ds.scatter_add_(2, places.transpose(0, 1), by_ends.transpose(0, 1))
        ds = ds.view(images, queries, heads, keys)
        dq = scratch.take("gradient", *qh.shape)
        for head in range(heads):
            torch.bmm(ds[:, :, head], kh[head], out=dq[head])
        gradient[0].copy_(dq.transpose(0, 1))
        dk = scratch.take("gradient", *kh.shape)
        for head in range(heads):
            torch.bmm(ds[:, :, head].transpose(1, 2), qh[head], out=dk[head])
        gradient[1].copy_(dk.sub_(dk.mean(2, keepdim=True)).transpose(0, 1))
    return distance.view(images, queries).sum(1)


def layer_distance(q: Tensor, k: Tensor, scratch: Scratch, gradient: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """:func:`one_chunk` over all images, B of them, as many at a time as the chunk allows: (B,)."""
    chunk = CHUNK_CPU if q.device.type == "cpu" else CHUNK
    step = max(1, chunk // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = [slice(start, start + step) for start in range(0, q.shape[0], step)]
    into = [(gradient[0][part], gradient[1][part]) if gradient else None for part in parts]
    return torch.cat([one_chunk(q[part], k[part], scratch, to) for part, to in zip(parts, into, strict=True)])


class LayerLoss(torch.autograd.Function):
    """The loss of one layer, a scalar, whose gradient is ready before the backward pass asks for it.

    ``skipped`` tokens at the start of q and of k take no part; dq and dk are kept in the type of q and k, unscaled.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, skipped: tuple[int, int], scratch: Scratch) -> Tensor:
        used = q[:, :, skipped[0] :], k[:, :, skipped[1] :]
        gradient = None
        if any(ctx.needs_input_grad):
            whole = torch.empty_like(q), torch.empty_like(k)
            for tensor, prefix in zip(whole, skipped, strict=True):
                tensor[:, :, :prefix].zero_()
            ctx.save_for_backward(*whole)
            gradient = whole[0][:, :, skipped[0] :], whole[1][:, :, skipped[1] :]
        distance = layer_distance(*used, scratch, gradient)
        ctx.terms = terms = distance.numel() * used[0].shape[2] * q.shape[1] ** 2
        return distance.sum() / terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dq, dk = ctx.saved_tensors
        return dq * (outer / ctx.terms), dk * (outer / ctx.terms), None, None


def accumulator(tensor: Tensor) -> Scratch:
    """Scratch in the type the arithmetic is done in: float64 for float64, float32 for anything shorter."""
    return Scratch(torch.promote_types(tensor.dtype, torch.float32), tensor.device)


def head_similarity_loss(
    queries: Sequence[Tensor], keys: Sequence[Tensor], prefix_tokens: int, rows: Tensor | None = None
) -> Tensor:
    """Mean over layers of the mean over images, queries and ordered pairs of heads of 1 - SSIM^2.

    Args:
        queries, keys: for each layer (B, H, T, d), bf16, float32 or float64; a Swin layer with B = images x windows.
        prefix_tokens: class and register tokens, first in T, to leave out. rows: positions of the queries to use,
            counted without the prefix, (M,) int64; all when None. The keys are never sampled.

    Returns:
        A scalar in 0..1, float32, or float64 for float64 inputs. It can be differentiated once.
    """
    scratch = accumulator(queries[0])
    losses = []
    with torch.autocast(device_type=queries[0].device.type, enabled=False):
        for q, k in zip(queries, keys, strict=True):
            if q.shape[1] == 1:  # alike with itself; what the arithmetic leaves of that is no signal
                losses.append(0 * q.sum(dtype=scratch.empty.dtype))
                continue
            skipped = (prefix_tokens if rows is None else 0, prefix_tokens)
            chosen = q if rows is None else q.index_select(2, rows + prefix_tokens)
            losses.append(LayerLoss.apply(chosen, k, skipped, scratch))
        return torch.stack(losses).mean()


@torch.no_grad()
def head_similarity(q: Tensor, k: Tensor, prefix_tokens: int) -> Tensor:
    """Mean SSIM^2 of one layer's heads for each image, without a gradient: (B,) in 0..1 from (B, H, T, d) twice."""
    q, k = q[:, :, prefix_tokens:], k[:, :, prefix_tokens:]
    with torch.autocast(device_type=q.device.type, enabled=False):
        return 1 - layer_distance(q, k, accumulator(q)) / (q.shape[2] * q.shape[1] ** 2)

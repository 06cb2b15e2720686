"""Attention priors alignment (SPDFQ / SARDFQ, ICCV 2025): heads look where a random prior says.

Every layer and head of an image has a prior of its own, a mixture of up to five Gaussians on the token grid; the
class token's attention is drawn towards it in the deep half of the network, more strongly the deeper. The ranges of
the mixtures and the normalisation are not published: what is marked so below is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition
from torch import Tensor

from calib.network import Network
from calib.quant.families import block_names, is_swin

SIGMA = (1.0, 5.0)  # patches of a 14 x 14 grid (reconstruction)


@dataclass(frozen=True)
class Layout:
    """Where one block's tokens lie: the grid, and for Swin its window and shift (each rows, columns)."""

    heads: int
    grid: tuple[int, int]
    window: tuple[int, int] | None = None
    shift: tuple[int, int] = (0, 0)


def layouts(model: Network) -> list[Layout]:
    """One entry a block, in execution order."""
    found = []
    for name in block_names(model):
        block: Network = model.get_submodule(name)
        if is_swin(model):
            grid, window, shift = (
                tuple(pair) for pair in (block.input_resolution, block.window_size, block.shift_size)
            )
            found.append(Layout(block.attn.num_heads, grid, window, shift))
        else:
            found.append(Layout(block.attn.num_heads, tuple(model.patch_embed.grid_size)))
    return found


def deep_half(blocks: int) -> range:
    """Indices (from 0) of the blocks the loss covers: l = L/2 .. L of the paper's count from 1."""
    return range(max(blocks // 2, 1) - 1, blocks)


def draw_priors(layout: Sequence[Layout], images: int, most: int, generator: torch.Generator) -> list[Tensor]:
    """Random priors in the order of the taps: per block (B', H, N) float32, each map summing to 1.

    For Swin the mixture lies on the whole grid and is cut into the block's windows, B' = images * windows, each
    normalised (reconstruction).

    Reconstruction: the number of components is uniform in 1..``most`` (5 published), means uniform over the grid, the
    two standard deviations U(1, 5) patches of a 14 x 14 grid each, weights uniform and normalised; drawn once.
    """
    return [_windows(_mixtures(part, images, most, generator), part) for part in layout]


def _mixtures(layout: Layout, images: int, most: int, generator: torch.Generator) -> Tensor:
    """(B, H, rows, columns), each map summing to 1."""
    shape = (images, layout.heads, most)
    count = torch.randint(1, most + 1, (*shape[:2], 1), generator=generator)
    weight = torch.rand(shape, generator=generator) * (torch.arange(most) < count)
    axes = []
    for cells in layout.grid:
        mean = torch.rand((*shape, 1), generator=generator)
        sigma = (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * torch.rand((*shape, 1), generator=generator)) / 14
        centre = (torch.arange(cells) + 0.5) / cells
        axes.append(torch.exp(-0.5 * ((centre - mean) / sigma).square()))
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)
    down, right = (axis / axis.sum(-1, keepdim=True).clamp_min(1e-12) for axis in axes)
    maps = torch.einsum("bhk,bhkr,bhkc->bhrc", weight, down, right)
    return maps / maps.sum((2, 3), keepdim=True).clamp_min(1e-12)


def _windows(maps: Tensor, layout: Layout) -> Tensor:
    if layout.window is None:
        return maps.flatten(2)
    x = maps.permute(0, 2, 3, 1)
    x = torch.roll(x, shifts=(-layout.shift[0], -layout.shift[1]), dims=(1, 2))
    high, wide = layout.window
    x = F.pad(x, (0, 0, 0, -x.shape[2] % wide, 0, -x.shape[1] % high))
    parts = window_partition(x, layout.window).flatten(1, 2).transpose(1, 2) + 1e-8
    return parts / parts.sum(-1, keepdim=True)


def attention_prior_loss(profiles: Sequence[Tensor], priors: Sequence[Tensor], blocks: int) -> Tensor:
    """L_APA = sum over the deep half of (l / L) sum over heads of MSE(A, prior); a scalar, mean over images.

    Args:
        profiles: (B', H, N) attention each patch receives, for the blocks of :func:`deep_half` in order.
        priors: the same shapes, each map summing to 1; scaled here to the mass the profile has (reconstruction: the
            class token keeps a share of its attention for itself). blocks: L, of the whole network.
    """
    terms = []
    for index, profile, prior in zip(deep_half(blocks), profiles, priors, strict=True):
        mass = profile.detach().sum(-1, keepdim=True)
        error = (profile - prior.to(profile) * mass).square().mean(-1).mean(0).sum()
        terms.append((index + 1) / blocks * error)
    return torch.stack(terms).sum()

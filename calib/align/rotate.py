"""Rotate a network from the inside: the same function, with weights and activations that are easier to round.

Whatever a transformer writes to its residual stream, its blocks read through LayerNorm and a linear layer. Turn all
that is written by an orthogonal Q, and let the readers turn it back: nothing is computed that was not before, but a
channel's outliers are spread over all channels, so that tensors look Gaussian (QuaRot, NeurIPS 2024, section 4;
SpinQuant, ICLR 2025, section 3.1, where Q is R1). Those papers turn RMSNorm networks. LayerNorm takes the mean off
first, and commutes with every Q that leaves the all-ones vector where it is: then neither mean nor variance of a token
changes, and LayerNorm stays LayerNorm. Its gamma and beta go into the layer behind it, and come back as what folding
finds there (``reparam``).

The values of a head are turned too (SpinQuant's R2), since the layer behind attention can turn them back.

Reconstruction: Q is drawn at random, uniform among those that keep the mean. A stream that begins behind a LayerNorm of
its own, as Swin's first and those of networks with ``norm_pre``, stays as it is: there is no layer to put Q into.
docs/decisions/0034-rotation-and-massive-layers.md has what it gains.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.network import Network
from calib.quant.families import block_names, is_swin, segments
from calib.quant.surgery import fold_layer_scale


@dataclass(frozen=True)
class Stream:
    """A residual stream, by module path.

    Attributes:
        width: its channels. writers: layers whose output is added to it. parameters: added to it as they are.
        readers: (LayerNorm or None, layer); the layer reads one token or several side by side.
    """

    width: int
    writers: tuple[str, ...]
    parameters: tuple[str, ...]
    readers: tuple[tuple[str | None, str], ...]


def streams(model: Network) -> list[Stream]:
    """The residual streams of a timm ViT, DeiT or Swin that can be turned."""
    if not is_swin(model):
        given = [name for name in ("cls_token", "reg_token", "pos_embed") if getattr(model, name, None) is not None]
        whole = _stream(model, "patch_embed.proj", block_names(model), tuple(given))
        return [whole] if isinstance(model.norm_pre, nn.Identity) else []
    merged = [i for i, stage in enumerate(model.layers) if not isinstance(stage.downsample, nn.Identity)]
    return [
        _stream(
            model,
            f"layers.{i}.downsample.reduction",
            [f"layers.{i}.blocks.{j}" for j in range(len(model.layers[i].blocks))],
            (),
        )
        for i in merged
    ]


def _stream(model: Network, first: str, blocks: list[str], parameters: tuple[str, ...]) -> Stream:
    """What ``first`` begins and ``blocks`` add to, up to and with whatever reads it behind the last block."""
    writers = [first] + [f"{block}.{layer}" for block in blocks for layer in ("attn.proj", "mlp.fc2")]
    pieces = list(segments(model))
    names = [piece.name for piece in pieces]
    inside = [site for piece in pieces if piece.name in blocks for site in piece.sites if site.norm]
    (behind,) = pieces[names.index(blocks[-1]) + 1].sites
    readers = tuple((site.norm, site.name) for site in [*inside, behind])
    width = model.get_submodule(blocks[0]).norm1.normalized_shape[0]
    return Stream(width, tuple(writers), parameters, readers)


@torch.no_grad()
def rotated(model: Network, seed: int) -> Network:
    """A copy of ``model`` that computes the same, its streams and the values of its heads turned at random.

    LayerScale is moved into the layer before it, and layers behind a LayerNorm have a bias in the copy. Matrices are
    drawn and multiplied in float64 on the CPU, so that one seed gives one network.

    Args:
        model: timm ViT, DeiT or Swin, float32. seed: of the rotations.
    """
    turned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name in block_names(turned):
        fold_layer_scale(turned.get_submodule(name))
    for stream in streams(turned):
        _turn_stream(turned, stream, mean_keeping_rotation(stream.width, generator))
    for name in block_names(turned):
        _turn_values(turned.get_submodule(name).attn, generator)
    return turned


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal (width, width) float64 matrix, uniform among all.

    QR of a Gaussian matrix, R's diagonal made positive (Mezzadri, Notices of the AMS 54(5), 2007, section 5).
    """
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def mean_keeping_rotation(width: int, generator: torch.Generator) -> Tensor:
    """The same among those with Q 1 = 1, which leave the mean and the variance of every vector as they were."""
    across = torch.full((width,), width**-0.5, dtype=torch.float64)
    across[0] -= 1  # the Householder reflection that exchanges the first axis and the direction of 1
    mirror = torch.eye(width, dtype=torch.float64) - 2 * torch.outer(across, across) / across.square().sum()
    rest = random_rotation(width - 1, generator)
    return mirror @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), rest) @ mirror


def _turn_stream(model: Network, stream: Stream, rotation: Tensor) -> None:
    for name in stream.writers:
        layer = model.get_submodule(name)
        weight = _exact(layer.weight)
        _assign(layer.weight, rotation @ weight.flatten(1))
        if layer.bias is not None:
            _assign(layer.bias, rotation @ _exact(layer.bias))
    for name in stream.parameters:
        parameter = model.get_parameter(name)
        _assign(parameter, _exact(parameter) @ rotation.T)
    for norm, name in stream.readers:
        layer = model.get_submodule(name)
        if norm is not None:
            _empty_norm(model.get_submodule(norm), layer)
        beside = layer.in_features // stream.width  # Swin merges four tokens
        _assign(layer.weight, _exact(layer.weight) @ torch.block_diag(*[rotation] * beside).T)


def _empty_norm(norm: nn.LayerNorm, layer: nn.Linear) -> None:
    """Move gamma and beta into the layer behind."""
    weight = _exact(layer.weight)
    bias = weight @ _exact(norm.bias)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.empty_like(layer.weight[:, 0]), requires_grad=layer.weight.requires_grad)
    else:
        bias += _exact(layer.bias)
    _assign(layer.bias, bias)
    _assign(layer.weight, weight * _exact(norm.weight))
    norm.weight.fill_(1.0)
    norm.bias.zero_()


def _turn_values(attention: Network, generator: torch.Generator) -> None:
    """Turn the value rows of qkv, head by head, and the columns of the layer that reads them."""
    width = attention.proj.in_features
    heads = [random_rotation(width // attention.num_heads, generator) for _ in range(attention.num_heads)]
    rotation = torch.block_diag(*heads)
    rows = slice(2 * width, 3 * width)
    _assign(attention.qkv.weight[rows], rotation @ _exact(attention.qkv.weight[rows]))
    if attention.qkv.bias is not None:
        _assign(attention.qkv.bias[rows], rotation @ _exact(attention.qkv.bias[rows]))
    _assign(attention.proj.weight, _exact(attention.proj.weight) @ rotation.T)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _assign(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value.reshape(tensor.shape))

"""Where a network's linear layers are, what feeds each, and how to run it piece by piece (ViT, DeiT, Swin)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from calib.network import Network


@dataclass(frozen=True)
class Site:
    """One linear layer.

    Attributes:
        name: timm module path. kind: embed, qkv, proj, fc1, fc2, reduction or head.
        norm: the LayerNorm whose output it reads, if that is where a scale and shift can fold.
        values: the qkv layer whose value rows feed it through attention (rows of softmax sum to 1).
        gelu: True when it reads GELU's output.
    """

    name: str
    kind: str
    norm: str | None = None
    values: str | None = None
    gelu: bool = False


@dataclass(frozen=True)
class Segment:
    """A piece of the network: ``run`` maps the previous piece's output to this one's. Pieces run in order."""

    name: str
    run: Callable[[Tensor], Tensor]
    sites: tuple[Site, ...]


def is_swin(model: Network) -> bool:
    """Whether the network is timm's SwinTransformer (the other family is VisionTransformer: ViT and DeiT)."""
    return isinstance(model, SwinTransformer)


def reads_class_token(model: Network) -> bool:
    """Whether the head reads the class token, the first, and no other; else it reads a mean over tokens."""
    return not is_swin(model) and model.global_pool == "token"


def block_names(model: Network) -> list[str]:
    """Module paths of the transformer blocks, in execution order."""
    if is_swin(model):
        return [f"layers.{i}.blocks.{j}" for i, stage in enumerate(model.layers) for j in range(len(stage.blocks))]
    return [f"blocks.{i}" for i in range(len(model.blocks))]


def _block_sites(block: str) -> tuple[Site, ...]:
    return (
        Site(f"{block}.attn.qkv", "qkv", norm=f"{block}.norm1"),
        Site(f"{block}.attn.proj", "proj", values=f"{block}.attn.qkv"),
        Site(f"{block}.mlp.fc1", "fc1", norm=f"{block}.norm2"),
        Site(f"{block}.mlp.fc2", "fc2", gelu=True),
    )


def _stem(model: Network) -> Callable[[Tensor], Tensor]:
    if is_swin(model):
        return cast(Callable[[Tensor], Tensor], model.patch_embed)
    return lambda images: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def segments(model: Network) -> Iterator[Segment]:
    """The network in pieces: stem, blocks (and Swin's patch mergings), tail. Chained, they are its forward pass."""
    yield Segment("stem", _stem(model), (Site("patch_embed.proj", "embed"),))
    modules = dict(model.named_modules())
    if is_swin(model):
        for i, stage in enumerate(model.layers):
            merge = f"layers.{i}.downsample"
            if not isinstance(stage.downsample, nn.Identity):
                yield Segment(merge, stage.downsample, (Site(f"{merge}.reduction", "reduction", norm=f"{merge}.norm"),))
            for j in range(len(stage.blocks)):
                block = f"layers.{i}.blocks.{j}"
                yield Segment(block, modules[block], _block_sites(block))
        head = Site("head.fc", "head", norm="norm")
    else:
        for block in block_names(model):
            yield Segment(block, modules[block], _block_sites(block))
        norm = "norm" if not isinstance(model.norm, nn.Identity) else "fc_norm"
        head = Site("head", "head", norm=norm if not isinstance(modules[norm], nn.Identity) else None)
    yield Segment("tail", lambda x: model.forward_head(model.norm(x)), (head,))


def sites(model: Network) -> list[Site]:
    """Every linear layer, in execution order."""
    return [site for segment in segments(model) for site in segment.sites]

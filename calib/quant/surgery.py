"""Turn a timm network into one whose every linear layer is a QuantLinear, without changing what it computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from calib.errors import IntvitError
from calib.network import Network
from calib.quant.attention import OPERANDS, QuantAttention, QuantProduct
from calib.quant.families import block_names, is_swin, reads_class_token, sites
from calib.quant.integer_only import install, integer_parts
from calib.quant.linear import QuantLinear, QuantPatchConv
from calib.quant.quantizer import ActQuantizer
from calib.quant.residual import AFTER, BEFORE, QuantResidual, install_residual, point
from calib.scheme import GROUPS, Scheme

EMBED_BITS = 8
CLOSED = -1e4  # added to a score to rule it out; float16 holds it (docs/decisions/0041-closed-scores.md)
_Part = TypeVar("_Part", bound=nn.Module)


def prepare(
    model: Network,
    scheme: Scheme,
    weight_bits: Mapping[str, int] | None = None,
    act_bits: Mapping[str, int] | None = None,
) -> Network:
    """A copy of ``model`` ready to be calibrated; still float, equal to the original up to rounding.

    Linear layers and the patch embedding become QuantLinear; the attention scale moves into the query rows; LayerScale
    moves into the layer before it; attention runs as explicit products (no fused kernel), so that it equals the graph;
    what Swin's shifted windows may not see weighs exactly 0; with ``+attn8`` attention becomes QuantAttention; with
    ``+res8`` the residual stream has a quantizer at every point; with ``+int`` everything between the layers has an
    integer form.

    Args:
        weight_bits, act_bits: of single layers, by name, where they are not the scheme's.

    Raises:
        IntvitError: the network uses a timm feature that cannot be lowered; every such feature is named. Or see
            ``require_groups``.
    """
    refuse_unknown_parts(model)
    require_groups(model, scheme)
    student = copy.deepcopy(model).eval().requires_grad_(False)
    for site in sites(student):
        layer = student.get_submodule(site.name)
        if site.kind == "embed":
            read = scheme.act_bits if scheme.float_activations else EMBED_BITS
            replacement: QuantLinear = QuantPatchConv(layer, EMBED_BITS, read)
        else:
            bits = (weight_bits or {}).get(site.name, scheme.weight_bits)
            read = (act_bits or {}).get(site.name, scheme.act_bits)
            replacement = QuantLinear(layer.weight, layer.bias, bits, read, scheme.group)
        student.set_submodule(site.name, replacement)
    for name in block_names(student):
        block = student.get_submodule(name)
        _fold_block(block)
        if scheme.attn_bits is not None and not scheme.integer:
            block.attn = QuantAttention(block.attn, scheme.attn_bits)
    if scheme.residual_bits is not None:
        install_residual(student, scheme.residual_bits)
    if scheme.integer:
        install(student)
    return student.to(next(model.parameters()).device)  # what was put in was made on the CPU


def _fold_block(block: Network) -> None:
    attn = block.attn
    attn.fused_attn = False
    rows = attn.qkv.out_features // 3
    attn.qkv.weight[:rows] *= attn.scale
    attn.qkv.bias[:rows] *= attn.scale
    attn.scale = 1.0
    if getattr(block, "attn_mask", None) is not None:
        block.attn_mask.masked_fill_(block.attn_mask < 0, CLOSED)
    fold_layer_scale(block)


def fold_layer_scale(block: Network) -> None:
    """Move LayerScale into the layer before it, in place, where the block has any."""
    for scale_name, layer in (("ls1", block.attn.proj), ("ls2", block.mlp.fc2)):
        layer_scale = getattr(block, scale_name, nn.Identity())
        if not isinstance(layer_scale, nn.Identity):
            layer.weight *= layer_scale.gamma[:, None]
            if layer.bias is not None:
                layer.bias *= layer_scale.gamma
            setattr(block, scale_name, nn.Identity())


def linears(model: Network) -> dict[str, QuantLinear]:
    """The quantizable layers of a prepared network by site name, in execution order."""
    return {site.name: model.get_submodule(site.name) for site in sites(model)}


def products(model: Network, under: str = "") -> dict[str, QuantProduct]:
    """The attention products of a prepared network by module path, in execution order; none without ``+attn8``.

    Args:
        under: a module path, to have those below it alone.
    """
    return _parts(model, QuantProduct, under)


def residuals(model: Network, under: str = "") -> dict[str, QuantResidual]:
    """The points of a prepared network's residual stream by module path, in execution order; none without ``+res8``.

    Args:
        under: see ``products``.
    """
    return _parts(model, QuantResidual, under)


def _parts(model: Network, kind: type[_Part], under: str) -> dict[str, _Part]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kind) and (not under or name.startswith(f"{under}."))
    }


def between_layers(model: Network, under: str = "") -> dict[str, QuantProduct | QuantResidual]:
    """Attention products and points of the residual stream: what has quantizers and is no layer; ``under`` as there."""
    return {**products(model, under), **residuals(model, under)}


def operands(name: str) -> tuple[str, str]:
    """The names of what product ``name`` multiplies: ``blocks.0.attn.qk`` to ``blocks.0.attn.query``, ``...key``."""
    attention, _, product = name.rpartition(".")
    left, right = OPERANDS[product]
    return f"{attention}.{left}", f"{attention}.{right}"


def quantizers(model: Network) -> dict[str, ActQuantizer]:
    """Every activation quantizer of a prepared network, in execution order, by layer, operand or point name."""
    found: dict[str, ActQuantizer] = {}
    for site in sites(model):
        layer: QuantLinear = model.get_submodule(site.name)
        if (before := point(model, site, BEFORE)) is not None:
            found[before[0]] = before[1].quant
        if layer.in_quant is not None:
            found[site.name] = layer.in_quant
        if site.kind == "qkv":
            for path, product in products(model, site.name.removesuffix(".qkv")).items():
                found |= dict(zip(operands(path), (product.left, product.right), strict=True))
        if (after := point(model, site, AFTER)) is not None:
            found[after[0]] = after[1].quant
    return found


def pooled(model: Network) -> frozenset[str]:
    """The layers, attention products, operands and points of the stream that matter for the class token alone.

    Where a ViT's head reads the class token, everything after the keys and values of the last block needs that row
    only: (..., T, K) may be cut to its first row in T. Empty for Swin and for networks that average over tokens.
    """
    if not reads_class_token(model):
        return frozenset()
    last = block_names(model)[-1]
    attn, mlp = f"{last}.attn", f"{last}.mlp"
    parts = [f"{attn}.{part}" for part in ("proj", *OPERANDS, *(left for left, _ in OPERANDS.values()))]
    return frozenset([*parts, f"{mlp}.fc1", f"{mlp}.fc2", *(f"{last}.{which}" for which in AFTER.values())])


def set_quantized(model: Network, on: bool) -> None:
    """Switch every layer, attention product, point and integer module to its integer (True) or float (False) form."""
    for part in (*linears(model).values(), *between_layers(model).values(), *integer_parts(model)):
        part.quantized = on


def refuse_unknown_parts(model: Network) -> None:
    """Check that every part of ``model`` (a timm ViT or Swin) is one that can be quantized and lowered.

    Raises:
        IntvitError: it is not; every such part is named. Or it has no classifier and is supported otherwise.
    """
    problems = _swin_problems(model) if is_swin(model) else _vit_problems(model)
    if type(model.patch_embed) is not PatchEmbed:
        problems.append(f"patch_embed is {type(model.patch_embed).__name__}, not PatchEmbed")
    for name in block_names(model):
        block = model.get_submodule(name)
        if type(block) not in (Block, SwinTransformerBlock) or type(block.mlp) is not Mlp:
            problems.append(f"{name} is {type(block).__name__} with {type(getattr(block, 'mlp', None)).__name__}")
            continue
        if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
            problems.append(f"{name}.mlp.act is {block.mlp.act}, not exact GELU")
        if not isinstance(getattr(block.mlp, "norm", nn.Identity()), nn.Identity):
            problems.append(f"{name}.mlp.norm")
        for part in ("norm1", "norm2"):
            norm = getattr(block, part)
            if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
                problems.append(f"{name}.{part} is {type(norm).__name__}, not LayerNorm with weight and bias")
    headless = ""
    for site in sites(model) if not problems else ():
        layer = model.get_submodule(site.name)
        if site.kind == "head" and isinstance(layer, nn.Identity):
            headless = site.name
        elif site.kind == "embed":
            if not isinstance(layer, nn.Conv2d) or layer.stride != layer.kernel_size or layer.padding != (0, 0):
                problems.append(f"{site.name} is not a convolution with stride equal to its kernel")
        elif not isinstance(layer, nn.Linear):
            problems.append(f"{site.name} is {type(layer).__name__}, not Linear")
    if problems:
        raise IntvitError(
            "this network uses parts that cannot be lowered",
            where=", ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else ""),
            why="plain ViT, DeiT and Swin blocks of timm are supported",
            next="choose another timm tag, or ask for this part in an issue",
        )
    if headless:
        raise IntvitError(
            "this network has no classifier",
            where=headless,
            why="its published weights end in features, and no checkpoint that was given brings a classifier",
            next=f"give --checkpoint weights that were fine-tuned for classes, with {headless}.weight and "
            f"{headless}.bias, or choose a timm tag that has classes",
        )


def require_groups(model: Network, scheme: Scheme) -> None:
    """Check that the scheme's groups divide the input channels of every layer of ``model`` (a timm ViT or Swin).

    Raises:
        IntvitError: they do not divide those of some; the first is named, and what sizes would do.
    """
    widths = {site.name: model.get_submodule(site.name).in_features for site in sites(model) if site.kind != "embed"}
    odd = [name for name, width in widths.items() if scheme.group is not None and width % scheme.group]
    if odd:
        fitting = [f"+g{size}" for size in GROUPS if not any(width % size for width in widths.values())]
        raise IntvitError(
            f"groups of {scheme.group} do not divide the {widths[odd[0]]} input channels of {odd[0]}",
            where=f"--bits {scheme}",
            why=f"it is so in {len(odd)} of {len(widths)} layers, and engines take blocks of one size only",
            next=f"sizes that fit: {', '.join(fitting)}" if fitting else f"build --bits {replace(scheme, group=None)}",
        )


def _vit_problems(model: Network) -> list[str]:
    problems = []
    if model.pos_embed is None:
        problems.append("no position embedding")
    if model.dynamic_img_size:
        problems.append("dynamic_img_size")
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        problems.append(f"global_pool={model.global_pool!r}")
    if model.global_pool == "avg" and model.pool_include_prefix:
        problems.append("pool_include_prefix")
    if not isinstance(getattr(model.patch_embed, "norm", nn.Identity()), nn.Identity):
        problems.append("patch_embed.norm")
    for name in block_names(model):
        attn = getattr(model.get_submodule(name), "attn", None)
        if attn is None or type(attn).__name__ != "Attention":
            return [*problems, f"{name}.attn is {type(attn).__name__}"]
        for part in ("q_norm", "k_norm", "norm"):
            if not isinstance(getattr(attn, part), nn.Identity):
                problems.append(f"{name}.attn.{part}")
        if getattr(attn, "gate", None) is not None:
            problems.append(f"{name}.attn.gate")
    return problems


def _swin_problems(model: Network) -> list[str]:
    problems = []
    for name in block_names(model):
        block = model.get_submodule(name)
        if any(side % window for side, window in zip(block.input_resolution, block.window_size, strict=True)):
            problems.append(f"{name}: {block.input_resolution} tokens do not divide into windows {block.window_size}")
        if getattr(block, "dynamic_mask", False):
            problems.append(f"{name}.dynamic_mask")
    for i, stage in enumerate(model.layers):
        if i and not isinstance(stage.downsample, nn.Identity):
            tokens = model.layers[i - 1].output_resolution
            if any(side % 2 for side in tokens):
                problems.append(f"layers.{i}.downsample: {tokens} tokens do not merge two by two")
    if model.head.global_pool.pool_type != "avg":
        problems.append(f"global_pool={model.head.global_pool.pool_type!r}")
    return problems


@torch.no_grad()
def float_difference(original: Network, prepared: Network, images: torch.Tensor) -> float:
    """Largest relative difference of the logits of two float networks on ``images`` (B, 3, H, W)."""
    reference, other = original(images), prepared(images)
    return float((reference - other).abs().max() / reference.abs().max().clamp_min(1e-12))

"""Surgery: the prepared network computes what the original does, and what cannot be taken is refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from torch import nn

from calib.errors import IntvitError
from calib.models import LoadedModel
from calib.quant.linear import QuantLinear, QuantPatchConv
from calib.quant.surgery import (
    CLOSED,
    EMBED_BITS,
    float_difference,
    linears,
    operands,
    pooled,
    prepare,
    products,
    quantizers,
    refuse_unknown_parts,
    set_quantized,
)
from calib.scheme import parse
from tests.calib.networks import (
    SWIN_SIDE,
    VARIANTS,
    VIT_SIDE,
    complete,
    difference,
    pictures,
    tiny_swin,
    tiny_vit,
    trained,
)

W4A8 = parse("w4a8")


@torch.no_grad()
def unchanged(model: Any, side: int) -> None:
    images = pictures(3, side)
    before, state = model(images), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert float(before.std(0).min()) > 1e-3
    student = prepare(model, W4A8)
    assert difference(before, student(images)) < 1e-4
    assert float_difference(model, student, images) < 1e-4
    assert torch.equal(model(images), before)  # the original is left as it was
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not [m for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d) and type(m) is not QuantLinear]
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_digits_keep_their_logits(digits: LoadedModel) -> None:
    unchanged(digits.module, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vits_keep_their_logits(variant: str) -> None:
    unchanged(tiny_vit(**VARIANTS[variant]), VIT_SIDE)


@pytest.mark.parametrize("kwargs", [{}, {"qkv_bias": False}, {"window_size": 14}], ids=str)
def test_swins_keep_their_logits(kwargs: dict[str, Any]) -> None:
    unchanged(tiny_swin(**kwargs), SWIN_SIDE)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8+int"])
def test_what_a_shifted_window_may_not_see_is_out_of_reach(scheme: str) -> None:
    module = tiny_swin()
    before, after = (
        [block.attn_mask for block in network.modules() if getattr(block, "attn_mask", None) is not None]
        for network in (module, prepare(module, parse(scheme)))
    )
    assert len(before) == len(after) > 0
    for theirs, ours in zip(before, after, strict=True):
        assert set(theirs.unique().tolist()) == {0.0, -100.0} and torch.equal(ours, theirs.sign() * -CLOSED)


def test_the_scale_of_attention_and_layer_scale_are_in_the_weights() -> None:
    model = tiny_vit(init_values=0.1)
    student = prepare(model, W4A8)
    old, new = model.blocks[1], student.blocks[1]
    assert new.attn.scale == 1.0 and not new.attn.fused_attn
    assert torch.allclose(new.attn.qkv.weight[:32], old.attn.qkv.weight[:32] * old.attn.scale)
    assert torch.equal(new.attn.qkv.weight[32:], old.attn.qkv.weight[32:])
    assert isinstance(new.ls1, nn.Identity) and isinstance(new.ls2, nn.Identity)
    assert torch.allclose(new.mlp.fc2.weight, old.mlp.fc2.weight * old.ls2.gamma[:, None])
    assert torch.allclose(new.attn.proj.bias, old.attn.proj.bias * old.ls1.gamma)


@pytest.mark.parametrize(
    ("scheme", "weight_bits", "act_bits", "embed_act_bits"),
    [("w4a8", 4, 8, EMBED_BITS), ("w3a4", 3, 4, EMBED_BITS), ("w4a16", 4, 16, 16)],
)
def test_widths(scheme: str, weight_bits: int, act_bits: int, embed_act_bits: int) -> None:
    layers = linears(prepare(tiny_vit(), parse(scheme)))
    embed = layers.pop("patch_embed.proj")
    assert isinstance(embed, QuantPatchConv)
    assert (embed.weight_bits, embed.act_bits) == (EMBED_BITS, embed_act_bits)
    assert {(layer.weight_bits, layer.act_bits) for layer in layers.values()} == {(weight_bits, act_bits)}
    assert {layer.in_quant is None for layer in layers.values()} == {act_bits == 16}


def test_switching_all_layers() -> None:
    student = prepare(tiny_swin(), W4A8)
    for on in (True, False):
        set_quantized(student, on)
        assert {layer.quantized for layer in linears(student).values()} == {on}


def test_order_of_layers() -> None:
    names = list(linears(prepare(tiny_vit(), W4A8)))
    assert names[:3] == ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj"] and names[-1] == "head"
    assert len(names) == 2 + 4 * 2


def test_attention_products_are_there_where_the_scheme_says_so() -> None:
    assert products(prepare(tiny_swin(), W4A8)) == {}
    student = prepare(tiny_swin(), parse("w3a4+attn8"))
    names = list(products(student))
    assert len(names) == 2 * 4 and names[:2] == ["layers.0.blocks.0.attn.qk", "layers.0.blocks.0.attn.pv"]
    assert list(products(student, "layers.1.blocks.0")) == ["layers.1.blocks.0.attn.qk", "layers.1.blocks.0.attn.pv"]
    assert {product.left.bits for product in products(student).values()} == {8}
    for on in (True, False):
        set_quantized(student, on)
        assert {product.quantized for product in products(student).values()} == {on}


def test_order_of_quantizers() -> None:
    student = prepare(tiny_vit(), parse("w4a4+attn8"))
    found, block = quantizers(student), "blocks.0.attn"
    parts = ["qkv", "query", "key", "softmax", "value", "proj"]
    assert list(found)[:7] == ["patch_embed.proj", *(f"{block}.{part}" for part in parts)]
    assert [found[f"{block}.{part}"].bits for part in parts] == [4, 8, 8, 8, 8, 4]
    assert found[f"{block}.key"] is student.blocks[0].attn.qk.right
    assert operands(f"{block}.pv") == (f"{block}.softmax", f"{block}.value")
    assert list(quantizers(prepare(tiny_vit(), W4A8))) == list(linears(student))
    weight_only = quantizers(prepare(tiny_vit(), parse("w4a16+attn8")))
    assert len(weight_only) == 2 * 4 and all(".attn." in name for name in weight_only)


def test_groups_are_of_every_layer_but_the_patch_embedding() -> None:
    layers = linears(prepare(tiny_vit(), parse("w4a16+g16")))
    for name, layer in layers.items():
        grouped = name != "patch_embed.proj"
        assert layer.group == (16 if grouped else None)
        wide = (layer.out_features, layer.in_features // 16) if grouped else (layer.out_features,)
        assert layer.weight_scale.shape == wide


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(IntvitError, match="groups of 128 do not divide the 32 input channels of ") as caught:
        prepare(tiny_vit(), parse("w4a16+g128"))
    error = complete(caught.value)
    assert error.what.endswith("blocks.0.attn.qkv") and error.next == "sizes that fit: +g16, +g32"
    with pytest.raises(IntvitError, match="24 input channels") as caught:
        prepare(tiny_vit(embed_dim=24), parse("w3a16+g16"))
    assert complete(caught.value).next == "build --bits w3a16"


def refusal(model: Any) -> IntvitError:
    with pytest.raises(IntvitError, match="parts that cannot be lowered") as caught:
        prepare(model, W4A8)
    return complete(caught.value)


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"qk_norm": True}, "blocks.0.attn.q_norm, blocks.0.attn.k_norm"),
    ({"scale_attn_norm": True}, "blocks.0.attn.norm"),
    ({"scale_mlp_norm": True}, "blocks.1.mlp.norm"),
    ({"global_pool": "map"}, "global_pool='map'"),
    ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
    ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
    (
        {"act_layer": partial(nn.GELU, approximate="tanh")},
        "blocks.0.mlp.act is GELU(approximate='tanh'), not exact GELU",
    ),
    ({"act_layer": nn.ReLU}, "blocks.0.mlp.act is ReLU()"),
    ({"act_layer": "gelu_tanh"}, "not exact GELU"),
    ({"norm_layer": "rmsnorm"}, "blocks.0.norm1 is RmsNorm"),
    (
        {"norm_layer": partial(nn.LayerNorm, bias=False)},
        "blocks.0.norm1 is LayerNorm, not LayerNorm with weight and bias",
    ),
    ({"pos_embed": "none"}, "no position embedding"),
    ({"dynamic_img_size": True}, "dynamic_img_size"),
    ({"embed_norm_layer": nn.LayerNorm}, "patch_embed.norm"),
    ({"block_fn": ResPostBlock}, "blocks.0 is ResPostBlock"),
    ({"block_fn": ParallelScalingBlock}, "blocks.0 is ParallelScalingBlock"),
    ({"block_fn": ParallelThingsBlock}, "blocks.0 is ParallelThingsBlock"),
    ({"mlp_layer": GluMlp}, "blocks.0 is Block with GluMlp"),
    ({"mlp_layer": SwiGLU}, "blocks.0 is Block with SwiGLU"),
]


@pytest.mark.parametrize(("kwargs", "part"), UNSUPPORTED, ids=[part for _, part in UNSUPPORTED])
def test_vit_parts_that_are_refused(kwargs: dict[str, Any], part: str) -> None:
    assert part in refusal(tiny_vit(**kwargs)).where


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"img_size": 48}, "layers.0.blocks.0: (12, 12) tokens do not divide into windows (7, 7)"),
        ({"img_size": 28}, "layers.1.downsample: (7, 7) tokens do not merge two by two"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"norm_layer": partial(nn.LayerNorm, bias=False)}, "layers.0.blocks.0.norm1"),
    ],
    ids=str,
)
def test_swin_parts_that_are_refused(kwargs: dict[str, Any], part: str) -> None:
    plain = {"img_size": 56, "window_size": 7, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    assert part in refusal(SwinTransformer(**{**plain, **kwargs}).eval()).where


@pytest.mark.parametrize(("network", "head"), [(tiny_vit, "head"), (tiny_swin, "head.fc")])
def test_a_network_without_a_classifier_is_refused_for_that_alone(network: Any, head: str) -> None:
    with pytest.raises(IntvitError, match="no classifier") as caught:
        prepare(network(num_classes=0), W4A8)
    error = complete(caught.value)
    assert error.where == head and f"{head}.weight and {head}.bias" in error.next
    assert "mlp.act" in refusal(tiny_vit(num_classes=0, act_layer=nn.ReLU)).where


def test_overlapping_patches_are_refused() -> None:
    model = tiny_vit()
    model.patch_embed.proj = nn.Conv2d(3, 32, 8, 4, padding=2)
    assert "patch_embed.proj is not a convolution with stride equal to its kernel" in refusal(trained(model)).where


def test_many_problems_are_counted() -> None:
    where = refusal(tiny_vit(depth=3, qk_norm=True)).where
    assert where.endswith(" and 2 more") and where.count("blocks.") == 4


def test_supported_networks_pass() -> None:
    refuse_unknown_parts(tiny_vit())
    refuse_unknown_parts(tiny_swin())


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8+attn8"])
def test_what_matters_for_the_class_token_alone(scheme: str) -> None:
    """Noise on every other row of what those layers make leaves the logits as they are; elsewhere it does not."""
    network = prepare(trained(tiny_vit()), parse(scheme))
    images = pictures(2, VIT_SIDE)
    wanted, alone = network(images), pooled(network)
    last = max(int(name.split(".")[1]) for name in linears(network) if name.startswith("blocks."))
    assert {name for name in linears(network) if name in alone} == {
        f"blocks.{last}.{part}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2")
    }

    def disturb(_module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        changed = out.clone()
        changed[..., 1:, :] += 1
        return changed

    blocks = {name: layer for name, layer in {**linears(network), **products(network)}.items() if "blocks." in name}
    for name, layer in blocks.items():
        hook = layer.register_forward_hook(disturb)
        assert torch.equal(network(images), wanted) == (name in alone), name
        hook.remove()


def test_networks_that_average_over_tokens_need_them_all() -> None:
    assert pooled(prepare(tiny_swin(), parse("w8a8"))) == frozenset()
    assert pooled(prepare(tiny_vit(global_pool="avg"), parse("w8a8"))) == frozenset()

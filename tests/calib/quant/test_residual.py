"""The residual stream in 8 bits: every point does what its definition says, and the blocks are timm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calib.quant.residual import QuantResidual, stream_of
from calib.quant.surgery import pooled, prepare, quantizers, residuals, set_quantized
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VARIANTS, VIT_SIDE, difference, pictures, tiny_swin, tiny_vit

W8A8 = parse("w8a8+res8")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 12), st.floats(1e-4, 10), st.lists(st.integers(-3, 9), min_size=1), st.integers()
)
def test_a_point_equals_integers_times_step_times_unit(
    tokens: int, channels: int, step: float, powers: list[int], seed: int
) -> None:
    """One channel of one token at a time, in float32; and so does a stream that is kept in the units, to the bit."""
    point = QuantResidual(channels, 8)
    point.unit.copy_(2.0 ** torch.tensor((powers * channels)[:channels]))
    point.quant.set(step)
    x = point.unit * torch.randn(2, tokens, channels, generator=torch.Generator().manual_seed(seed % 1000))
    assert point(x) is x  # float until it is switched
    point.quantized = True
    made = point(x)
    scale = np.float32(step)
    for place in np.ndindex(*x.shape):
        unit = np.float32(point.unit[place[-1]])
        level = max(-128, min(127, int(np.rint(np.float32(x[place]) / unit / scale))))
        assert made[place].item() == np.float32(level) * scale * unit
    kept = point.quant(x / point.unit) * point.quant.scale
    assert torch.equal((made + x) / point.unit, kept + x / point.unit)


@torch.no_grad()
@pytest.mark.parametrize("variant", [*VARIANTS, "swin"])
def test_prepared_networks_keep_their_logits(variant: str) -> None:
    model = tiny_swin() if variant == "swin" else tiny_vit(**VARIANTS[variant])
    images = pictures(3, SWIN_SIDE if variant == "swin" else VIT_SIDE)
    student = prepare(model, parse("w8a8+attn8+res8"))
    assert difference(model(images), student(images)) < 1e-4
    assert not any(isinstance(part, QuantResidual) for part in model.modules())


def test_points_are_in_execution_order_and_where_a_stream_begins() -> None:
    assert residuals(prepare(tiny_vit(), parse("w8a8"))) == {}
    ends = ["residual_attn", "residual_mlp"]
    vit = prepare(tiny_vit(), W8A8)
    assert list(residuals(vit)) == [
        *(f"blocks.0.{which}" for which in ["residual_in", *ends]),
        *(f"blocks.1.{which}" for which in ends),
    ]
    swin = prepare(tiny_swin(), W8A8)
    wanted = [f"layers.{i}.blocks.{j}.{which}" for i in range(2) for j in range(2)
              for which in (*["residual_in"][j:], *ends)]  # fmt: skip
    assert list(residuals(swin)) == wanted
    assert list(residuals(swin, "layers.1.blocks.1")) == wanted[-2:]
    assert {stream_of(name) for name in residuals(vit)} == {""}
    assert {stream_of(name) for name in wanted} == {"layers.0.", "layers.1."}
    for on in (True, False):
        set_quantized(swin, on)
        assert {point.quantized for point in residuals(swin).values()} == {on}


def test_order_of_quantizers() -> None:
    found = quantizers(prepare(tiny_vit(), parse("w4a4+attn8+res8")))
    attention = [f"attn.{part}" for part in ("qkv", "query", "key", "softmax", "value", "proj")]
    block = ["residual_in", *attention, "residual_attn", "mlp.fc1", "mlp.fc2", "residual_mlp"]
    names = ["patch_embed.proj", *(f"blocks.0.{part}" for part in block)]
    assert list(found)[: len(names) + 1] == [*names, "blocks.1.attn.qkv"]
    assert {found[name].bits for name in names if "residual" in name} == {8}
    weight_only = quantizers(prepare(tiny_vit(), parse("w4a16+res8")))
    assert len(weight_only) == 5 and all(".residual_" in name for name in weight_only)


def test_points_behind_the_last_attention_matter_for_the_class_token_alone() -> None:
    ends = {f"blocks.1.{which}" for which in ("residual_attn", "residual_mlp")}
    assert {name for name in pooled(prepare(tiny_vit(), W8A8)) if "residual" in name} == ends


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_every_norm_reads_the_integers_of_the_point_before_it(make: Any) -> None:
    """Swin's merging and the last norm too: whole multiples of the step, in the unit of each channel."""
    student = prepare(make(), W8A8)
    for seed, point in enumerate(residuals(student).values()):
        point.unit.copy_(2.0 ** torch.randint(-1, 3, point.unit.shape, generator=torch.Generator().manual_seed(seed)))
        point.quant.set(0.07)
        point.quantized = True
    read: dict[str, Tensor] = {}
    before: dict[str, QuantResidual] = {}
    last: list[QuantResidual] = []

    def seen(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            read[name], before[name] = args[0], last[-1]

        return hook

    for name, part in student.named_modules():
        if isinstance(part, QuantResidual):
            part.register_forward_hook(lambda module, args, out: last.append(module))
        elif isinstance(part, nn.LayerNorm) and name != "patch_embed.norm":
            part.register_forward_pre_hook(seen(name))
    student(pictures(2, VIT_SIDE if make is tiny_vit else SWIN_SIDE))
    assert len(read) == (2 * 2 + 1 if make is tiny_vit else 2 * 4 + 2)
    for name, x in read.items():
        unit = before[name].unit
        steps = x / unit.repeat(x.shape[-1] // len(unit)) / 0.07
        assert float((steps - steps.round()).abs().max()) < 1e-3, name
        assert float(steps.abs().max()) > 5

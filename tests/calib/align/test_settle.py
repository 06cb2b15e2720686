"""What ``+int`` fixes after calibration: the residual stream stays on its grid and within its bound, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from calib.align.config import CalibrateConfig, DistillConfig, LayerConfig, ReconstructConfig
from calib.align.settle import branch_limit
from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.quant import integers
from calib.quant.families import block_names
from calib.quant.rescale import Rescale
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, spec_of, tiny_swin, tiny_vit

NETWORKS = {"vit": (tiny_vit, VIT_SIDE), "swin": (tiny_swin, SWIN_SIDE)}


def made(network: str, config: CalibrateConfig | None = None, scheme: str = "w8a8+int") -> tuple[CalibratedModel, Any]:
    build, side = NETWORKS[network]
    model = build()
    return calibrate(model, spec_of(model, side), parse(scheme), pictures(8, side), config), model


def stream(model: CalibratedModel, images: Tensor) -> Tensor:
    """Every block's output as multiples of the residual step, one row."""
    found: list[Tensor] = []
    hooks = [
        model.module.get_submodule(name).register_forward_hook(lambda _m, _a, out: found.append(out.flatten()))
        for name in block_names(model.module)
    ]
    model.logits(images)
    for hook in hooks:
        hook.remove()
    return torch.cat(found).double() / model.module.get_buffer("residual_step").double()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loudness", [1.0, 1e4])
def test_the_residual_stream_is_whole_and_bounded(network: str, loudness: float) -> None:
    model, _ = made(network)
    levels = stream(model, pictures(4, NETWORKS[network][1], seed=5) * loudness)
    assert torch.equal(levels, levels.round())
    assert float(levels.abs().max()) <= integers.MOST_RESIDUAL
    blocks = len(block_names(model.module))
    assert (2 * blocks + 2) * branch_limit(model.module) <= integers.MOST_RESIDUAL
    assert float(levels.abs().max()) > branch_limit(model.module) / 16  # the room is used


@pytest.mark.parametrize("network", NETWORKS)
def test_it_computes_something_like_the_float_network(network: str) -> None:
    model, original = made(network)
    plain, _ = made(network, scheme="w8a8+attn8")
    images = pictures(8, NETWORKS[network][1], seed=5)
    wanted = original(images)
    apart = [float((each.logits(images) - wanted).square().sum() / wanted.square().sum()) for each in (plain, model)]
    assert apart[1] < max(4 * apart[0], 1e-3)  # 30 dB
    assert all(part.settled for part in model.module.modules() if isinstance(part, Rescale))


STEPS = {
    "reconstruct": CalibrateConfig(LayerConfig(rounding="gptq"), reconstruct=ReconstructConfig(iterations=3), batch=8),
    "distill": CalibrateConfig(distill=DistillConfig(epochs=1, frozen_epochs=0, augment=False), batch=8),
}


@pytest.mark.parametrize("step", STEPS)
def test_steps_with_gradients_leave_integers_that_fit_the_final_numbers(step: str) -> None:
    model, _ = made("vit", STEPS[step])
    layer, attn = model.module.get_submodule("blocks.1.mlp.fc2"), model.module.get_submodule("blocks.1.attn")
    unit = layer.in_quant.scale.double() * layer.weight_scale.double() / model.module.get_buffer("residual_step")
    multiplier, shift = integers.dyadic(unit.double())
    assert torch.equal(layer.rescale.multiplier, multiplier) and int(layer.rescale.shift) == shift
    assert float(attn.mix.step) == float(attn.proj.in_quant.scale)

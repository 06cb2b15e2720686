"""Calibration on a GPU, as far as it can be tried without one: no step mixes tensors of two devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from calib.calibrate import calibrate
from calib.recipes import recipe
from calib.scheme import parse
from tests.calib.pretend import Pretended, pretended_cuda
from tests.toolchain.nets import noise, spec_of, swin, vit


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with pretended_cuda():
        there = torch.arange(6.0).reshape(2, 3).to("cuda")
        assert isinstance(there, Pretended) and there.device.type == "cuda"
        assert torch.equal((there @ there.T).to("cpu"), torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
        assert isinstance(torch.ones(2, device=there.device) + torch.tensor(1.0), Pretended)  # of no dimension: may mix
        with pytest.raises(RuntimeError, match="on cuda and on the CPU"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        assert type(torch.ones(3) * 2) is torch.Tensor


@pytest.mark.parametrize("network", [vit, pytest.param(swin, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["w4a8", "w8a8+int", "w8a8+attn8+res8", "w4a16+g16"])
def test_a_network_on_the_gpu_is_calibrated_there(network: Callable[[], nn.Module], scheme: str) -> None:
    module = network()
    spec = spec_of(module)
    with pretended_cuda():
        images = noise(spec, 6).to("cuda")
        made = calibrate(module.to("cuda"), spec, parse(scheme), images, recipe("best", "fast").align)
        kept = {**dict(made.module.named_parameters()), **dict(made.module.named_buffers())}
        assert {name for name, value in kept.items() if value.device.type != "cuda"} == set()

"""Synthesis and calibration on a GPU, as far as they can be tried without one: no step mixes two devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from calib.align.config import FORMS
from calib.calibrate import CalibrateConfig, calibrate
from calib.recipes import recipe
from calib.scheme import parse
from calib.synthesis.engine import synthesise
from calib.synthesis.methods import METHODS, find, with_iterations
from tests.calib.pretend import Pretended, pretended_cuda
from tests.toolchain.nets import noise, spec_of, swin, vit


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with pretended_cuda():
        there = torch.arange(6.0).reshape(2, 3).to("cuda")
        assert isinstance(there, Pretended) and there.device.type == "cuda"
        assert torch.equal((there @ there.T).held, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
        assert isinstance(torch.ones(2, device=there.device) + torch.tensor(1.0), Pretended)  # of no dimension: may mix
        with pytest.raises(RuntimeError, match="on cuda and on the CPU"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        assert type(torch.ones(3) * 2) is torch.Tensor


@pytest.mark.parametrize("network", [vit, pytest.param(swin, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("scheme", ["w4a8", "w8a8+int", "w8a8+attn8+res8", "w4a16+g16"])
def test_a_network_on_the_gpu_is_calibrated_there(network: Callable[[], nn.Module], scheme: str) -> None:
    assert_all_there(network(), scheme, recipe("best", "fast").align)


def assert_all_there(module: nn.Module, scheme: str, config: CalibrateConfig) -> None:
    spec = spec_of(module)
    with pretended_cuda():
        made = calibrate(module.to("cuda"), spec, parse(scheme), noise(spec, 6).to("cuda"), config)
        kept = {**dict(made.module.named_parameters()), **dict(made.module.named_buffers())}
        assert {name for name, value in kept.items() if value.device.type != "cuda"} == set()


@pytest.mark.parametrize(("method", "scheme"), [("best", "w4a4"), ("psaq", "w4a8"), ("dfq-vit", "w4a8")])
def test_so_do_reconstruction_and_published_recipes(method: str, scheme: str) -> None:
    config = recipe(method).align
    if config.reconstruct is not None:
        config = replace(config, reconstruct=replace(config.reconstruct, iterations=3))
    assert_all_there(vit(), scheme, config)


@pytest.mark.parametrize("augment", [True, False])
def test_so_does_distillation(augment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = torch.random.fork_rng  # it would ask the driver for the GPU's state
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork([]))
    config = recipe("mimiq").align
    assert config.distill is not None
    distill = replace(config.distill, epochs=1, augment=augment, batch=3)
    assert_all_there(vit(), "w4a4", replace(config, distill=distill))


@pytest.mark.parametrize("form", FORMS)
def test_so_does_every_form_of_the_correction(form: str) -> None:
    assert_all_there(vit(), "w4a8", recipe("dfq-vit", correction=form).align)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["best", "mimiq"])
def test_gradients_through_swin(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork([]))
    config = recipe(method).align
    if config.reconstruct is not None:
        config = replace(config, reconstruct=replace(config.reconstruct, iterations=2))
    if config.distill is not None:
        config = replace(config, distill=replace(config.distill, epochs=1, batch=3))
    assert_all_there(swin(), "w4a4", config)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "procedural"])
def test_images_are_made_there(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 34, 1 << 34))
    config = replace(find(method), images=4)
    config = with_iterations(config, 2) if config.iterations else config
    spec = spec_of(vit())
    here = synthesise(vit(), spec, config, 0, "cpu")
    with pretended_cuda():
        there = synthesise(vit(), spec, config, 0, "cuda")
    images = getattr(there.images, "held", there.images)
    assert images.shape == here.images.shape and torch.isfinite(images).all()
    assert torch.equal(there.labels, here.labels), "what is drawn does not depend on the device"

"""A calibrated model is stored and read back without a bit of difference, and its taps are what its layers read."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calib.align.config import CalibrateConfig, LayerConfig
from calib.calibrate import calibrate
from calib.calibrated import CONFIG, WEIGHTS, CalibratedModel
from calib.models import LoadedModel, ModelSpec
from calib.quant.linear import patches
from calib.quant.quantizer import quantize
from calib.quant.surgery import operands, products, residuals, set_quantized
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, pictures, spec_of, tiny_swin


def same(one: CalibratedModel, two: CalibratedModel, images: Tensor) -> bool:
    taps, others = one.taps(images), two.taps(images)
    assert taps.keys() == others.keys()
    equal = all(torch.equal(taps[name], others[name]) for name in taps)
    return equal and torch.equal(one.logits(images), two.logits(images))


def round_trip(made: CalibratedModel, folder: Path) -> CalibratedModel:
    made.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CONFIG])
    return CalibratedModel.load(folder)


def test_round_trip(calibrated: CalibratedModel, tmp_path: Path) -> None:
    images = pictures(3, 32, seed=5)
    found = round_trip(calibrated, tmp_path)
    assert same(calibrated, found, images)
    assert (found.spec, found.scheme, found.report) == (calibrated.spec, calibrated.scheme, calibrated.report)
    one, two = calibrated.module.state_dict(), found.module.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def test_factors_after_gelu_are_kept_where_they_are_and_only_there(calibrated: CalibratedModel, tmp_path: Path) -> None:
    """One fc2 with a factor, one without."""
    made = replace(calibrated, module=copy.deepcopy(calibrated.module))
    layers = made.layers()
    layers["blocks.0.mlp.fc2"].premul = torch.rand(384, generator=torch.Generator().manual_seed(0)) + 0.5
    layers["blocks.1.mlp.fc2"].premul = None
    found = round_trip(made, tmp_path)
    assert found.layers()["blocks.0.mlp.fc2"].premul is not None
    assert found.layers()["blocks.1.mlp.fc2"].premul is None
    assert same(made, found, pictures(2, 32))
    assert not same(calibrated, found, pictures(2, 32))


@pytest.mark.parametrize("scheme", ["w4a16", "w3a16+g32", "w3a4", "w4a8+attn8", "w4a8+attn8+res8"])
def test_other_schemes(digits: LoadedModel, noise: Tensor, tmp_path: Path, scheme: str) -> None:
    made = calibrate(digits.module, digits.spec, parse(scheme), noise, CalibrateConfig(LayerConfig(rows=64)))
    found = round_trip(made, tmp_path)
    assert same(made, found, pictures(2, 32))
    assert str(found.scheme) == scheme
    if scheme == "w4a16":
        assert made.taps(pictures(2, 32)) == {}


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8+attn8", "w4a8+res8"])
def test_swin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    model = tiny_swin()
    made = calibrate(
        model, spec_of(model, SWIN_SIDE), parse(scheme), pictures(2, SWIN_SIDE), CalibrateConfig(LayerConfig(rows=64))
    )
    monkeypatch.setattr(ModelSpec, "build", lambda self: tiny_swin(seed=8))
    assert same(made, round_trip(made, tmp_path), pictures(2, SWIN_SIDE, seed=3))


def test_same_model_same_bytes(calibrated: CalibratedModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    calibrated.save(tmp_path / "a")
    CalibratedModel.load(tmp_path / "a").save(tmp_path / "b")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = json.loads((tmp_path / "a" / CONFIG).read_text("utf-8"))
    assert config["scheme"] == "w8a8" and config["spec"]["name"] == "vit_digits"


def test_taps_are_the_integers_at_every_quantizer(calibrated: CalibratedModel) -> None:
    images = pictures(2, 32)
    inputs: dict[str, Tensor] = {}
    layers = calibrated.layers()
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    taps = calibrated.taps(images)
    for hook in hooks:
        hook.remove()
    assert list(taps) == list(layers)
    for name, layer in layers.items():
        x = patches(inputs[name], (4, 4)) if name == "patch_embed.proj" else inputs[name]
        x = x if layer.premul is None else x * layer.premul
        assert layer.in_quant is not None and taps[name].dtype == torch.int8
        assert torch.equal(taps[name].float(), quantize(x, layer.in_quant.scale, layer.in_quant.zero_point, 8)), name
    assert all(not layer.in_quant._forward_hooks for layer in layers.values() if layer.in_quant is not None)


def test_taps_of_attention_products_are_their_operands_integers(digits: LoadedModel, noise: Tensor) -> None:
    made = calibrate(digits.module, digits.spec, parse("w8a8+attn8"), noise, CalibrateConfig(LayerConfig(rows=64)))
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        product.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args))
        for name, product in products(made.module).items()
    ]
    taps = made.taps(pictures(2, 32))
    for hook in hooks:
        hook.remove()
    assert list(taps) == list(made.quantizers()) and len(taps) == len(made.layers()) + 4 * 3
    for name, product in products(made.module).items():
        left, right = inputs[name]
        left = left / left.amax(-1, keepdim=True) if name.endswith(".pv") else left
        for operand, x, quantizer in zip(operands(name), (left, right), (product.left, product.right), strict=True):
            assert taps[operand].dtype == torch.int8 and taps[operand].shape == x.shape
            assert torch.equal(taps[operand].float(), quantize(x, quantizer.scale, 0, 8)), operand
            assert int(taps[operand].amax()) > 100 and not quantizer._forward_hooks


def test_taps_of_the_residual_stream_are_its_integers(digits: LoadedModel, noise: Tensor) -> None:
    made = calibrate(digits.module, digits.spec, parse("w8a8+res8"), noise, CalibrateConfig(LayerConfig(rows=64)))
    inputs: dict[str, Tensor] = {}
    hooks = [
        point.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0]))
        for name, point in residuals(made.module).items()
    ]
    taps = made.taps(pictures(2, 32))
    for hook in hooks:
        hook.remove()
    assert list(taps) == list(made.quantizers()) and len(inputs) == 2 * 3 + 1
    for name, point in residuals(made.module).items():
        assert taps[name].dtype == torch.int8 and taps[name].shape == inputs[name].shape
        assert torch.equal(taps[name].float(), quantize(inputs[name] / point.unit, point.quant.scale, 0, 8)), name
        assert int(taps[name].amax()) > 50 and not point.quant._forward_hooks


def test_reading_taps_and_logits_switches_the_integers_on(calibrated: CalibratedModel) -> None:
    images = pictures(5, 32)
    reference = calibrated.logits(images)
    set_quantized(calibrated.module, False)
    with torch.no_grad():
        assert not torch.equal(calibrated.module(images), reference)
    assert torch.equal(calibrated.logits(images), reference)
    set_quantized(calibrated.module, False)
    calibrated.taps(images)
    with torch.no_grad():
        assert torch.equal(calibrated.module(images), reference)


def test_hooks_are_gone_after_an_error(calibrated: CalibratedModel) -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        calibrated.taps(torch.zeros(1, 3, 9, 9))
    assert all(
        not layer.in_quant._forward_hooks for layer in calibrated.layers().values() if layer.in_quant is not None
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "renamed"])
def test_damaged_files_do_not_load(calibrated: CalibratedModel, tmp_path: Path, damage: str) -> None:
    calibrated.save(tmp_path)
    path = tmp_path / WEIGHTS
    if damage == "missing":
        path.unlink()
    else:
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] if damage == "truncated" else raw.replace(b"blocks.2.", b"blocks.7."))
    with pytest.raises(Exception, match=r"(?i)no such file|incomplete|missing key|invalid"):
        CalibratedModel.load(tmp_path)

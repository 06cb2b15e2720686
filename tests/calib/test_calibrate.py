"""Calibration end to end on small networks: sound numbers, every quantizer set, the same bytes every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calib.align.config import CalibrateConfig, CorrectionConfig, LayerConfig, ReconstructConfig
from calib.calibrate import Teacher, calibrate, evenly
from calib.calibrated import CalibratedModel
from calib.errors import IntvitError
from calib.models import LoadedModel
from calib.quant.families import segments, sites
from calib.quant.grid import weight_grid
from calib.quant.quantizer import levels
from calib.quant.surgery import prepare, products, residuals
from calib.recipes import PUBLISHED, recipe
from calib.scheme import parse
from tests.calib.networks import (
    SWIN_SIDE,
    VARIANTS,
    VIT_SIDE,
    complete,
    pictures,
    spec_of,
    sqnr_db,
    tiny_swin,
    tiny_vit,
)

NONE = CorrectionConfig("none")
FEW = CalibrateConfig(LayerConfig(rows=256), fold_rows=256, batch=4)


def quick(model: Any, side: int, scheme: str, images: Tensor | None = None, **options: Any) -> CalibratedModel:
    images = pictures(8, side) if images is None else images
    whole = {key: options.pop(key) for key in ("fold", "reconstruct", "layer_images", "seed") if key in options}
    config = replace(FEW, layer=replace(FEW.layer, **options), **whole)
    return calibrate(model, spec_of(model, side), parse(scheme), images, config)


def quality(model: Any, side: int, made: CalibratedModel) -> float:
    """Of the logits of the images it was calibrated with."""
    images = pictures(8, side)
    with torch.no_grad():
        return sqnr_db(model(images), made.logits(images))


@torch.no_grad()
def test_digits_from_noise_stay_close_to_float(digits: LoadedModel, noise: Tensor, calibrated: CalibratedModel) -> None:
    assert sqnr_db(digits.module(noise), calibrated.logits(noise)) > 32
    fresh = pictures(16, 32, seed=9).clamp(-1, 1)
    assert sqnr_db(digits.module(fresh), calibrated.logits(fresh)) > 20


def sound(made: CalibratedModel) -> None:
    """Every number is set, finite and within its limits."""
    for name, layer in made.layers().items():
        grid = weight_grid(layer.weight_bits)
        assert grid.low <= int(layer.weight_q.min()) and int(layer.weight_q.max()) <= grid.high, name
        assert torch.equal(layer.weight_q.float(), grid.nearest(layer.weight_q.float())), name
        assert int(layer.weight_q.abs().amax(1).min()) >= max(1, grid.high // 2), name
        assert torch.isfinite(layer.weight_scale).all() and (layer.weight_scale > 0).all(), name
        assert not torch.equal(layer.weight_scale, torch.ones_like(layer.weight_scale)), name
        rounded = layer.weight_q * layer.weight_scale[:, None]
        assert sqnr_db(layer.weight, rounded) > {8: 28, 4: 12, 3: 7}[layer.weight_bits], name
        assert torch.isfinite(layer.bias).all(), name
        assert layer.quantized, name
        if made.scheme.float_activations:
            assert layer.in_quant is None, name
            continue
        assert layer.in_quant is not None and float(layer.in_quant.scale) != 1.0, name
        low, high = levels(layer.act_bits)
        zero = int(layer.in_quant.zero_point)
        assert low <= zero <= high, name
        assert zero == 0 or name.endswith("fc2"), name
        assert layer.premul is None or (name.endswith("fc2") and (layer.premul > 0).all()), name


def test_every_number_is_set(calibrated: CalibratedModel) -> None:
    sound(calibrated)
    for i in range(3):  # GELU's range is lopsided
        after_gelu = calibrated.layers()[f"blocks.{i}.mlp.fc2"].in_quant
        assert after_gelu is not None and int(after_gelu.zero_point) < -32


def test_the_patch_embedding_covers_the_whole_range(calibrated: CalibratedModel, noise: Tensor) -> None:
    embed = calibrated.layers()["patch_embed.proj"]
    assert embed.in_quant is not None
    assert float(embed.in_quant.scale) == pytest.approx(float(noise.abs().max()) / 127, rel=1e-6)


def test_attention_products_are_quantized_after_qkv_and_before_proj(digits: LoadedModel, noise: Tensor) -> None:
    made = calibrate(digits.module, digits.spec, parse("w8a8+attn8"), noise)
    sound(made)
    rounded = [row["layer"] for row in made.report if row["step"] == "quantize"]
    assert rounded[:5] == ["patch_embed.proj", *(f"blocks.0.attn.{part}" for part in ("qkv", "qk", "pv", "proj"))]
    for name, product in products(made.module).items():
        (row,) = [row for row in made.report if row["layer"] == name]
        assert row["scales"] == [float(product.left.scale), float(product.right.scale)]
        assert product.quantized and int(product.left.zero_point) == int(product.right.zero_point) == 0
        assert row["error"] < 2e-3
    assert sqnr_db(digits.module(noise), made.logits(noise)) > 25


@pytest.mark.parametrize("method", ["best", *PUBLISHED])
def test_every_recipe_takes_the_points_of_the_stream_in_execution_order(method: str) -> None:
    """Also those that learn: the network is calibrated as usual, and each point on what the integers before it make."""
    model, images = tiny_vit(), pictures(16, VIT_SIDE)
    config = recipe(method, "default").align
    learning = config.reconstruct and replace(config.reconstruct, iterations=2, batch=4)
    teaching = config.distill and replace(config.distill, epochs=1, frozen_epochs=0)
    short = replace(config, reconstruct=learning, distill=teaching)
    made = calibrate(model, spec_of(model, VIT_SIDE), parse("w8a8+res8"), images, short)
    sound(made)
    rounded = [row["layer"] for row in made.report if row["step"] == "quantize"]
    assert rounded == list(made.quantizers())
    for name, point in residuals(made.module).items():
        (row,) = [row for row in made.report if row.get("layer") == name]
        assert point.quantized and 0 < row["error"] < 2e-3 and int(point.quant.zero_point) == 0
        assert learning or row["scale"] == float(point.quant.scale)
    assert sqnr_db(model(images), made.logits(images)) > 20


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_units_keep_a_massive_channel_from_taking_the_levels_of_the_others(
    make: Any, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained ViTs have such channels; one step for all of them is chance on ViT-Ti (docs/decisions/0030)."""
    model = make()
    begins = model.patch_embed.norm if make is tiny_swin else model.patch_embed.proj
    begins.bias[3] += 50
    with_units = quality(model, side, quick(model, side, "w8a8+res8"))
    monkeypatch.setattr("calib.calibrate.set_units", lambda *_: None)
    assert with_units > quality(model, side, quick(model, side, "w8a8+res8")) + 5


def test_the_report_has_a_row_for_every_step(calibrated: CalibratedModel) -> None:
    folded = [row for row in calibrated.report if row["step"] == "reparameterise"]
    rounded = [row for row in calibrated.report if row["step"] == "quantize"]
    assert len(folded) + len(rounded) == len(calibrated.report)
    assert [row["layer"] for row in rounded] == list(calibrated.layers())
    assert [row["layer"] for row in folded] == [name for name in calibrated.layers() if name != "patch_embed.proj"]
    for row in rounded:
        assert row.keys() == {
            *("step", "layer", "weight_bits", "scale", "zero_point"),
            *("error", "correction", "error_uncorrected", "error_corrected", "rejected"),
        }
        assert row["weight_bits"] == 8 and 0 < row["error"] < 0.05
        assert (row["rejected"] == ["bias"]) == (row["error_corrected"] >= row["error_uncorrected"])
    assert json.loads(json.dumps(calibrated.report, allow_nan=False)) == calibrated.report


def state_bytes(made: CalibratedModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in made.module.state_dict().items()}


def test_two_runs_give_the_same_bytes(digits: LoadedModel, noise: Tensor, calibrated: CalibratedModel) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = calibrate(digits.module, digits.spec, parse("w8a8"), noise)
    assert state_bytes(again) == state_bytes(calibrated)
    assert again.report == calibrated.report
    assert torch.equal(torch.get_rng_state(), before)
    other = calibrate(digits.module, digits.spec, parse("w8a8"), noise, CalibrateConfig(LayerConfig(rows=200), seed=1))
    assert state_bytes(other) != state_bytes(calibrated)


def test_the_network_given_is_left_as_it_was(digits: LoadedModel, noise: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in digits.module.state_dict().items()}
    calibrate(digits.module, digits.spec, parse("w4a4"), noise, FEW)
    assert all(torch.equal(before[name], tensor) for name, tensor in digits.module.state_dict().items())
    assert digits.module.blocks[0].attn.scale != 1.0


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w4a4", "w3a8"])
def test_schemes_on_swin(scheme: str) -> None:
    model = tiny_swin()
    made = quick(model, SWIN_SIDE, scheme)
    sound(made)
    assert quality(model, SWIN_SIDE, made) > {"w8a8": 42, "w4a16": 30, "w4a4": 24, "w3a8": 22}[scheme]


@pytest.mark.parametrize("scheme", ["w4a16", "w4a4", "w3a8"])
def test_schemes_on_digits(digits: LoadedModel, noise: Tensor, scheme: str) -> None:
    made = calibrate(digits.module, digits.spec, parse(scheme), noise, CalibrateConfig(LayerConfig(rows=256)))
    sound(made)
    with torch.no_grad():
        assert sqnr_db(digits.module(noise), made.logits(noise)) > {"w4a16": 20, "w4a4": 10, "w3a8": 12}[scheme]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_variants_of_vit(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    made = quick(model, VIT_SIDE, "w8a8")
    sound(made)
    assert quality(model, VIT_SIDE, made) > 27


def test_more_bits_are_better() -> None:
    model = tiny_vit()
    found = [
        quality(model, VIT_SIDE, quick(model, VIT_SIDE, scheme))
        for scheme in ("w2a4", "w2a8", "w3a8", "w4a8", "w6a8", "w8a8")
    ]
    assert found == sorted(found)


def outlying() -> Any:
    """A ViT whose first LayerNorm blows one channel up, as trained ones do."""
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].norm1.weight[3] *= 60
        model.blocks[0].attn.qkv.weight[:, 3] /= 60
    return model


def test_reparameterisation_and_bias_correction_can_be_left_out() -> None:
    model = outlying()
    whole = quick(model, VIT_SIDE, "w8a8")
    plain = quick(model, VIT_SIDE, "w8a8", fold="off", correction=NONE)
    assert {row["step"] for row in plain.report} == {"quantize"}
    assert not any("error_corrected" in row for row in plain.report)
    assert all(layer.premul is None for layer in plain.layers().values())
    reference = prepare(model, parse("w8a8"))
    for name, layer in plain.layers().items():
        original = reference.get_submodule(name)
        assert torch.equal(layer.weight, original.weight) and torch.equal(layer.bias, original.bias)
    assert quality(model, VIT_SIDE, whole) > quality(model, VIT_SIDE, plain) + 6


def test_bias_correction_takes_out_the_mean_error() -> None:
    model = tiny_vit()
    corrected, plain = quick(model, VIT_SIDE, "w3a8"), quick(model, VIT_SIDE, "w3a8", correction=NONE)
    images = pictures(32, VIT_SIDE)
    with torch.no_grad():
        errors = [(model(images) - made.logits(images)).mean(0).norm() for made in (corrected, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_a_published_shift_is_an_asymmetric_quantizers_zero_point(make: Any, side: int) -> None:
    """What LayerNorm gives less, the integer weights give back: ``W_q (x - c) + W_q c + b``."""
    model = make()
    config = replace(PUBLISHED["psaq"], layer=replace(PUBLISHED["psaq"].layer, rows=256), batch=4)
    made = calibrate(model, spec_of(model, side), parse("w3a8"), pictures(8, side), config).module
    seen = 0
    for site in sites(model):
        if site.kind in ("qkv", "fc1"):
            plain, layer = model.get_submodule(site.name), made.get_submodule(site.name)
            shift = model.get_submodule(site.norm).bias - made.get_submodule(site.norm).bias
            assert torch.allclose(shift, shift[0].expand_as(shift), atol=1e-5) and shift[0].abs() > 1e-3
            wanted = plain.bias + (layer.weight_q.float() * layer.weight_scale[:, None]) @ shift
            keys = len(wanted) // 3  # of qkv; queries hold the attention's scale, values the shift of proj
            chosen = slice(keys, 2 * keys) if site.kind == "qkv" else slice(None)
            assert torch.allclose(layer.bias[chosen], wanted[chosen], atol=1e-4)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("correction", ["none", "bias"])
def test_the_float_networks_activations_are_looked_up_where_something_aims_at_them(
    correction: str, noise: Tensor, digits: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    known = Teacher.layer_outputs

    def noted(self: Teacher, index: int, name: str, stream: Tensor, batch: int) -> Tensor:
        looked_up.append(name)
        return known(self, index, name, stream, batch)

    monkeypatch.setattr(Teacher, "layer_outputs", noted)
    calibrate(digits.module, digits.spec, parse("w8a8"), noise[:4], recipe("dfq-vit", correction=correction).align)
    aimed = [site.name for site in sites(digits.module) if site.kind != "qkv"]
    assert looked_up == ([] if correction == "none" else aimed)


def test_tokens_all_alike_is_another_calibration_and_no_fold_depends_on_it() -> None:
    model = tiny_vit()
    weighted, alike = (quick(model, VIT_SIDE, "w4a8", weight_tokens=on) for on in (True, False))
    assert state_bytes(weighted) != state_bytes(alike)
    first = [next(row for row in made.report if row["step"] == "reparameterise") for made in (weighted, alike)]
    assert first[0]["layer"] == first[1]["layer"] and first[0]["strength"] == first[1]["strength"]


def test_progress_names_the_pieces_in_order() -> None:
    model, seen = tiny_vit(), []
    calibrate(model, spec_of(model, VIT_SIDE), parse("w8a8"), pictures(2, VIT_SIDE), FEW, lambda *a: seen.append(a))
    names = [piece.name for piece in segments(model)]
    assert seen == [*((i, 4, name) for i, name in enumerate(names)), (4, 4, "")]
    assert names == ["stem", "blocks.0", "blocks.1", "tail"]


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (0, 3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 32), (2, 3, 32, 32, 1)], ids=str
)
def test_images_of_a_wrong_shape_are_refused(digits: LoadedModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(IntvitError, match="wrong shape") as caught:
        calibrate(digits.module, digits.spec, parse("w8a8"), torch.zeros(shape))
    error = complete(caught.value)
    assert error.where == str(shape) and "(B, 3, 32, 32)" in error.why


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(scheme: str, value: float) -> None:
    images = pictures(2, VIT_SIDE)
    images[1, 2, 3, 4] = value
    with pytest.raises(IntvitError, match="not finite"):
        quick(tiny_vit(), VIT_SIDE, scheme, images)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
@pytest.mark.parametrize(
    "name", ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.1.norm2", "blocks.1.mlp.fc1", "head"]
)
def test_activations_that_are_not_finite_are_refused_where_they_arise(scheme: str, name: str) -> None:
    model = tiny_vit()
    module = model.get_submodule(name)
    with torch.no_grad():
        (module.weight if "norm" in name else module.bias)[0] = float("nan")
    with pytest.raises(IntvitError, match="activations are not finite") as caught:
        quick(model, VIT_SIDE, scheme)
    piece = {"patch_embed.proj": "stem", "head": "tail"}.get(name, name[:8])
    assert caught.value.where.startswith(piece)
    assert "checkpoint" in caught.value.next


def test_weights_too_large_for_float32_are_refused() -> None:
    model = tiny_vit()
    model.blocks[0].mlp.fc2.weight.data *= 1e30
    model.blocks[0].mlp.fc1.weight.data *= 1e30
    with pytest.raises(IntvitError, match="not finite"):
        quick(model, VIT_SIDE, "w8a8")


def test_black_images_and_dead_layers_still_calibrate() -> None:
    """All images equal to the mean, and a head that was never trained: dull, but no reason to fail."""
    model = tiny_vit()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.blocks[1].mlp.fc1.weight.zero_()
    made = quick(model, VIT_SIDE, "w8a8", torch.zeros(2, 3, VIT_SIDE, VIT_SIDE))
    assert torch.isfinite(made.logits(torch.zeros(1, 3, VIT_SIDE, VIT_SIDE))).all()
    json.dumps(made.report, allow_nan=False)


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 8, [0, 1, 2]), (8, 4, [0, 2, 4, 6]), (7, 3, [0, 2, 4])])
def test_a_few_are_taken_evenly(count: int, most: int, expected: list[int]) -> None:
    assert evenly(count, most).tolist() == expected


def test_layer_steps_look_at_a_part_of_many_images() -> None:
    model, images = tiny_vit(), pictures(32, VIT_SIDE)
    every, few = quick(model, VIT_SIDE, "w4a8", images), quick(model, VIT_SIDE, "w4a8", images, layer_images=8)
    eight = quick(model, VIT_SIDE, "w4a8", images[::4])
    assert state_bytes(few) != state_bytes(every) and state_bytes(few) == state_bytes(eight)


def test_one_image_is_enough() -> None:
    model = tiny_vit()
    sound(quick(model, VIT_SIDE, "w8a8", pictures(1, VIT_SIDE)))


@torch.no_grad()
def test_the_suffix_is_the_rest_of_the_float_network() -> None:
    model, images = tiny_vit(), pictures(4, VIT_SIDE)
    reach = replace(FEW, reconstruct=ReconstructConfig(suffix=1))
    teacher = Teacher(prepare(model, parse("w4a8")), images, reach)
    names = [piece.name for piece in teacher.pieces]
    assert [teacher.suffix(i) is not None for i, _ in enumerate(names)] == [False, False, True, True]
    stream = images
    for piece in teacher.pieces[:3]:
        stream = piece.run(stream)
    last = teacher.suffix(2)
    assert last is not None
    assert torch.allclose(last.run(stream), model(images), atol=1e-4)
    assert torch.allclose(last.logits, model(images), atol=1e-4)
    assert Teacher(prepare(model, parse("w4a8")), images, FEW).suffix(2) is None


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_reconstruction_with_a_suffix_brings_the_logits_closer(make: Any, side: int) -> None:
    model, images = make(), pictures(32, side)
    plain = quick(model, side, "w3a8", images)
    taught = quick(model, side, "w3a8", images, reconstruct=ReconstructConfig(iterations=40, batch=8, suffix=2))
    sound_enough = [row["accepted"] for row in taught.report if row["step"] == "reconstruct"]
    assert sound_enough and any(sound_enough)
    fresh = pictures(16, side, seed=5)
    with torch.no_grad():
        assert sqnr_db(model(fresh), taught.logits(fresh)) > sqnr_db(model(fresh), plain.logits(fresh)) + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_it_is_as_good_and_can_be_kept(tmp_path: Path) -> None:
    model, images = tiny_vit(), pictures(32, VIT_SIDE)
    options = {"rounding": "gptq", "reconstruct": ReconstructConfig(iterations=20, batch=8, suffix=1)}
    here = quick(model, VIT_SIDE, "w4a8", images, **options)
    there = quick(model.to("cuda"), VIT_SIDE, "w4a8", images.to("cuda"), **options)
    there.save(tmp_path)
    there.module.cpu()
    model.cpu()
    sound(there)
    assert quality(model, VIT_SIDE, there) > quality(model, VIT_SIDE, here) - 3
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in there.module.state_dict().items())


@torch.no_grad()
def test_a_layer_with_massive_activations_keeps_eight_bits_unless_told_not_to() -> None:
    model = tiny_vit()
    model.blocks[1].mlp.fc1.weight[5] *= 200
    config = replace(FEW, massive=16.0)
    name = "blocks.1.mlp.fc2"
    wide, uniform = (
        calibrate(model, spec_of(model, VIT_SIDE), parse(scheme), pictures(8, VIT_SIDE), config)
        for scheme in ("w4a4", "w4a4+uniform")
    )
    widths = {key: (layer.weight_bits, layer.act_bits) for key, layer in wide.layers().items()}
    assert widths.pop(name) == (8, 8) and widths.pop("patch_embed.proj") == (8, 8)
    assert set(widths.values()) == {(4, 4)}
    assert wide.layers()[name].weight_q.abs().max() > 8
    assert [row["layer"] for row in wide.report if row["step"] == "widen"] == [name]
    assert uniform.layers()[name].act_bits == 4 and not any(row["step"] == "widen" for row in uniform.report)
    errors = [
        next(row["error"] for row in made.report if row["step"] == "quantize" and row["layer"] == name)
        for made in (wide, uniform)
    ]
    assert errors[0] < errors[1] / 10


@pytest.mark.parametrize(
    ("make", "side", "last"), [(tiny_vit, VIT_SIDE, "head"), (tiny_swin, SWIN_SIDE, "head.fc")], ids=["vit", "swin"]
)
@torch.no_grad()
def test_a_turned_network_is_calibrated_towards_the_one_given(make: Any, side: int, last: str) -> None:
    model = make()
    config = replace(FEW, rotate=True, reconstruct=ReconstructConfig(iterations=4, batch=4))
    made = calibrate(model, spec_of(model, side), parse("w6a8"), pictures(8, side), config)
    assert quality(model, side, made) > 25
    assert not torch.allclose(made.layers()[last].weight, model.get_submodule(last).weight, atol=0.1)
    plain = calibrate(model, spec_of(model, side), parse("w8a8"), pictures(8, side), replace(config, fold="off"))
    assert torch.allclose(plain.layers()[last].weight, model.get_submodule(last).weight, atol=1e-6)


@torch.no_grad()
def test_turning_tames_an_outlying_channel_at_few_bits() -> None:
    model = tiny_vit()
    for block in model.blocks:
        for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            norm.weight[3] *= 40
            norm.bias[3] *= 40
            layer.weight[:, 3] /= 40
    plain = replace(FEW, fold="off")
    turned = replace(plain, rotate=True)
    without, with_it = (
        calibrate(model, spec_of(model, VIT_SIDE), parse("w4a4"), pictures(8, VIT_SIDE), config)
        for config in (plain, turned)
    )
    assert quality(model, VIT_SIDE, with_it) > quality(model, VIT_SIDE, without) + 5

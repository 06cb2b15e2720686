"""What a build notes for the report, against the networks' own arithmetic written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.quant.families import block_names
from calib.quant.surgery import prepare, set_quantized
from calib.scheme import parse
from calib.synthesis.priors.attention_prior import Layout, layouts
from tests.toolchain.nets import calibrated, noise, spec_of, swin, vit
from toolchain.traces import MOST_STEPS, network_trace, received, traced, write_traces


def class_row(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) of the first block's class token over the patches, (B, H, N)."""
    x = module._pos_embed(module.patch_embed(images))
    attn, normed = module.blocks[0].attn, module.blocks[0].norm1(x)
    q, k, _ = attn.qkv(normed).reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (q[:, :, :1] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 1:]


@torch.no_grad()
def test_attention_of_a_class_token_and_the_networks_are_left_as_they_were() -> None:
    module = vit()
    images = noise(spec_of(module), 2)
    before = module(images)
    flags = [block.attn.fused_attn for block in module.blocks]
    with traced(module, [0]) as trace:
        assert torch.allclose(module(images), before, atol=1e-5)
    assert [block.attn.fused_attn for block in module.blocks] == flags
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert set(trace.attention) == {0} and len(trace.blocks) == 2
    found = received(trace.attention[0], module, layouts(module)[0], 2)
    assert found.shape == (4, 4, 6)
    torch.testing.assert_close(found.flatten(1), class_row(module, images)[0], atol=1e-5, rtol=1e-4)


def test_windows_are_put_back_where_they_were() -> None:
    """A map whose value is its patch's place, rolled and cut as Swin does it, comes back in order."""
    module, layout = swin(), Layout(heads=1, grid=(8, 12), window=(4, 4), shift=(2, 2))
    places = torch.arange(96.0).reshape(8, 12).roll((-2, -2), (0, 1))
    windows = places.reshape(2, 4, 3, 4).permute(0, 2, 1, 3).reshape(6, 1, 1, 16)
    rows = windows.expand(6, 1, 16, 16).repeat(3, 1, 1, 1)  # three images
    np.testing.assert_array_equal(received(rows, module, layout, 3)[0].numpy(), np.arange(96.0).reshape(8, 12))


@pytest.mark.parametrize(
    ("net", "scheme"), [(vit, "w8a8"), (vit, "w4a8+attn8"), (vit, "w8a8+res8"), (swin, "w8a8+res8"), (swin, "w8a8")]
)
def test_noise_gathers_and_is_less_with_more_bits(net: object, scheme: str) -> None:
    module = net()  # type: ignore[operator]
    spec = spec_of(module)
    images = noise(spec, 2)
    found = network_trace(calibrated(module, spec, scheme), module, images)
    assert [block["name"] for block in found["blocks"]] == block_names(module)
    assert all(5 < block["sqnr_db"] < 80 for block in found["blocks"])
    for entry in found["attention"]:
        rows, columns = entry["grid"]
        for key in ("float", "integer"):
            assert all(len(head) == rows * columns and max(head) == 1.0 and min(head) >= 0 for head in entry[key])
        assert entry["float"] != entry["integer"]
    json.dumps(found, allow_nan=False)


def test_integer_maps_of_swin_are_shares_of_attention() -> None:
    """With +int a row reaches the product divided by its peak; a mean over such rows would weigh them wrongly."""
    module = swin()
    spec = spec_of(module)
    found = network_trace(calibrated(module, spec, "w8a8+int"), module, noise(spec, 2))
    for entry in found["attention"]:
        differences = [np.abs(np.subtract(*pair)).mean() for pair in zip(entry["float"], entry["integer"], strict=True)]
        assert max(differences) < 0.03, entry["block"]


@torch.no_grad()
def test_a_network_that_is_not_quantized_has_no_noise() -> None:
    module = vit()
    twin = prepare(module, parse("w8a8"))
    set_quantized(twin, False)
    images = noise(spec_of(module), 1)
    with traced(module, [0, 1]) as before:
        module(images)
    with traced(twin, [0, 1]) as after:
        twin(images)
    for index in (0, 1):
        torch.testing.assert_close(before.attention[index], after.attention[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(before.blocks[index], after.blocks[index], atol=1e-4, rtol=1e-4)


def test_curves_are_thinned_and_left_out_where_nothing_was_optimised(tmp_path: Path) -> None:
    module = vit()
    spec = spec_of(module)
    model, images = calibrated(module, spec, "w8a8"), noise(spec, 1)
    history = tmp_path / "history.json"
    history.write_text("[]")
    write_traces(model, module, images, history, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a/reports").iterdir()} == {"network.json"}
    rows = [{"batch": b, "step": s, "tv": 1.0 / s + b, "total": 2.0} for b in (0, 1) for s in range(1, 501)]
    history.write_text(json.dumps(rows))
    write_traces(model, module, images, history, tmp_path / "b")
    terms = json.loads((tmp_path / "b/reports/synthesis.json").read_text())["terms"]
    band = terms["tv"]
    assert list(terms) == ["total", "tv"] and band["groups"] == 2  # sorted in the file
    assert len(band["step"]) == MOST_STEPS and band["step"][0] == 1 and band["step"][-1] == 500
    assert (band["low"][0], band["median"][0], band["high"][0]) == (1.0, 1.5, 2.0)

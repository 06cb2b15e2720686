"""The units of the residual stream's channels, and the step of each point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from calib.align.config import LayerConfig
from calib.align.inputs import Split
from calib.align.ranges import CLIPS_LOW
from calib.align.residual import quantize_residual, set_units
from calib.align.rounding import relative_error
from calib.errors import IntvitError
from calib.quant.residual import QuantResidual, stream_of
from calib.quant.surgery import prepare, residuals
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit

IMAGES, TOKENS, CHANNELS = 16, 20, 6


@torch.no_grad()
@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
def test_units_are_powers_of_two_of_the_channels_sizes(make: Any, side: int) -> None:
    """By a slow reference: every point's channels, image by image; one unit a stream, of which Swin has one a stage."""
    model, images = make(), pictures(5, side)
    for name, layer in model.named_modules():
        if name.endswith("blocks.0.mlp.fc2"):
            layer.weight[3] *= 40  # a massive channel, as trained ViTs have
    student, teacher = prepare(model, parse("w8a8+res8")), prepare(model, parse("w8a8+res8"))
    read: dict[str, list[Tensor]] = {name: [] for name in residuals(teacher)}
    for name, point in residuals(teacher).items():
        point.register_forward_hook(lambda m, args, out, n=name: read[n].append(args[0].flatten(0, -2)))
    set_units(student, teacher, images, batch=2)
    found = {name: torch.cat(parts) for name, parts in read.items()}
    for name, point in residuals(student).items():
        mine = [rows for other, rows in found.items() if stream_of(other) == stream_of(name)]
        size = sum(rows.square().sum(0).sqrt() for rows in mine) / len(mine)
        ratio = (size / size.median()).tolist()
        for value, unit in zip(ratio, point.unit.tolist(), strict=True):
            assert 2**-0.5 <= value / unit <= 2**0.5 and torch.tensor(unit).log2() == torch.tensor(unit).log2().round()
        assert point.unit[3] >= 4
    assert all((point.unit == 1).all() for point in residuals(teacher).values())


def rows_of(seed: int = 0) -> Tensor:
    """(IMAGES TOKENS, CHANNELS): one token of every image is massive in channel 2."""
    x = torch.randn(IMAGES, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))
    x[:, 4, 2] = 60.0
    return x.flatten(0, 1)


def quantized(rows: Tensor, config: LayerConfig | None = None) -> tuple[QuantResidual, dict[str, Any]]:
    point = QuantResidual(CHANNELS, 8)
    point.unit[2] = 4.0
    row = quantize_residual(
        point, "blocks.0.residual_mlp", rows, Split.of(IMAGES), config or LayerConfig(), torch.Generator()
    )
    return point, row


def test_the_step_is_that_of_the_least_error_and_massive_tokens_saturate() -> None:
    rows = rows_of()
    point, row = quantized(rows)
    fit, held = Split.of(IMAGES).rows(rows)
    errors = {}
    for clip in CLIPS_LOW:
        step = 60.0 / 4 / 127 * clip
        made = torch.clamp(torch.round(fit / point.unit / step), -128, 127) * step * point.unit
        errors[step] = relative_error(made, fit)
    best = min(errors, key=lambda step: errors[step])
    assert float(point.quant.scale) == pytest.approx(best) and best < 60 / 4 / 127
    assert int(point.quant.zero_point) == 0 and point.quantized
    assert row == {
        "step": "quantize",
        "layer": "blocks.0.residual_mlp",
        "scale": pytest.approx(best),
        "zero_point": 0,
        "error": pytest.approx(relative_error(point(held), held)),
        "rejected": [],
    }
    assert 0 < row["error"] < 0.02


def test_minmax_reaches_the_largest_value_of_all_images() -> None:
    rows = rows_of()
    rows[Split.of(IMAGES).held[0] * TOKENS, 1] = -90.0
    point, _ = quantized(rows, LayerConfig(ranges="minmax"))
    assert float(point.quant.scale) == pytest.approx(90 / 127)


def test_a_stream_of_zeros_and_one_that_is_not_finite() -> None:
    point, row = quantized(torch.zeros(IMAGES * TOKENS, CHANNELS))
    assert row["error"] == 0 and float(point.quant.scale) > 0
    rows = rows_of()
    rows[7, 3] = float("inf")
    with pytest.raises(IntvitError, match="not finite") as caught:
        quantized(rows)
    assert caught.value.where == "blocks.0.residual_mlp"

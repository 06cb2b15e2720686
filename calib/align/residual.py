"""Quantize the residual stream (``+res8``): the units of its channels, then the step of each point."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from calib.align.config import LayerConfig
from calib.align.inputs import Split, in_batches, require_finite, sample
from calib.align.ranges import CLIPS_LOW
from calib.align.rounding import relative_error
from calib.network import Network
from calib.quant.quantizer import levels
from calib.quant.residual import QuantResidual, stream_of
from calib.quant.surgery import residuals
from calib.taps import reading


@torch.no_grad()
def set_units(student: Network, teacher: Network, images: Tensor, batch: int) -> None:
    """Fix the units of ``student``'s streams from what ``teacher``, prepared and float, does with ``images``.

    A channel's unit is the power of two nearest to its size over that of the median channel, its size being the root
    mean square at a point, averaged over the stream's points. Our choice; the decision record has the others.
    """
    energies: dict[str, list[Tensor]] = defaultdict(list)

    def read(name: str, x: Tensor, _out: Tensor) -> None:
        energies[name].append(x.square().flatten(0, -2).sum(0))

    with reading(residuals(teacher), read):
        in_batches(teacher, images, batch)
    streams: dict[str, list[Tensor]] = defaultdict(list)
    for name, found in energies.items():
        streams[stream_of(name)].append(torch.stack(found).sum(0).sqrt())
    for name, point in residuals(student).items():
        size = torch.stack(streams[stream_of(name)]).mean(0).clamp_min(1e-8)
        point.unit.copy_(torch.exp2((size / size.median()).log2().round()))


def quantize_residual(
    point: QuantResidual, name: str, rows: Tensor, split: Split, config: LayerConfig, generator: torch.Generator
) -> dict[str, Any]:
    """Fix the point's step, in place, and switch it to integers; the row for the report.

    The step is that of the least error relative to a token's energy, of those that put the largest value, or a part of
    it down to a tenth, at the last level: massive tokens are few, and saturate rather than take the levels of the rest.

    Args:
        rows: (T, C) float32, what the quantized network makes there, image after image. split: of those images.

    Raises:
        IntvitError: a value is not finite.
    """
    require_finite(rows, name)
    fit, held = (sample(part, config.rows, generator) for part in split.rows(rows))
    full = max(float((rows / point.unit).abs().max()), 1e-8) / levels(point.quant.bits)[1]
    point.quantized = True
    errors = {}
    for clip in (1.0,) if config.ranges == "minmax" else CLIPS_LOW:
        point.quant.set(full * clip)
        errors[clip] = relative_error(point(fit), fit)
    point.quant.set(full * min(errors, key=errors.__getitem__))
    scale, error = float(point.quant.scale), relative_error(point(held), held)
    return {"step": "quantize", "layer": name, "scale": scale, "zero_point": 0, "error": error, "rejected": []}

"""How much each layer alone costs: the network's divergence from itself with that layer in integers and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calib.align.correction import CorrectionConfig
from calib.align.distill import softened_divergence
from calib.align.inputs import Split, in_batches, layer_inputs
from calib.align.layer import LayerConfig, LayerRows, quantize_layer
from calib.network import Network
from calib.quant.families import segments
from calib.quant.linear import QuantLinear
from calib.quant.surgery import prepare, set_quantized
from calib.scheme import Scheme

PLAIN = LayerConfig(correction=CorrectionConfig("none"))


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs.

    Attributes:
        layer: timm module path. weights: how many. weight_bits, act_bits: it was tried at.
        divergence: KL(float || with this layer in integers) of the class probabilities, nats, mean over images.
        sqnr_db: of the layer's own output, token by token.
        flips: percent of the images whose class changed.
    """

    layer: str
    weights: int
    weight_bits: int
    act_bits: int
    divergence: float
    sqnr_db: float
    flips: float


@torch.no_grad()
def sensitivities(
    model: Network,
    scheme: Scheme,
    images: Tensor,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Sensitivity]:
    """Every layer of ``model``, the costliest first.

    A layer is rounded to the nearest level with searched ranges, and nothing is folded or corrected: what calibration
    has to mend, not what is left after it.

    Args:
        model: timm ViT, DeiT or Swin, float32, eval. scheme: bit widths to try each layer at. images: (B, 3, H, W)
        normalised. progress: called as (layers done, layers in all, layer).
    """
    student = prepare(model, scheme)
    set_quantized(student, False)
    wanted = in_batches(student, images, batch)
    pieces = list(segments(student))
    total = sum(len(piece.sites) for piece in pieces)
    found: list[Sensitivity] = []
    split, stream = Split.of(len(images)), images
    for piece in pieces:
        for site in piece.sites:
            if progress is not None:
                progress(len(found), total, site.name)
            layer: QuantLinear = student.get_submodule(site.name)
            rows = LayerRows(layer_inputs(student, piece, site.name, stream, batch), split)
            row = quantize_layer(layer, site, rows, PLAIN, torch.Generator().manual_seed(seed))
            made = in_batches(student, images, batch)
            layer.quantized = False
            found.append(
                Sensitivity(
                    layer=site.name,
                    weights=layer.weight.numel(),
                    weight_bits=layer.weight_bits,
                    act_bits=layer.act_bits,
                    divergence=max(float(softened_divergence(made, wanted, 1.0)), 0.0),
                    sqnr_db=-10 * float(torch.tensor(max(row["error"], 1e-20)).log10()),
                    flips=100 * float((made.argmax(1) != wanted.argmax(1)).float().mean()),
                )
            )
        stream = in_batches(piece.run, stream, batch)
    if progress is not None:
        progress(total, total, "")
    return sorted(found, key=lambda each: -each.divergence)

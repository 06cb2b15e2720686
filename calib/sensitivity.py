"""How much each part costs: the network's divergence with one layer, attention product or point alone in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calib.align.config import CorrectionConfig, LayerConfig
from calib.align.distill import softened_divergence
from calib.align.inputs import Split, arguments, in_batches, layer_inputs, point_inputs
from calib.align.layer import LayerRows, quantize_layer
from calib.align.product import quantize_product
from calib.align.residual import quantize_residual, set_units
from calib.network import Network
from calib.quant.attention import QuantProduct
from calib.quant.families import Segment, segments
from calib.quant.linear import QuantLinear
from calib.quant.residual import QuantResidual
from calib.quant.surgery import between_layers, prepare, products, residuals, set_quantized
from calib.scheme import Scheme

_Part = QuantLinear | QuantProduct | QuantResidual
PLAIN = LayerConfig(correction=CorrectionConfig("none"))


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs.

    Attributes:
        layer: timm module path; of an attention product ``...attn.qk`` or ``...attn.pv``, of a point of the residual
        stream ``...residual_attn`` and the like. weights: how many, 0 of a product or point. weight_bits, act_bits: it
        was tried at; of a product its right and left operand; of a point both are its bits.
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
    """Every layer of ``model``, and every attention product and point the scheme has in integers, the costliest first.

    A layer is rounded to the nearest level with searched ranges, and nothing is folded or corrected: what calibration
    has to mend, not what is left after it.

    Args:
        model: timm ViT, DeiT or Swin, float32, eval. scheme: bit widths to try each layer at. images: (B, 3, H, W)
        normalised. progress: called as (layers done, layers in all, layer).
    """
    student = prepare(model, scheme)
    set_quantized(student, False)
    wanted = in_batches(student, images, batch)
    if scheme.residual_bits is not None:
        set_units(student, student, images, batch)
    pieces = list(segments(student))
    total = sum(len(piece.sites) for piece in pieces) + len(between_layers(student))
    found: list[Sensitivity] = []
    split, stream = Split.of(len(images)), images
    for piece in pieces:
        for layer, row in _one_by_one(student, piece, stream, split, seed, batch):
            if progress is not None:
                progress(len(found), total, row["layer"])
            made = in_batches(student, images, batch)
            layer.quantized = False
            weights, weight_bits, act_bits = _size(layer)
            found.append(
                Sensitivity(
                    layer=row["layer"],
                    weights=weights,
                    weight_bits=weight_bits,
                    act_bits=act_bits,
                    divergence=max(float(softened_divergence(made, wanted, 1.0)), 0.0),
                    sqnr_db=-10 * float(torch.tensor(max(row["error"], 1e-20)).log10()),
                    flips=100 * float((made.argmax(1) != wanted.argmax(1)).float().mean()),
                )
            )
        stream = in_batches(piece.run, stream, batch)
    if progress is not None:
        progress(total, total, "")
    return sorted(found, key=lambda each: -each.divergence)


def _one_by_one(
    student: Network, piece: Segment, stream: Tensor, split: Split, seed: int, batch: int
) -> Iterator[tuple[_Part, dict[str, Any]]]:
    """Each layer, product and point of the piece, quantized, and its row; float again before the next is taken."""
    for site in piece.sites:
        layer: QuantLinear = student.get_submodule(site.name)
        rows = LayerRows(layer_inputs(student, piece, site.name, stream, batch), split)
        yield layer, quantize_layer(layer, site, rows, PLAIN, torch.Generator().manual_seed(seed))
    for name, product in products(student, piece.name).items():
        fit, held = (arguments(student, piece, name, stream[part], batch) for part in (split.fit, split.held))
        yield product, quantize_product(product, name, fit, held, PLAIN, torch.Generator().manual_seed(seed))
    for name, point in residuals(student, piece.name).items():
        inputs = point_inputs(student, piece, name, stream, batch)
        yield point, quantize_residual(point, name, inputs, split, PLAIN, torch.Generator().manual_seed(seed))


def _size(part: _Part) -> tuple[int, int, int]:
    """How many weights a part has, and the bits of weights and activations."""
    if isinstance(part, QuantLinear):
        return part.weight.numel(), part.weight_bits, part.act_bits
    if isinstance(part, QuantProduct):
        return 0, part.right.bits, part.left.bits
    return 0, part.quant.bits, part.quant.bits

"""Choose every number of the quantized model, piece by piece, each piece after all before it are integers.

For each piece of the network: measure its layers' inputs in float; fold scales and shifts where that helps; then, layer
by layer in execution order, fix the input quantizer on what the already quantized network delivers, round the weights,
and take the mean error that is left out of the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.align.bias import bias_correction
from calib.align.ranges import Range, search_range
from calib.align.reparam import fold_after_gelu, fold_into_norm, fold_into_values, search_fold
from calib.align.rounding import relative_error, search_rounding, token_importance
from calib.calibrated import CalibratedModel
from calib.errors import IntvitError
from calib.models import ModelSpec
from calib.network import Network
from calib.quant.families import Segment, Site, segments
from calib.quant.linear import QuantLinear, QuantPatchConv, patches
from calib.quant.surgery import prepare, set_quantized
from calib.scheme import Scheme

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CalibrateConfig:
    """Options of the calibration.

    Attributes:
        rows: most token rows a search looks at. batch: images a forward pass. reparameterise, correct_bias: steps
        on or off. weight_tokens: every token counts by the inverse of its energy in rounding and bias correction
        (False: all alike, the textbook form, for ablations). seed: of the choice of rows.
    """

    rows: int = 4096
    batch: int = 16
    reparameterise: bool = True
    correct_bias: bool = True
    weight_tokens: bool = True
    seed: int = 0


@torch.no_grad()
def calibrate(
    model: Network,
    spec: ModelSpec,
    scheme: Scheme,
    images: Tensor,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
) -> CalibratedModel:
    """Quantize ``model`` with ``images`` as its only data.

    Args:
        model: timm ViT, DeiT or Swin, float32, eval. images: (B, 3, H, W) float32, normalised.
        progress: called as (pieces done, pieces in all, piece name).

    Raises:
        IntvitError: unsupported network, wrong image shape, or activations that are not finite.
    """
    config = config or CalibrateConfig()
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(spec.input_size) or images.shape[0] == 0:
        raise IntvitError(
            "calibration images have the wrong shape",
            where=f"{tuple(images.shape)}",
            why=f"{spec.name} reads (B, {', '.join(map(str, spec.input_size))}) with B >= 1",
            next="synthesise or load them for this model",
        )
    if not torch.isfinite(images).all():
        raise IntvitError("calibration images hold values that are not finite", next="make or load them again")
    student = prepare(model, scheme)
    set_quantized(student, False)
    generator = torch.Generator().manual_seed(config.seed)
    float_stream, quant_stream = images, images
    report: list[dict[str, Any]] = []
    pieces = list(segments(student))
    for index, piece in enumerate(pieces):
        if progress is not None:
            progress(index, len(pieces), piece.name)
        picker = _Picker(config, generator)
        if config.reparameterise:
            report += _fold_piece(student, piece, picker.inputs(student, piece, float_stream))
        for site in piece.sites:
            layer = student.get_submodule(site.name)
            report.append(_quantize_layer(layer, site, picker.inputs(student, piece, quant_stream)[site.name], config))
        set_quantized_piece(student, piece, False)
        float_stream = _run(piece, float_stream, config.batch)
        set_quantized_piece(student, piece, True)
        quant_stream = _run(piece, quant_stream, config.batch)
        _require_finite(quant_stream, piece.name)
    if progress is not None:
        progress(len(pieces), len(pieces), "")
    set_quantized(student, True)
    return CalibratedModel(student, spec, scheme, report)


def _require_finite(values: Tensor, where: str) -> None:
    if not torch.isfinite(values).all():
        raise IntvitError("activations are not finite", where=where, next="check the checkpoint and the images")


def _fold_piece(student: Network, piece: Segment, rows: dict[str, Tensor]) -> list[dict[str, Any]]:
    out = []
    for site in piece.sites:
        layer: QuantLinear = student.get_submodule(site.name)
        if not (site.norm or site.values or site.gelu):
            continue
        fold = search_fold(layer, rows[site.name], site.gelu)
        if site.norm:
            fold_into_norm(student.get_submodule(site.norm), layer, fold)
        elif site.values:
            fold_into_values(student.get_submodule(site.values), layer, fold)
        else:
            fold_after_gelu(layer, fold)
        out.append({"step": "reparameterise", "layer": site.name, "strength": fold.strength, "error": fold.error})
    return out


def _quantize_layer(layer: QuantLinear, site: Site, rows: Tensor, config: CalibrateConfig) -> dict[str, Any]:
    """Fix one layer's quantizer, weights and bias on ``rows`` (T, K), what the quantized network feeds it."""
    row: dict[str, Any] = {"step": "quantize", "layer": site.name, "weight_bits": layer.weight_bits}
    if layer.in_quant is not None:
        found = _input_range(layer, site, rows)
        layer.in_quant.set(found.scale, found.zero_point)
        row |= {"scale": found.scale, "zero_point": found.zero_point}
    levels, weight_scale = search_rounding(
        layer.weight, layer.weight_bits, token_importance(rows, config.weight_tokens)
    )
    layer.set_weights(levels, weight_scale)
    target = torch.nn.functional.linear(rows, layer.weight, layer.bias)
    layer.quantized = True
    made = layer.integer_output(rows)
    row["error"] = relative_error(made, target)
    if config.correct_bias:
        layer.bias += bias_correction(made, target, config.weight_tokens)
        row["error_corrected"] = relative_error(layer.integer_output(rows), target)
    return row


def _input_range(layer: QuantLinear, site: Site, rows: Tensor) -> Range:
    if site.kind == "embed":
        return Range(max(float(rows.abs().max()), 1e-8) / 127, 0, 0.0)
    return search_range(rows, layer.act_bits, layer.weight.square().sum(0), site.gelu)


def set_quantized_piece(student: Network, piece: Segment, on: bool) -> None:
    """Switch the layers of one piece to their integer or float form."""
    for site in piece.sites:
        student.get_submodule(site.name).quantized = on


def _run(piece: Segment, stream: Tensor, batch: int) -> Tensor:
    return torch.cat([piece.run(chunk) for chunk in stream.split(batch)])


class _Picker:
    """Reads a sample of the rows that reach each layer of a piece: the same rows whatever stream is run."""

    def __init__(self, config: CalibrateConfig, generator: torch.Generator) -> None:
        self.config = config
        self.seed = int(torch.randint(1 << 31, (1,), generator=generator))

    def inputs(self, student: Network, piece: Segment, stream: Tensor) -> dict[str, Tensor]:
        """Rows (at most about ``config.rows``, K) of each layer's quantizer input, by layer name."""
        found: dict[str, list[Tensor]] = {site.name: [] for site in piece.sites}
        hooks = [self._hook(student.get_submodule(name), into, stream.shape[0]) for name, into in found.items()]
        try:
            _run(piece, stream, self.config.batch)
        finally:
            for hook in hooks:
                hook.remove()
        rows = {name: torch.cat(parts) for name, parts in found.items()}
        for name, values in rows.items():
            _require_finite(values, name)
        return rows

    def _hook(self, layer: QuantLinear, into: list[Tensor], images: int) -> Any:
        pick = torch.Generator().manual_seed(self.seed)
        batch = min(self.config.batch, images)
        share = -(-self.config.rows * batch // images)

        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = patches(args[0], module.patch) if isinstance(module, QuantPatchConv) else args[0]
            rows = layer.scaled(x).flatten(0, -2)
            if rows.shape[0] > share:
                rows = rows[torch.randperm(rows.shape[0], generator=pick)[:share]]
            into.append(rows.clone())

        return layer.register_forward_pre_hook(read)

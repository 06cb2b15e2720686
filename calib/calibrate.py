"""Choose every number of the quantized model, piece by piece, each piece after all before it are integers.

Where the recipe says so the network is turned from the inside first, and layers with massive activations keep 8 bits.
For each piece of the network: measure its layers' inputs in float; fold scales and shifts where that helps; then, layer
by layer in execution order, fix the input quantizer, round the weights and correct the bias on what the already
quantized network delivers; at last, where the recipe says so, reconstruct the block. Every step is judged on images it
was not fitted to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.align.config import CalibrateConfig
from calib.align.distill import Lesson, distill
from calib.align.inputs import Split, arguments, in_batches, layer_inputs, point_inputs, require_finite, sample
from calib.align.layer import LayerRows, quantize_layer
from calib.align.massive import WIDE, massive_layers
from calib.align.product import quantize_product
from calib.align.reconstruct import Job, Suffix, class_share, reconstruct
from calib.align.reparam import Ends, fold_after_gelu, fold_into_norm, fold_into_values, middle_fold, search_fold
from calib.align.residual import quantize_residual, set_units
from calib.align.rotate import rotated
from calib.align.settle import begin, set_ranges, settle, unsettle
from calib.allocate import choose_bits
from calib.calibrated import CalibratedModel
from calib.errors import IntvitError
from calib.models import ModelSpec
from calib.network import Network
from calib.quant.families import Segment, Site, block_names, segments
from calib.quant.integer_only import integer_parts
from calib.quant.linear import QuantLinear
from calib.quant.residual import AFTER, BEFORE, point
from calib.quant.surgery import between_layers, prepare, products, set_quantized
from calib.resume import restore, save
from calib.scheme import Scheme

ALLOCATE_IMAGES = 32  # that choose the bits of each layer, where not all have the same
SAVE_EVERY_S = 10.0  # pieces that took less together are done again rather than written to disk
Progress = Callable[[int, int, str], None]


@torch.no_grad()
def calibrate(
    model: Network,
    spec: ModelSpec,
    scheme: Scheme,
    images: Tensor,
    config: CalibrateConfig | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
) -> CalibratedModel:
    """Quantize ``model`` with ``images`` as its only data.

    Args:
        model: timm ViT, DeiT or Swin, float32, eval. images: (B, 3, H, W) float32, normalised.
        progress: called as (pieces done, pieces in all, piece name); an epoch of distillation counts as a piece.
        checkpoints: a folder of this run's own; a run that was stopped goes on from the last state saved there, at
            most ten seconds and one piece back; distillation starts anew.

    Raises:
        IntvitError: unsupported network, wrong image shape, or activations that are not finite.
    """
    config = config or CalibrateConfig()
    _check(images, spec)
    clock = Clock()
    if config.rotate and scheme.turns:
        with clock("rotate"):
            model = rotated(model, config.seed)
    teacher = Teacher(prepare(model, scheme), images, config)
    weight_bits: dict[str, int] = {}
    act_bits: dict[str, int] = {}
    report: list[dict[str, Any]] = []
    few = images[evenly(len(images), ALLOCATE_IMAGES)]
    if scheme.average is not None:
        with clock("allocate"):
            weight_bits, report = choose_bits(model, scheme, few, config.seed, config.batch)
    elif config.massive is not None and scheme.widens:
        report = massive_layers(teacher.network, few, config.massive, config.batch)
        weight_bits = act_bits = {row["layer"]: WIDE for row in report}
    student = prepare(model, scheme, weight_bits, act_bits)
    set_quantized(student, False)
    split = Split.of(len(images))
    float_stream, quant_stream = images, images
    if scheme.integer:
        set_ranges(student, teacher.network, images, config.batch)
    if scheme.residual_bits is not None:
        set_units(student, teacher.network, images, config.batch)
    pieces = list(zip(segments(student), teacher.pieces, strict=True))
    resumed: list[dict[str, Any]] = []
    done = 0 if checkpoints is None else restore(checkpoints, student, resumed)
    report = resumed if done else report
    tell = _Teller(progress, len(pieces), 0 if config.distill is None else config.distill.epochs)
    saved = time.monotonic()
    for index, (piece, original) in enumerate(pieces):
        tell(index, piece.name)
        wanted = in_batches(original.run, float_stream, config.batch)
        if index >= done:
            streams = float_stream, quant_stream, wanted
            report += _quantize_piece(student, piece, streams, split, config, index, teacher, clock)
        set_quantized_piece(student, piece, True)
        if scheme.integer:
            settle(student, piece)
        float_stream, quant_stream = wanted, in_batches(piece.run, quant_stream, config.batch)
        require_finite(quant_stream, piece.name)
        if checkpoints is not None and index >= done and time.monotonic() - saved >= SAVE_EVERY_S:
            save(checkpoints, student, report, index + 1)
            saved = time.monotonic()
    set_quantized(student, True)
    if config.distill is not None:
        lesson = Lesson(student, teacher.network, spec, images, split)
        unsettle(student)
        with clock("distill"):
            report.append(distill(lesson, config.distill, config.seed, tell.epoch))
        for piece, _ in pieces if scheme.integer else ():
            settle(student, piece)
    tell(tell.total, "")
    return CalibratedModel(student, spec, scheme, report, clock.seconds)


class _Teller:
    """Reports progress: pieces first, then epochs of distillation."""

    def __init__(self, progress: Progress | None, pieces: int, epochs: int) -> None:
        self.progress = progress
        self.pieces = pieces
        self.total = pieces + epochs

    def __call__(self, done: int, name: str) -> None:
        if self.progress is not None:
            self.progress(done, self.total, name)

    def epoch(self, done: int, _total: int) -> None:
        self(self.pieces + done, f"distillation, epoch {done}")


class Clock:
    """Adds up wall-clock seconds by name: ``with clock("step"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun


class Teacher:
    """The float network, in pieces: what every block is to give, and what comes of its output.

    A prepared copy that stays float: its attention is written out, which backward passes on the CPU are faster through.
    """

    def __init__(self, network: Network, images: Tensor, config: CalibrateConfig) -> None:
        set_quantized(network, False)
        self.network = network
        self.pieces = list(segments(network))
        self.reach = 0 if config.reconstruct is None else config.reconstruct.suffix
        self.logits = torch.empty(0)
        if self.reach:
            self.logits = in_batches(network, images, config.batch)

    def layer_outputs(self, index: int, name: str, stream: Tensor, batch: int) -> Tensor:
        """What layer ``name`` of piece ``index`` gives when the piece reads ``stream`` (B, ...): (T, N)."""
        layer: QuantLinear = self.network.get_submodule(name)
        inputs = layer_inputs(self.network, self.pieces[index], name, stream, batch)
        return F.linear(inputs, layer.weight, layer.bias)

    def suffix(self, index: int) -> Suffix | None:
        """What is behind piece ``index``, where it is one of the last ``reach`` blocks."""
        behind = self.pieces[index + 1 :]
        if len(behind) > self.reach:
            return None

        def run(x: Tensor) -> Tensor:
            for piece in behind:
                x = piece.run(x)
            return x

        return Suffix(run, self.logits)


def _check(images: Tensor, spec: ModelSpec) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(spec.input_size) or images.shape[0] == 0:
        raise IntvitError(
            "calibration images have the wrong shape",
            where=f"{tuple(images.shape)}",
            why=f"{spec.name} reads (B, {', '.join(map(str, spec.input_size))}) with B >= 1",
            next="synthesise or load them for this model",
        )
    if not torch.isfinite(images).all():
        raise IntvitError("calibration images hold values that are not finite", next="make or load them again")


def _quantize_piece(
    student: Network,
    piece: Segment,
    streams: tuple[Tensor, Tensor, Tensor],
    split: Split,
    config: CalibrateConfig,
    index: int,
    teacher: Teacher,
    clock: Clock,
) -> list[dict[str, Any]]:
    """Every step on one piece, given the float and the quantized input and the float output; rows for the report."""
    float_stream, quant_stream, wanted = streams
    seed = config.seed * 100_003 + index
    generator = torch.Generator().manual_seed(seed)
    few = evenly(len(quant_stream), config.layer_images)
    of_few = Split.of(len(few))
    report: list[dict[str, Any]] = []
    zeros: dict[str, Tensor] = {}
    if config.fold != "off":
        with clock("reparameterise"):
            folded, shifts = _fold_piece(student, piece, float_stream[few], of_few, config, generator)
            report += folded
        if config.fold == "shift":
            zeros = shifts
    with clock("quantize"):
        begin(student, piece)
        correction = config.layer.correction
        for site in piece.sites:
            report += _quantize_point(student, piece, (site, BEFORE), quant_stream[few], of_few, config, generator)
            inputs = layer_inputs(student, piece, site.name, quant_stream[few], config.batch)
            outputs = None
            if correction.form != "none" and correction.target == "float" and site.kind != "qkv":
                outputs = teacher.layer_outputs(index, site.name, float_stream[few], config.batch)
            rows = LayerRows(inputs, of_few, outputs, _heads(student, site), zeros.get(site.name))
            report.append(quantize_layer(student.get_submodule(site.name), site, rows, config.layer, generator))
            if site.kind == "qkv":
                report += _quantize_products(student, piece, quant_stream[few], of_few, config, generator)
            report += _quantize_point(student, piece, (site, AFTER), quant_stream[few], of_few, config, generator)
    if config.reconstruct is not None and piece.name in block_names(student):
        share = class_share(student, piece.name, config.reconstruct)
        job = Job(piece, quant_stream, wanted, teacher.suffix(index), share)
        with clock("reconstruct"):
            report.append(reconstruct(student, job, split, config.reconstruct, seed, config.batch))
    return report


def _quantize_products(
    student: Network, piece: Segment, stream: Tensor, split: Split, config: CalibrateConfig, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Both products of the piece's attention, where the scheme has them as integers; its qkv is quantized before."""
    out = []
    for name, product in products(student, piece.name).items():
        fit, held = (
            arguments(student, piece, name, stream[chosen], config.batch) for chosen in (split.fit, split.held)
        )
        out.append(quantize_product(product, name, fit, held, config.layer, generator))
    return out


def _quantize_point(
    student: Network,
    piece: Segment,
    place: tuple[Site, Mapping[str, str]],
    stream: Tensor,
    split: Split,
    config: CalibrateConfig,
    generator: torch.Generator,
) -> list[dict[str, Any]]:
    """The point of the residual stream beside a layer, where the scheme has it in integers; all before it is."""
    found = point(student, *place)
    if found is None:
        return []
    name, module = found
    rows = point_inputs(student, piece, name, stream, config.batch)
    return [quantize_residual(module, name, rows, split, config.layer, generator)]


def _fold_piece(
    student: Network,
    piece: Segment,
    stream: Tensor,
    split: Split,
    config: CalibrateConfig,
    generator: torch.Generator,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Rows for the report, and what each layer's input is shifted by, (K,), in units of what it was."""
    out, shifts = [], {}
    for site in piece.sites:
        layer: QuantLinear = student.get_submodule(site.name)
        if not (site.norm or site.values or site.gelu):
            continue
        rows = layer_inputs(student, piece, site.name, stream, config.batch)
        judge, ends = sample(split.rows(rows)[1], config.fold_rows, generator), Ends.of(rows)
        if config.fold == "shift":
            fold = middle_fold(layer, judge, ends, site.gelu)
        else:
            fold = search_fold(layer, judge, site.gelu, ends, config.gelu_scale)
        if site.norm:
            fold_into_norm(student.get_submodule(site.norm), layer, fold)
        elif site.values:
            fold_into_values(student.get_submodule(site.values), layer, fold)
        else:
            fold_after_gelu(layer, fold)
        shifts[site.name] = fold.shift
        out.append(
            {
                "step": "reparameterise",
                "layer": site.name,
                "strength": fold.strength,
                "error_off": fold.off,
                "error": fold.error,
            }
        )
    return out, shifts


def _heads(student: Network, site: Site) -> int:
    if site.kind != "qkv":
        return 0
    return int(student.get_submodule(site.name.removesuffix(".qkv")).num_heads)


def evenly(count: int, most: int) -> Tensor:
    """Indices of at most ``most`` of ``count`` things, evenly spaced: (min(count, most),) int64."""
    chosen = min(count, most)
    return torch.arange(chosen) * count // chosen


def set_quantized_piece(student: Network, piece: Segment, on: bool) -> None:
    """Switch layers, attention products, points and integer modules of one piece to their integer or float form."""
    layers = (student.get_submodule(site.name) for site in piece.sites)
    for part in (*layers, *between_layers(student, piece.name).values(), *integer_parts(student, piece.name)):
        part.quantized = on

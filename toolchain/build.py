"""``python -m toolchain.build --model deit_s --bits w4a8``: a timm model in, a verified bundle out."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from calib.align.correction import FORMS
from calib.calibrated import CalibratedModel
from calib.errors import IntvitError as CalibError
from calib.models import load
from calib.quant.surgery import require_groups
from calib.recipes import BUDGETS, DEFAULT_BUDGET, DEFAULT_METHOD, REAL, recipe, with_own_priors
from calib.scheme import parse, require_buildable
from runtime import cli
from runtime.backends.base import backend_class
from runtime.bundle import Bundle, write_manifest
from runtime.classes import Classes
from runtime.dataset import load_folder
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from toolchain.bundle import Origin, make_manifest
from toolchain.evaluate import measure
from toolchain.inspect import inspect
from toolchain.layers import report_layers
from toolchain.lowering import TARGETS, require_carried
from toolchain.output import check_out, filling
from toolchain.pipeline import Job, calibrate_stage, images_stage, lower_stage
from toolchain.report import write_report
from toolchain.report.gather import REPORTS
from toolchain.stages import StageStore, default_store
from toolchain.targets.tensorrt import TensorRtOptions

DEFAULT_IMAGES = 128
DEFAULT_TARGET = "ort"
COST, REPORT = "cost.json", "report.html"


def build(job: Job, out: Path, store: StageStore, evaluate_on: Path | None, force: bool, console: Console) -> Bundle:
    """Run every stage of ``job`` and put the bundle at ``out``.

    Raises:
        IntvitError: whatever a stage raises; ``out`` is then what it was before.
    """
    check_out(out, f"{job.loaded.spec.name}-{job.scheme}", force)
    images = images_stage(job, store)
    _tell(console, "images", images.reused, images.folder)
    calibrated = calibrate_stage(job, store, images)
    _tell(console, "calibration", calibrated.reused, calibrated.folder)
    lowered = lower_stage(job, store, images, calibrated)
    _tell(console, "graphs", lowered.reused, lowered.folder)
    model = CalibratedModel.load(calibrated.folder)
    origin = Origin(
        weights=job.loaded.weights,
        digest=job.loaded.digest,
        method=job.recipe.method,
        images=job.images,
        seed=job.seed,
        data_free=job.recipe.data_free,
        stages={"images": images.key, "calibrate": calibrated.key, "lower": lowered.key},
        options=job.target_options,
    )
    cost = {"images": images.cost, "calibrate": calibrated.cost, "lower": lowered.cost}
    return _assemble(model, origin, job.targets, lowered.folder, out, evaluate_on, cost)


def _assemble(
    model: CalibratedModel,
    origin: Origin,
    targets: list[str],
    lowered: Path,
    out: Path,
    evaluate_on: Path | None,
    cost: dict[str, Any],
) -> Bundle:
    """Copy the lowered files beside a manifest, measure, and give the whole its final name in one rename.

    What the stages cost goes into ``cost.json``, which the manifest does not list: it differs from run to run.
    """
    with filling(out) as partial:
        ignore = shutil.ignore_patterns("stage.json")
        shutil.copytree(lowered, partial, dirs_exist_ok=True, ignore=ignore, copy_function=shutil.copyfile)
        partial.chmod(0o755)
        manifest = make_manifest(model, origin, targets, partial)
        write_manifest(partial, manifest)
        atomic_write_json(partial / COST, cost)
        if evaluate_on is not None:
            reported = measure(Bundle.open(partial), model, evaluate_on, _backend(targets))
            write_manifest(partial, manifest.model_copy(update={"reported": reported}))
    return Bundle.open(out)


def _report(bundle: Bundle, targets: list[str], console: Console) -> None:
    """Write reports/inspect.json and report.html into a finished bundle, which is whole without them.

    Runs only after the bundle has its name: an hour's work is not lost for a page.
    """
    try:
        if DEFAULT_TARGET in targets:
            found = inspect(bundle, DEFAULT_TARGET).to_json() | {"bundle": bundle.sha256, "backend": DEFAULT_TARGET}
            atomic_write_json(bundle.root / REPORTS / "inspect.json", found)
        write_report([bundle.root], bundle.root / REPORT)
    except IntvitError as error:
        console.print(f"the bundle is whole, its report could not be written:\n{error.render()}", markup=False)


def _tell(console: Console, what: str, reused: bool, folder: Path) -> None:
    console.print(f"{what}: {'reused' if reused else 'made'} {folder.name}", highlight=False, markup=False)


def _summary(bundle: Bundle, out: Path, seconds: float, console: Console) -> None:
    manifest = bundle.manifest
    console.print(f"\n{manifest.name} -> {out}", highlight=False, markup=False)
    if manifest.weights == "random":
        console.print("RANDOM WEIGHTS: LATENCY MEANS SOMETHING, ACCURACY MEANS NOTHING", style="bold red")
    source = "no real image read" if manifest.data_free else "REAL IMAGES WERE READ FOR CALIBRATION"
    console.print(f"{manifest.method}, {manifest.images} images, seed {manifest.seed}: {source}", highlight=False)
    sizes = [f"{entry.target} graph {entry.bytes / 1e6:.1f} MB" for entry in manifest.files if entry.role == "graph"]
    twin = bundle.entry("float_twin").bytes / 1e6
    console.print(f"{', '.join(sizes)}, float32 twin {twin:.1f} MB", highlight=False, soft_wrap=True)
    if reported := manifest.reported:
        console.print(
            f"top-1 on {reported['images']} pictures: float32 {reported['float_top1']:.2f}, "
            f"fake-quant {reported['fake_quant_top1']:.2f}, engine {reported['engine_top1']:.2f} "
            f"(standard error of the difference {reported['stderr']:.2f})",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{seconds:.0f} s. What is known of it: {out / REPORT}", highlight=False, markup=False)
    console.print(f"Next: python -m runtime.bench {out}", highlight=False, markup=False)


def _device(choice: str) -> str:
    if choice not in ("auto", "cpu", "cuda"):
        raise IntvitError(f"unknown device {choice!r}", where="--device", next="auto, cpu or cuda")
    if choice == "cuda" and not torch.cuda.is_available():
        raise IntvitError(
            "torch sees no CUDA device", where="--device cuda", next="--device cpu, or see runtime.doctor"
        )
    return "cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu"


def _backend(targets: list[str]) -> str:
    """The engine that --eval measures."""
    return DEFAULT_TARGET if DEFAULT_TARGET in targets else targets[0]


def _targets(chosen: list[str] | None) -> list[str]:
    targets = sorted({name for text in chosen or [DEFAULT_TARGET] for name in text.split(",")})
    if unknown := [target for target in targets if target not in TARGETS]:
        raise IntvitError(f"unknown target {unknown[0]!r}", where="--target", next="known: " + ", ".join(TARGETS))
    return targets


def _options(given: list[str] | None, targets: list[str]) -> TensorRtOptions:
    options = cli.parse_options(given)
    if options and "tensorrt" not in targets:
        raise IntvitError(
            f"no chosen target has an option {next(iter(options))!r}",
            where="--option",
            why="targets: " + ", ".join(targets),
            next="options belong to the tensorrt dialect: add --target tensorrt",
        )
    return TensorRtOptions.parse(options)


def main(
    model: Annotated[
        str, typer.Option("--model", help="deit_t/s/b, vit_t/s/b, swin_t/s/b, vit_digits, or a timm tag.")
    ],
    bits: Annotated[
        str, typer.Option("--bits", help="Scheme: w8a8, w4a8, w4a16+g64, w8a8+attn8, w8a8+int, ..., or auto:5.")
    ],
    method: Annotated[str, typer.Option("--method", help="Where calibration images come from.")] = DEFAULT_METHOD,
    budget: Annotated[
        str, typer.Option("--budget", help="How long calibration may take: " + ", ".join(BUDGETS) + ".")
    ] = DEFAULT_BUDGET,
    correction: Annotated[
        str | None,
        typer.Option("--correction", help="Of layer outputs: " + ", ".join(FORMS) + "; default: the method's."),
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many calibration images.")] = DEFAULT_IMAGES,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Synthesis steps; default: the method's.")
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="FILE.py=WEIGHT", help="A loss of your own for the images."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights: a .safetensors, .pt or .pth file, or 'random'.")
    ] = None,
    calib_data: Annotated[
        Path | None, typer.Option("--calib-data", help="Folder of real images, for --method real.")
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option("--eval", help="Labelled folder DIR/<class>/*.jpg; only measured on.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", help="Dialects to write: ort (the default), openvino, tensorrt; or several: ort,tensorrt."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the tensorrt dialect: precision=fp16, bf16 or fp32."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda: for images and calibration.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same bytes.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="The bundle; default build/<model>-<bits>.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where stages are kept; default ~/.cache/intvit.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do every stage again and replace what is at --out.")] = False,
    layers: Annotated[
        bool, typer.Option("--report-layers", help="Show every layer's SQNR, step by step; also in OUT-layers.json.")
    ] = False,
    debug: cli.DebugOption = False,
) -> None:
    """Quantize a Vision Transformer without data and write a bundle of real integer graphs."""
    started = time.monotonic()
    console = Console()
    try:
        job = _job(
            model,
            bits,
            method,
            budget,
            correction,
            images,
            iterations,
            checkpoint,
            calib_data,
            target,
            device,
            seed,
            option,
        )
        if prior:
            job = replace(job, recipe=with_own_priors(job.recipe, prior))
        if eval_data is not None:
            backend_class(_backend(job.targets))
            spec = job.loaded.spec
            load_folder(eval_data, Classes(tuple(spec.class_ids), tuple(spec.class_names)))
        path = out or Path("build") / f"{model}-{job.scheme}".replace(":", "")
        bundle = build(job, path, StageStore(cache or default_store(), force), eval_data, force, console)
        _report(bundle, job.targets, console)
    except CalibError as error:
        raise IntvitError(error.what, where=error.where, why=error.why, next=error.next) from error
    if layers:
        report_layers(bundle.manifest.provenance["calibration"], path.with_name(f"{path.name}-layers.json"), console)
    _summary(bundle, path, time.monotonic() - started, console)


def _job(
    model: str,
    bits: str,
    method: str,
    budget: str,
    correction: str | None,
    images: int,
    iterations: int | None,
    checkpoint: str | None,
    calib_data: Path | None,
    target: list[str] | None,
    device: str,
    seed: int,
    option: list[str] | None,
) -> Job:
    """Check every option before any work is done."""
    scheme = parse(bits)
    require_buildable(scheme)
    chosen = recipe(method, budget, correction)
    if (method == REAL) != (calib_data is not None):
        raise IntvitError(
            "--method real and --calib-data go together",
            where="--calib-data",
            why="real images are read for comparison only, and only when asked for by both",
            next="give both, or neither for a data-free build",
        )
    targets, where = _targets(target), _device(device)
    require_carried(scheme, targets)
    options = _options(option, targets)
    loaded = load(model, checkpoint, seed)
    require_groups(loaded.module, scheme)
    return Job(loaded, scheme, chosen, images, iterations, calib_data, seed, where, targets, options)


if __name__ == "__main__":
    cli.run(main)

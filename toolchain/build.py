"""``python -m toolchain.build --model deit_s --bits w4a8``: a timm model in, a verified bundle out.

What is wrong with a command line is said before torch is imported; only a model's name is timm's to know.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from calib.align.config import FORMS
from calib.given import (
    IMAGE_LIMIT,
    RANDOM,
    SEED_LIMIT,
    CheckpointOption,
    DeviceOption,
    ModelOption,
    device_of,
    require_checkpoint,
    require_device,
)
from calib.memory import require_room
from calib.output import require_place
from calib.recipes import BUDGETS, DEFAULT_BUDGET, DEFAULT_METHOD, REAL, methods, recipe, with_own_priors
from calib.scheme import parse, require_buildable
from runtime import cli
from runtime.backends.base import backend_class
from runtime.bundle import Bundle
from runtime.classes import Classes
from runtime.console import Console
from runtime.dataset import load_folder, require_folder
from runtime.errors import IntvitError
from toolchain.layers import report_layers
from toolchain.output import REPORT, check_out
from toolchain.stages import CacheOption, StageStore, store_at
from toolchain.targets.choices import (
    DEFAULT_TARGET,
    TARGETS,
    TensorRtOptions,
    backend_option,
    measured_backend,
    option_choices,
    require_carried,
)

DEFAULT_IMAGES = 128


def _summary(bundle: Bundle, out: Path, seconds: float, console: Console) -> None:
    manifest = bundle.manifest

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)  # commands are copied whole

    say(f"\n{manifest.name} -> {out}")
    if manifest.weights == "random":
        say("RANDOM WEIGHTS: LATENCY MEANS SOMETHING, ACCURACY MEANS NOTHING", "bold red")
    source = "no real image read" if manifest.data_free else "REAL IMAGES WERE READ FOR CALIBRATION"
    say(f"{manifest.method}, {manifest.images} images, seed {manifest.seed}: {source}")
    for row in manifest.provenance["calibration"]:
        if row["step"] == "widen":
            say(
                f"{row['layer']} keeps 8 bits: its largest channel reaches {row['largest']:.0f}, the median one "
                f"{row['median']:.1f} ({manifest.scheme}+uniform leaves none wider)"
            )
    sizes = [f"{entry.target} graph {entry.bytes / 1e6:.1f} MB" for entry in manifest.files if entry.role == "graph"]
    say(f"{', '.join(sizes)}, float32 twin {bundle.entry('float_twin').bytes / 1e6:.1f} MB")
    if reported := manifest.reported:
        say(
            f"top-1 on {reported['images']} pictures: float32 {reported['float_top1']:.2f}, "
            f"fake-quant {reported['fake_quant_top1']:.2f}, engine {reported['engine_top1']:.2f} "
            f"(standard error of the difference {reported['stderr']:.2f})"
        )
    say(f"{seconds:.0f} s. What is known of it: {out / REPORT}")
    say(f"Next: python -m runtime.bench {shlex.quote(str(out))}{backend_option(bundle.targets)}")


def _command(options: dict[str, Any]) -> str:
    """What to type for the same bundle: options that are None are left out, a list is an option for each."""
    words = ["python", "-m", "toolchain.build"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [name, str(one)]
    return shlex.join(words)


def _targets(chosen: list[str] | None) -> list[str]:
    targets = sorted({name for text in chosen or [DEFAULT_TARGET] for name in text.split(",")})
    if unknown := [target for target in targets if target not in TARGETS]:
        raise IntvitError(f"unknown target {unknown[0]!r}", where="--target", next="known: " + ", ".join(TARGETS))
    return targets


def _require_both_or_neither(method: str, calib_data: Path | None) -> None:
    if (method == REAL) != (calib_data is not None):
        raise IntvitError(
            "--method real and --calib-data go together",
            where="--calib-data",
            why="real images are read for comparison only, and only when asked for by both",
            next="give both, or neither for a data-free build",
        )


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
    model: ModelOption,
    bits: Annotated[
        str,
        typer.Option("--bits", help="Scheme: w8a8, w4a8, w4a16+g64, w8a8+attn8, w8a8+res8, w8a8+int, ..., or auto:5."),
    ],
    method: Annotated[
        str, typer.Option("--method", help="Where calibration images come from: " + ", ".join(methods()) + ".")
    ] = DEFAULT_METHOD,
    budget: Annotated[
        str, typer.Option("--budget", help="How long calibration may take: " + ", ".join(BUDGETS) + ".")
    ] = DEFAULT_BUDGET,
    correction: Annotated[
        str | None,
        typer.Option("--correction", help="Of layer outputs: " + ", ".join(FORMS) + "; default: the method's."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, max=IMAGE_LIMIT, help="How many calibration images.")
    ] = DEFAULT_IMAGES,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Synthesis steps; default: the method's.")
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="FILE.py=WEIGHT", help="A loss of your own for the images."),
    ] = None,
    checkpoint: CheckpointOption = None,
    calib_data: Annotated[
        Path | None, typer.Option("--calib-data", help="Folder of real images, for --method real.")
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option("--eval", help="Labelled folder DIR/<class>/*.jpg; only measured on.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help=f"Dialects to write: {', '.join(TARGETS)}, or several: ort,tensorrt; default {DEFAULT_TARGET}.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help=f"Of the tensorrt dialect: {option_choices()}."),
    ] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option("--seed", min=-SEED_LIMIT, max=SEED_LIMIT, help="Same seed, same bytes.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="The bundle; default build/<model>-<bits>.")] = None,
    cache: CacheOption = None,
    force: Annotated[bool, typer.Option("--force", help="Do every stage again and replace what is at --out.")] = False,
    layers: Annotated[
        bool, typer.Option("--report-layers", help="Show every layer's SQNR, step by step; also in OUT-layers.json.")
    ] = False,
) -> None:
    """Quantize a Vision Transformer without data and write a bundle of real integer graphs."""
    started = time.monotonic()
    console = Console()
    try:
        scheme, chosen, targets = parse(bits), recipe(method, budget, correction), _targets(target)
        require_buildable(scheme)
        _require_both_or_neither(method, calib_data)
        if prior:
            chosen = with_own_priors(chosen, prior)
        options = _options(option, targets)
        require_carried(scheme, targets, options)
        require_checkpoint(checkpoint)
        require_device(device)
        if eval_data is not None:
            backend_class(measured_backend(targets))
            require_folder(eval_data)
        path = out or Path("build") / f"{model}-{scheme}".replace(":", "")
        require_place(path)
        check_out(path, f"{model}-{scheme}", force)
        store = store_at(cache)
        # Not at the top: --help and every error above need not wait for torch, timm and onnx.
        from calib.models import load
        from calib.quant.integer_only import require_integer_form
        from calib.quant.surgery import require_groups
        from toolchain.assemble import build, write_reports
        from toolchain.pipeline import Job

        where = device_of(device)
        loaded = load(model, checkpoint, seed)
        if chosen.data_free:  # a folder may hold fewer than are asked for
            require_room(images, loaded.spec.input_size)
        require_groups(loaded.module, scheme)
        if scheme.integer:
            require_integer_form(loaded.module)
        if eval_data is not None:
            load_folder(eval_data, Classes(tuple(loaded.spec.class_ids), tuple(loaded.spec.class_names)))
        again = _command(
            {
                "--model": model,
                "--bits": str(scheme),
                "--method": method,
                "--budget": budget,
                "--correction": correction,
                "--images": images,
                "--iterations": iterations,
                "--prior": [Path(text).name for text in prior or ()],
                "--checkpoint": checkpoint if checkpoint in (None, RANDOM) else "FILE",
                "--calib-data": None if calib_data is None else "DIR",
                "--target": ",".join(targets),
                "--option": option,
                "--device": where if where == "cuda" else None,
                "--seed": seed,
            }
        )
        job = Job(loaded, scheme, chosen, images, iterations, calib_data, seed, where, targets, options, again)
        bundle = build(job, path, StageStore(store, force), eval_data, console)
        write_reports(bundle, targets, console)
    except KeyboardInterrupt:
        if not force:
            console.print("the same command goes on from here: what is done is kept", highlight=False)
        raise
    if layers:
        report_layers(bundle.manifest.provenance["calibration"], path.with_name(f"{path.name}-layers.json"), console)
    _summary(bundle, path, time.monotonic() - started, console)


if __name__ == "__main__":
    cli.run(main)

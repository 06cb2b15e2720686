"""``python -m calib.synthesize --model vit_t --method best --images 128 --out DIR``: images from the network itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from safetensors.torch import save_file

from calib.command import DebugOption, run
from calib.errors import IntvitError
from calib.models import LoadedModel, load
from calib.preview import contact_sheet
from calib.progress import task
from calib.synthesis.engine import SyntheticSet, assemble, make_groups, starting_images
from calib.synthesis.methods import METHODS, SynthesisConfig, find, with_iterations
from calib.synthesis.own_prior import parse_prior, with_priors
from calib.synthesis.processes import Place, gather, joined
from calib.synthesis.show import show
from calib.synthesis.twin import has_fast_bf16

IMAGES, META, PREVIEW = "images.safetensors", "images.json", "preview.png"
SHOWN = 32  # images whose start is compared with their end in the figures


def recipe(loaded: LoadedModel, config: SynthesisConfig, seed: int, device: str) -> dict[str, Any]:
    """All that decides the images, as JSON; its digest names the folder of checkpoints."""
    return {
        "model": loaded.spec.name,
        "tag": loaded.spec.tag,
        "weights": loaded.digest,
        "config": asdict(config),
        "seed": seed,
        "device": device,
        "bf16": has_fast_bf16(device),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def check_out(out: Path, force: bool) -> None:
    """Refuse an ``--out`` that is there already, unless it is a set of ours and ``force`` is given."""
    if not os.path.lexists(out):
        return
    if not force:
        raise IntvitError("there is something at --out already", where=str(out), next="choose another, or --force")
    if not (out / META).is_file():
        raise IntvitError(
            "--force only replaces a set of images", where=str(out), why=f"it holds no {META}", next="choose another"
        )


def write_set(
    made: SyntheticSet, config: SynthesisConfig, loaded: LoadedModel, about: dict[str, Any], out: Path
) -> None:
    """Images, labels, meta and figures as the folder ``out``, which appears whole or not at all."""
    assert made.classes is not None
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        tensors = {"pixels": made.images, "labels": made.labels, "classes": made.classes}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / IMAGES)
        contact_sheet(made.images, partial / PREVIEW)
        shown = replace(config, images=min(config.images, SHOWN))
        before = starting_images(loaded.module, loaded.spec, shown, about["seed"])
        measures = show(made, before, loaded.module, loaded.spec, partial)
        text = json.dumps(about | {"measures": measures, "history": made.history}, indent=1)
        (partial / META).write_text(text + "\n", "utf-8")
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def synthesise_to(
    loaded: LoadedModel, config: SynthesisConfig, seed: int, kind: str, out: Path, place: Place
) -> SyntheticSet | None:
    """Make the set and write it; None in every process but the first."""
    about = recipe(loaded, config, seed, kind)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    work = out.with_name(f".{out.name}.{digest}.work")
    begun = time.monotonic()
    label = f"synthesis ({config.method}), images"
    bar = task(label, config.images) if place.rank == 0 else nullcontext(lambda n=1, note="": None)
    with bar as advance:
        last = 0

        def report(done: int, total: int, note: str) -> None:
            nonlocal last
            now = done * config.images // max(total, 1)
            advance(now - last, note)
            last = now

        mine = make_groups(
            loaded.module, loaded.spec, config, seed, place.device(kind), work, report, place.workers(), place.share
        )
    made = gather(mine, place)
    if made is None:
        return None
    whole = assemble(made)
    about["seconds"] = round(time.monotonic() - begun, 1)
    about["processes"] = place.world
    write_set(whole, config, loaded, about, out)
    shutil.rmtree(work, ignore_errors=True)
    return whole


def _device(choice: str) -> str:
    if choice not in ("auto", "cpu", "cuda"):
        raise IntvitError(f"unknown device {choice!r}", where="--device", next="auto, cpu or cuda")
    if choice == "cuda" and not torch.cuda.is_available():
        raise IntvitError("torch sees no CUDA device", where="--device cuda", next="--device cpu")
    return "cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu"


def main(
    model: Annotated[
        str, typer.Option("--model", help="deit_t/s/b, vit_t/s/b, swin_t/s/b, vit_digits, or a timm tag.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    method: Annotated[str, typer.Option("--method", help=", ".join(METHODS) + ".")] = "best",
    images: Annotated[int, typer.Option("--images", min=1, help="How many.")] = 128,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights: a .safetensors, .pt or .pth file, or 'random'.")
    ] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Default: the method's own.")] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="FILE.py=WEIGHT", help="A loss of your own beside the method's."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images optimised together; default: what fits the memory.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same bytes.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the set that is at --out.")] = False,
    debug: DebugOption = False,
) -> None:
    """Make calibration images from a network alone; torchrun shares the work among processes, with the same result."""
    config = replace(find(method), images=images, batch=batch)
    if iterations is not None:
        config = with_iterations(config, iterations)
    config = with_priors(config, [parse_prior(text) for text in prior or ()])
    kind = _device(device)
    check_out(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(model, checkpoint, seed)
    with joined() as place:
        made = synthesise_to(loaded, config, seed, kind, out, place)
    if made is not None:
        print(f"{len(made.images)} images -> {out}")


if __name__ == "__main__":
    run(main)

"""``python -m calib.synthesize --model vit_t --method best --images 128 --out DIR``: images from the network itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from calib.command import run
from calib.given import (
    IMAGE_LIMIT,
    SEED_LIMIT,
    CheckpointOption,
    DeviceOption,
    ModelOption,
    device_of,
    require_checkpoint,
    require_device,
)
from calib.memory import require_room
from calib.output import check_out
from calib.synthesis.methods import METHODS, find, with_iterations
from calib.synthesis.own_prior import parse_prior, with_priors


def main(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    method: Annotated[str, typer.Option("--method", help=", ".join(METHODS) + ".")] = "best",
    images: Annotated[int, typer.Option("--images", min=1, max=IMAGE_LIMIT, help="How many.")] = 128,
    checkpoint: CheckpointOption = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Default: the method's own.")] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="FILE.py=WEIGHT", help="A loss of your own beside the method's."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images optimised together; default: what fits the memory.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=-SEED_LIMIT, max=SEED_LIMIT, help="Same seed, same bytes.")] = 0,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the set that is at --out.")] = False,
) -> None:
    """Make calibration images from a network alone; torchrun shares the work among processes, with the same result."""
    config = replace(find(method), images=images, batch=batch)
    if iterations is not None:
        config = with_iterations(config, iterations)
    config = with_priors(config, [parse_prior(text) for text in prior or ()])
    require_checkpoint(checkpoint)
    require_device(device)
    check_out(out, force)
    from calib.image_set import synthesise_to  # not above: --help and wrong options need not wait for torch
    from calib.models import load
    from calib.synthesis.processes import joined

    kind = device_of(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(model, checkpoint, seed)
    require_room(images, loaded.spec.input_size)
    with joined() as place:
        made = synthesise_to(loaded, config, seed, kind, out, place, force)
    if made is not None:
        print(f"{len(made.images)} images -> {out}")


if __name__ == "__main__":
    run(main)

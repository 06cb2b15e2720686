"""``python -m toolchain.sensitivity --model deit_s --bits w4a8``: which layers cost the most, the worst first."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from calib.given import IMAGE_LIMIT, SEED_LIMIT, CheckpointOption, ModelOption, require_checkpoint
from calib.memory import require_room
from calib.recipes import recipe
from calib.scheme import parse, require_buildable
from calib.synthesis.methods import METHODS
from runtime import cli
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.progress import task
from toolchain.stages import CacheOption, StageStore, store_at

if TYPE_CHECKING:
    from calib.sensitivity import Sensitivity

STEPS = 1_000


def main(
    model: ModelOption,
    bits: Annotated[str, typer.Option("--bits", help="Scheme every layer is tried at, alone: w8a8, w4a8, ...")],
    method: Annotated[
        str, typer.Option("--method", help="Where the images come from: " + ", ".join(METHODS) + ".")
    ] = "procedural",
    images: Annotated[int, typer.Option("--images", min=1, max=IMAGE_LIMIT, help="How many images.")] = 32,
    checkpoint: CheckpointOption = None,
    seed: Annotated[int, typer.Option("--seed", min=-SEED_LIMIT, max=SEED_LIMIT, help="Same seed, same figures.")] = 0,
    json: cli.JsonOption = None,
    cache: CacheOption = None,
) -> None:
    """Rank the layers of a Vision Transformer by what rounding each alone does to its answers."""
    scheme = parse(bits)
    require_buildable(scheme)
    chosen = recipe(method)
    if not chosen.data_free:
        raise IntvitError("sensitivity reads no real images", where="--method", next="name a data-free method")
    require_checkpoint(checkpoint)
    store = store_at(cache)
    from calib.models import load  # not above: --help and wrong options need not wait for torch
    from calib.quant.integer_only import require_integer_form
    from calib.quant.surgery import require_groups
    from calib.sensitivity import sensitivities
    from toolchain.pipeline import Job, images_stage, read_images, stepper

    loaded = load(model, checkpoint, seed)
    require_room(images, loaded.spec.input_size)
    require_groups(loaded.module, scheme)
    if scheme.integer:
        require_integer_form(loaded.module)
    job = Job(loaded, scheme, chosen, images, None, None, seed, "cpu", [])
    pixels = read_images(images_stage(job, StageStore(store)), job)
    with task(f"sensitivity ({scheme})", STEPS) as advance:
        found = sensitivities(job.loaded.module, scheme, pixels, seed, progress=stepper(advance, STEPS))
    _show(found, Console())
    if json is not None:
        atomic_write_json(json, [asdict(each) for each in found])


def _show(found: list[Sensitivity], console: Console) -> None:
    table = Table("layer", "bits", "weights", "KL, nats", "flips %", "SQNR dB", title="each layer alone in integers")
    for each in found:
        width = f"w{each.weight_bits}a{each.act_bits}"
        figures = (f"{each.divergence:.2e}", f"{each.flips:.1f}", f"{each.sqnr_db:.1f}")
        table.add_row(each.layer, width, str(each.weights), *figures)
    console.print(table)


if __name__ == "__main__":
    cli.run(main)

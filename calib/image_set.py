"""A set of synthetic images as a folder: made, shown, and written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from calib.folder import meant
from calib.models import LoadedModel
from calib.output import IMAGES, META, PREVIEW, filling
from calib.preview import contact_sheet
from calib.progress import task
from calib.synthesis.engine import SyntheticSet, assemble, make_groups, starting_images
from calib.synthesis.methods import SynthesisConfig, as_record
from calib.synthesis.processes import Place, agree, gather
from calib.synthesis.show import show
from calib.synthesis.twin import has_fast_bf16

SHOWN = 32  # images whose start is compared with their end in the figures


def recipe(loaded: LoadedModel, config: SynthesisConfig, seed: int, device: str) -> dict[str, Any]:
    """All that decides the images, as JSON; its digest names the folder of checkpoints."""
    return {
        "model": loaded.spec.name,
        "tag": loaded.spec.tag,
        "weights": loaded.digest,
        "config": as_record(config),
        "seed": seed,
        "device": device,
        "bf16": has_fast_bf16(device),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


def write_set(
    made: SyntheticSet, config: SynthesisConfig, loaded: LoadedModel, about: dict[str, Any], out: Path, force: bool
) -> None:
    """Images, labels, meta and figures as the folder ``out``, which appears whole or not at all.

    Raises:
        IntvitError: there is something there that ``force`` does not let go; see :func:`calib.output.filling`.
    """
    assert made.classes is not None
    with filling(out, force) as folder:
        tensors = {"pixels": made.images, "labels": made.labels, "classes": made.classes}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / IMAGES)
        contact_sheet(made.images, folder / PREVIEW)
        shown = replace(config, images=min(config.images, SHOWN))
        before = starting_images(loaded.module, loaded.spec, shown, about["seed"])
        measures = show(made, before, loaded.module, loaded.spec, folder)
        text = json.dumps(about | {"measures": measures, "history": made.history}, indent=1)
        (folder / META).write_text(text + "\n", "utf-8")


def synthesise_to(
    loaded: LoadedModel, config: SynthesisConfig, seed: int, kind: str, out: Path, place: Place, force: bool = False
) -> SyntheticSet | None:
    """Make the set and write it; None in every process but the first.

    A set that is at ``out`` by then is replaced only with ``force``.

    Raises:
        IntvitError: the optimisation diverged, or there is something at ``out`` by then. The checkpoints stay.
    """
    out = meant(out)
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
            loaded.module,
            loaded.spec,
            config,
            seed,
            place.device(kind),
            work,
            report,
            place.workers(),
            place.share,
            agree=partial(agree, place=place),
        )
    made = gather(mine, place)
    if made is None:
        return None
    whole = assemble(made, config.images)
    about["seconds"] = round(time.monotonic() - begun, 1)
    about["processes"] = place.world
    write_set(whole, config, loaded, about, out, force)
    works = f".{glob.escape(out.name)}." + "[0-9a-f]" * 16 + ".work"
    for left in out.parent.glob(works):  # this run's, and those of others that failed here
        shutil.rmtree(left, ignore_errors=True)
    return whole

"""Image sets for the synthesis benches: made once, kept in build/benches/synthesis-sets, and measured.

A set is named by its method's numbers, its seed and the weights; code that changes the images without changing those
needs ``--force`` in the bench that asks for the set. A set of n images holds the first n of a larger one, so a set is
made at its largest size and cut.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benches.real_accuracy import PHOTOGRAPHS
from benches.verbs import WORK
from calib.models import LoadedModel
from calib.synthesis.engine import SyntheticSet, synthesise
from calib.synthesis.measures import measure, prior_distance
from calib.synthesis.methods import SynthesisConfig
from calib.synthesis.plan import Group
from calib.synthesis.priors.attention_prior import layouts
from calib.synthesis.state import start
from runtime.classes import Classes
from runtime.dataset import Unreadable, batches, load_folder
from runtime.progress import task
from toolchain.bundle import preprocess_rule

SETS = WORK / "synthesis-sets"


@dataclass(frozen=True)
class ImageSet:
    """Pixels (B, 3, H, W) float16 in [0, 1], classes (B, M) padded with -1, and how it was made."""

    pixels: Tensor
    classes: Tensor
    about: dict[str, Any]

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images."""
        return ImageSet(self.pixels[:count], self.classes[:count], self.about)


def name_of(loaded: LoadedModel, config: SynthesisConfig, seed: int) -> str:
    """A short name for everything that decides a set's images but their number."""
    text = json.dumps([asdict(replace(config, images=0)), seed, loaded.digest], sort_keys=True)
    stem = re.sub(r"[^a-z0-9]+", "-", config.method.lower())
    return f"{stem}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def get(loaded: LoadedModel, config: SynthesisConfig, seed: int, device: str = "cpu") -> ImageSet:
    """The set of ``config.images`` images: read, or made (an interrupted making goes on)."""
    folder = SETS / name_of(loaded, config, seed)
    kept = _read(folder)
    if kept is None or len(kept.pixels) < config.images:
        _make(loaded, config, seed, device, folder)
        kept = _read(folder)
        assert kept is not None
    return kept.first(config.images)


def _read(folder: Path) -> ImageSet | None:
    if not (folder / "about.json").is_file():
        return None
    tensors = load_file(folder / "images.safetensors")
    return ImageSet(tensors["pixels"], tensors["classes"], json.loads((folder / "about.json").read_text("utf-8")))


def _make(loaded: LoadedModel, config: SynthesisConfig, seed: int, device: str, folder: Path) -> None:
    begun = time.monotonic()
    work = folder.with_name(folder.name + ".work")
    with task(f"{config.method}, seed {seed}: {config.images} images, steps in 1000", 1000) as advance:
        last = 0

        def report(done: int, total: int, note: str) -> None:
            nonlocal last
            advance(done * 1000 // max(total, 1) - last, note)
            last = done * 1000 // max(total, 1)

        made = synthesise(loaded.module, loaded.spec, config, seed, device, work, report)
    about = {
        "method": config.method,
        "images": config.images,
        "iterations": config.iterations,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        "config": asdict(config),
        "device": device,
    }
    _write(made, about, folder)
    shutil.rmtree(work, ignore_errors=True)


def _write(made: SyntheticSet, about: dict[str, Any], folder: Path) -> None:
    assert made.classes is not None
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({"pixels": made.images.contiguous(), "classes": made.classes}, partial / "images.safetensors")
    (partial / "about.json").write_text(json.dumps(about) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def claims(loaded: LoadedModel, made: ImageSet, seed: int, spdfq: SynthesisConfig) -> dict[str, Any]:
    """What the float network makes of a set: agreement, head similarity, patch entropy, distance from priors.

    The priors are those that ``spdfq`` draws for images of the same index and seed.
    """
    found = asdict(measure(loaded.module, loaded.spec, made.pixels, made.classes))
    count = len(made.pixels)
    state = start(loaded.spec, layouts(loaded.module), Group(tuple(range(count)), spdfq), seed)
    mean = {
        name: sum(found[name]) / len(found[name])
        for name in ("head_similarity", "patch_entropy", "confidence")
        if found[name]
    }
    return {
        "method": made.about["method"],
        "images": count,
        "iterations": made.about["iterations"],
        "seed": seed,
        "seconds": made.about["seconds"],
        "made_images": made.about["images"],
        "agreement": found["agreement"],
        **mean,
        "prior_distance": prior_distance(loaded.module, loaded.spec, made.pixels, state.priors),
    }


def photographs(loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Every photograph as the network's input (M, 3, H, W) float32, and its label (M,) int64."""
    spec = loaded.spec
    samples = load_folder(PHOTOGRAPHS, Classes(spec.class_ids, spec.class_names))
    parts = list(batches(samples, preprocess_rule(spec), Unreadable(), batch=50))
    images = torch.cat([torch.from_numpy(part.images) for part in parts])
    return images, torch.cat([torch.from_numpy(part.labels) for part in parts])

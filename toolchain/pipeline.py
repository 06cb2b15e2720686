"""The stages of a build, each with exactly what its result depends on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.models import LoadedModel
from calib.precision import has_fast_bf16
from calib.real_images import list_images, load_images
from calib.recipes import Recipe
from calib.scheme import Scheme
from calib.synthesis.engine import SyntheticSet, synthesise
from calib.synthesis.methods import NOISE, as_record, with_iterations
from runtime.files import sha256_file
from runtime.progress import task
from toolchain.bundle import write_golden, write_side_files
from toolchain.lowering import lower
from toolchain.stages import StageResult, StageStore
from toolchain.targets.choices import TensorRtOptions
from toolchain.traces import write_traces

# What a stage's key covers: every module that has a part in its result. A test follows the imports.
MODEL_CODE = (
    "calib/models.py",
    "calib/given.py",
    "calib/precision.py",
    "calib/memory.py",
    "calib/checkpoint.py",
    "calib/scheme.py",
    "calib/quant",
    "toolchain/pipeline.py",
)
SYNTHESIS_CODE = (*MODEL_CODE, "calib/synthesis", "calib/taps.py")
REAL_CODE = (*MODEL_CODE, "calib/real_images.py")
CALIBRATE_CODE = (
    *REAL_CODE,
    "calib/align",
    "calib/allocate.py",
    "calib/sensitivity.py",
    "calib/calibrate.py",
    "calib/calibrated.py",
    "calib/resume.py",
    "calib/taps.py",
)
LOWER_CODE = (
    *CALIBRATE_CODE,
    "calib/synthesis",
    "calib/preview.py",
    "toolchain/graph",
    "toolchain/passes",
    "toolchain/rules",
    "toolchain/targets",
    "toolchain/lowering.py",
    "toolchain/bundle.py",
    "toolchain/traces.py",
)


@dataclass(frozen=True)
class Job:
    """One build: the network, its scheme, and where its images come from.

    Attributes:
        images: how many calibration images. iterations: of the synthesis, None = the method's own.
        calib_data: folder of real images, for ``--method real`` only. tensorrt: of that dialect. command: what to
        type for the same bundle, for its manifest; it decides nothing.
    """

    loaded: LoadedModel
    scheme: Scheme
    recipe: Recipe
    images: int
    iterations: int | None
    calib_data: Path | None
    seed: int
    device: str
    targets: list[str]
    tensorrt: TensorRtOptions = field(default_factory=TensorRtOptions)
    command: str = ""

    @property
    def target_options(self) -> dict[str, dict[str, str]]:
        """The options of every chosen target that has some."""
        return {"tensorrt": asdict(self.tensorrt)} if "tensorrt" in self.targets else {}


def environment(device: str) -> dict[str, Any]:
    """What besides inputs and code decides the bytes of a computation."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "bf16": has_fast_bf16(device.split(":")[0]),
    }


def images_stage(job: Job, store: StageStore) -> StageResult:
    """images.safetensors: ``pixels`` (B, 3, H, W) float16 in [0, 1] and ``labels`` (B,); history.json."""
    if job.recipe.synthesis is None:
        return _real_stage(job, store)
    config = replace(job.recipe.synthesis, images=job.images)
    if job.iterations is not None:
        config = with_iterations(config, job.iterations)
    spec = job.loaded.spec
    inputs = {
        "spec": asdict(spec),
        "weights": job.loaded.digest,
        "config": as_record(config),
        "seed": job.seed,
        "environment": environment(job.device),
    }

    def work(folder: Path, checkpoints: Path) -> None:
        with task(f"synthesis ({config.method}), images", config.images) as advance:
            step = stepper(advance, config.images)
            made = synthesise(job.loaded.module, spec, config, job.seed, job.device, checkpoints, step)
        save_images(made, folder)

    return store.run("synthesise", inputs, SYNTHESIS_CODE, work)


def save_images(made: SyntheticSet, folder: Path) -> None:
    """Write a synthetic set as images.safetensors and history.json."""
    tensors = {"pixels": made.images.contiguous(), "labels": made.labels.contiguous()}
    if made.classes is not None:
        tensors["classes"] = made.classes.contiguous()
    save_file(tensors, folder / "images.safetensors")
    (folder / "history.json").write_text(json.dumps(made.history) + "\n", "utf-8")


def _real_stage(job: Job, store: StageStore) -> StageResult:
    assert job.calib_data is not None
    paths = list_images(job.calib_data)
    inputs = {
        "spec": asdict(job.loaded.spec),
        "images": job.images,
        "files": [sha256_file(path) for path in paths],
    }

    def work(folder: Path, checkpoints: Path) -> None:
        assert job.calib_data is not None
        images = load_images(job.calib_data, job.loaded.spec, job.images)
        pixels = job.loaded.spec.denormalise(images).clamp(0, 1)
        save_images(SyntheticSet(pixels, torch.full((len(pixels),), -1)), folder)

    return store.run("real-images", inputs, REAL_CODE, work)


def read_images(stage: StageResult, job: Job) -> Tensor:
    """The stage's images as the network's input: (B, 3, H, W) float32, normalised."""
    return job.loaded.spec.normalise(read_pixels(stage))


def read_pixels(stage: StageResult) -> Tensor:
    """The stage's images as float32 pixels in [0, 1]."""
    return load_file(stage.folder / "images.safetensors")["pixels"].float()


def calibrate_stage(job: Job, store: StageStore, images: StageResult) -> StageResult:
    """model.safetensors and model.json: the calibrated model."""
    inputs = {
        "spec": asdict(job.loaded.spec),
        "weights": job.loaded.digest,
        "scheme": str(job.scheme),
        "images": images.key,
        "config": asdict(job.recipe.align),
        "seed": job.seed,
        "environment": environment(job.device),
    }

    def work(folder: Path, checkpoints: Path) -> dict[str, Any]:
        config = replace(job.recipe.align, seed=job.seed)
        batch, network = read_images(images, job).to(job.device), job.loaded.module.to(job.device)
        with task(f"calibration ({job.scheme})", 1_000) as advance:
            step = stepper(advance, 1_000)
            made = calibrate(network, job.loaded.spec, job.scheme, batch, config, step, checkpoints)
        made.save(folder)
        return {"steps_seconds": {name: round(value, 3) for name, value in made.seconds.items()}}

    return store.run("calibrate", inputs, CALIBRATE_CODE, work)


def lower_stage(job: Job, store: StageStore, images: StageResult, calibrated: StageResult) -> StageResult:
    """Every file of the bundle but its manifest."""
    inputs = {
        "calibrated": calibrated.key,
        "images": images.key,
        "weights": job.loaded.digest,
        "targets": job.targets,
        "options": job.target_options,
        "environment": environment("cpu"),
    }

    def work(folder: Path, checkpoints: Path) -> None:
        model = CalibratedModel.load(calibrated.folder)
        original = job.loaded.module.cpu()
        lower(model, original, job.targets, folder, job.tensorrt)
        chosen = golden_images(job, images)
        write_golden(model, original, chosen, folder / "golden/golden.safetensors")
        write_traces(model, original, chosen, images.folder / "history.json", folder)
        write_side_files(model, read_pixels(images) if job.recipe.data_free else _noise(job), folder)

    return store.run("lower", inputs, LOWER_CODE, work)


def golden_images(job: Job, images: StageResult) -> Tensor:
    """Up to 8 images for the golden vectors: synthetic ones, or noise where the calibration images are somebody's."""
    pixels = read_pixels(images) if job.recipe.data_free else _noise(job)
    return job.loaded.spec.normalise(pixels[:8])


def _noise(job: Job) -> Tensor:
    config = replace(NOISE, images=8)
    return synthesise(job.loaded.module, job.loaded.spec, config, job.seed).images.float()


def stepper(advance: Any, scale: int | None = None) -> Any:
    """A (done, total, note) callback on top of one that takes increments."""
    last = 0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        now = done if scale is None else done * scale // max(total, 1)
        advance(now - last, note)
        last = now

    return report

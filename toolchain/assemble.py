"""Run the stages of a build and put the bundle together: what ``toolchain.build`` does once it knows its options."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from calib.calibrated import CalibratedModel
from runtime.bundle import Bundle, write_manifest
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.manifest import MANIFEST_DIGEST
from toolchain.bundle import Origin, make_manifest
from toolchain.evaluate import measure
from toolchain.inspect import inspect
from toolchain.output import REPORT, filling
from toolchain.pipeline import Job, calibrate_stage, images_stage, lower_stage, read_pixels
from toolchain.report import write_report
from toolchain.report.gather import REPORTS
from toolchain.stages import RECORD, StageStore
from toolchain.targets.choices import DEFAULT_TARGET, measured_backend

COST = "cost.json"


def build(job: Job, out: Path, store: StageStore, evaluate_on: Path | None, console: Console) -> Bundle:
    """Run every stage of ``job`` and put the bundle at ``out``.

    Raises:
        IntvitError: whatever a stage raises; ``out`` is then what it was before.
    """
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
        images=len(read_pixels(images)),  # a folder of real ones may hold fewer than were asked for
        seed=job.seed,
        data_free=job.recipe.data_free,
        stages={"images": images.key, "calibrate": calibrated.key, "lower": lowered.key},
        options=job.target_options,
        command=job.command,
    )
    cost = {"images": images.cost, "calibrate": calibrated.cost, "lower": lowered.cost}
    name = f"{job.loaded.spec.name}-{job.scheme}"
    with filling(out, name, store.force) as partial:
        _assemble(model, origin, job.targets, lowered.folder, partial, evaluate_on, cost)
        _keep_measured(out / REPORTS, partial / REPORTS)
    return Bundle.open(out)


def _assemble(
    model: CalibratedModel,
    origin: Origin,
    targets: list[str],
    lowered: Path,
    folder: Path,
    evaluate_on: Path | None,
    cost: dict[str, Any],
) -> None:
    """Copy the lowered files into ``folder`` beside a manifest, and measure.

    What the stages cost goes into ``cost.json``, which the manifest does not list: it differs from run to run.
    """
    for path in sorted(lowered.rglob("*")):  # not copytree, whose error has lost what a full disk says
        if path.is_file() and path.name != RECORD:
            place = folder / path.relative_to(lowered)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    folder.chmod(0o755)
    manifest = make_manifest(model, origin, targets, folder)
    write_manifest(folder, manifest)
    atomic_write_json(folder / COST, cost)
    if evaluate_on is not None:
        reported = measure(Bundle.open(folder), model, evaluate_on, measured_backend(targets))
        write_manifest(folder, manifest.model_copy(update={"reported": reported}))


def _keep_measured(held: Path, fresh: Path) -> None:
    """Bring over the figures that were measured of the very bundle that is made again: the same bytes."""
    try:
        same = (held.parent / MANIFEST_DIGEST).read_bytes() == (fresh.parent / MANIFEST_DIGEST).read_bytes()
        measured = [path for path in held.iterdir() if path.is_file() and not (fresh / path.name).exists()]
    except OSError:  # there is none
        return
    for path in measured if same else ():
        shutil.copyfile(path, fresh / path.name)


def write_reports(bundle: Bundle, targets: list[str], console: Console) -> None:
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

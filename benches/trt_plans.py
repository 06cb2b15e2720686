"""Record benches/results/trt_plans.json: every graph of the TensorRT dialect, compiled by TensorRT-RTX without a GPU.

One row a network, scheme and compute capability: the size of the graph and of the plan, and what the linter warns of.
That a plan was built says that TensorRT's parser and compiler take the graph; it says nothing about its speed, and no
time is recorded. A row is saved as soon as it is there; a later run keeps it unless ``--force`` is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import onnx
import onnx_ir as ir
import torch
import typer

from benches.record import RESULTS, ROOT, kept_rows, put_row, write_result
from benches.verbs import chosen
from calib.align.config import CalibrateConfig, CorrectionConfig, LayerConfig
from calib.calibrate import calibrate
from calib.models import LoadedModel, load
from calib.scheme import parse
from runtime import machine
from runtime.backends.trt.build import Recipe, batch_shapes, build_plan
from runtime.backends.trt.library import library
from runtime.backends.trt.options import Batch
from runtime.cli import run
from runtime.errors import IntvitError
from toolchain.graph import canonical_graph, float_graph
from toolchain.onnx_file import read
from toolchain.rules import findings
from toolchain.targets import tensorrt
from toolchain.targets.choices import TensorRtOptions

NAME = "trt_plans"
PACKAGE = "tensorrt-rtx"
VIT_TINY = ROOT.parent / "shared/data/vit_tiny_patch16_224.augreg_in21k_ft_in1k/model.safetensors"
MODELS: dict[str, str | None] = {"vit_digits": None, "vit_t": str(VIT_TINY), "deit_s": "random", "swin_t": "random"}
TWIN = "float"
SCHEMES = ("w8a8", "w4a8", "w4a16", "w4a4", "w3a8", "w8a8+attn8", "w8a8+res8", TWIN)
CAPABILITIES = ("8.6", "8.9", "12.0")
KEY = ("model", "scheme", "precision", "sm")
BATCH = Batch(1, 1, 8)  # of the plan's profile
SEED = 0
# Whether a graph is taken does not depend on how well its numbers were chosen: few rows, plain rounding.
CALIBRATION = CalibrateConfig(layer=LayerConfig(rows=256, correction=CorrectionConfig("none")), fold_rows=64)
IMAGES = 2


def graph(loaded: LoadedModel, scheme: str, options: TensorRtOptions) -> ir.Model:
    """The dialect's graph of a network at ``scheme``, or of its float twin, calibrated on noise in seconds."""
    if scheme == TWIN:
        return tensorrt.twin(float_graph(loaded.module, loaded.spec), options)
    generator = torch.Generator().manual_seed(SEED)
    images = loaded.spec.normalise(torch.rand((IMAGES, *loaded.spec.input_size), generator=generator))
    model = calibrate(loaded.module, loaded.spec, parse(scheme), images, CALIBRATION)
    return tensorrt.lower(canonical_graph(model), options)


def plan_bytes(model: bytes, capability: str) -> int:
    """Bytes of the plan that TensorRT-RTX makes of an ONNX graph for GPUs of ``capability``, such as 8.6.

    Needs neither a GPU nor a driver.

    Raises:
        IntvitError: TensorRT-RTX is not installed, or refuses the graph; with its own text.
    """
    shapes = {name: batch_shapes(dims[1:], BATCH) for name, dims in _inputs(model).items()}
    recipe = Recipe(shapes, target_sm=capability)
    return len(build_plan(library("tensorrt_rtx"), model, recipe, where=f"SM {capability}").plan)


def _inputs(model: bytes) -> dict[str, tuple[int, ...]]:
    """The shape of every input of an ONNX file, 0 where a size is open."""
    values = onnx.load_from_string(model).graph.input
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def broken_rules(model: bytes) -> list[str]:
    """The ids of the linter's rules for TensorRT that an ONNX graph breaks, warnings included, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        return sorted({finding.rule for finding in findings(read(path), "tensorrt")})


def rows_of(model: str, scheme: str, options: TensorRtOptions, capabilities: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of one graph, one a compute capability, each as soon as its plan is built.

    Raises:
        IntvitError: the graph is refused.
    """
    loaded = load(model, MODELS[model], SEED)
    made = graph(loaded, scheme, options)
    data: bytes = ir.serde.serialize_model(made).SerializeToString()
    warned = broken_rules(data)
    for capability in capabilities:
        yield {
            "model": model,
            "weights": loaded.weights,
            "scheme": scheme,
            "precision": options.precision,
            "sm": capability,
            "graph_bytes": len(data),
            "plan_bytes": plan_bytes(data, capability),
            "findings": warned,
        }


def build_all(
    models: list[str],
    schemes: list[str],
    capabilities: list[str],
    options: TensorRtOptions,
    *,
    force: bool = False,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Build the plans that have no row yet, all of the selection with ``force``, and save after each."""
    rows, have = kept_rows(NAME, KEY, force, results)
    for model in models:
        for scheme in schemes:
            missing = [sm for sm in capabilities if (model, scheme, options.precision, sm) not in have]
            for row in rows_of(model, scheme, options, missing) if missing else ():
                rows = put_row(rows, row, KEY)
                builder = {PACKAGE: machine.version_of(PACKAGE)}
                write_result(NAME, {"builder": builder, "rows": rows}, seeds=[SEED], results=results)
                print(f"{model}, {scheme}, SM {row['sm']}: {row['plan_bytes'] / 1e6:.1f} MB", flush=True)
    return rows


def main(
    models: Annotated[str, typer.Option("--models", help="Comma-separated; default: " + ",".join(MODELS))] = "",
    schemes: Annotated[str, typer.Option("--schemes", help="Comma-separated; default: " + ",".join(SCHEMES))] = "",
    precision: Annotated[str, typer.Option("--precision", help="fp16, bf16 or fp32.")] = "fp16",
    force: Annotated[bool, typer.Option("--force", help="Build again what is already there.")] = False,
) -> None:
    """Compile every graph of the TensorRT dialect for three kinds of GPU, without one."""
    wanted = chosen(models, list(MODELS), "--models")
    if "vit_t" in wanted and not VIT_TINY.exists():
        if models:
            raise IntvitError("the weights are not here", where=str(VIT_TINY), next="see shared/data/README.md")
        wanted.remove("vit_t")
        print(f"vit_t is left out: no weights at {VIT_TINY}")
    options = TensorRtOptions.parse({"precision": precision})
    rows = build_all(wanted, chosen(schemes, SCHEMES, "--schemes"), list(CAPABILITIES), options, force=force)
    print(f"{RESULTS / NAME}.json: {len(rows)} rows")


if __name__ == "__main__":
    run(main)

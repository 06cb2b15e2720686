"""From a calibrated model to ONNX files: canonical graph, one dialect a target, float32 twin, all checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from calib.calibrated import CalibratedModel
from runtime.errors import IntvitError
from toolchain.graph import canonical_graph, float_graph
from toolchain.targets import openvino, ort, tensorrt
from toolchain.targets.choices import TensorRtOptions, require_carried

LOWERINGS: dict[str, Callable[..., ir.Model]] = {
    "ort": ort.lower,
    "openvino": openvino.lower,
    "tensorrt": tensorrt.lower,
}
CANONICAL, FLOAT = "canonical/model.onnx", "float/model.onnx"
TENSORRT_FLOAT = "tensorrt/float.onnx"
TWIN_TOLERANCE = 1e-3


def graph_path(target: str) -> str:
    """Where a target's graph lies in the bundle."""
    return f"{target}/model.onnx"


def lower(
    model: CalibratedModel,
    original: nn.Module,
    targets: list[str],
    folder: Path,
    options: TensorRtOptions | None = None,
) -> None:
    """Write every graph of the bundle under ``folder``; TensorRT's with its ``options``, and with a twin of its own.

    Raises:
        IntvitError: a target cannot carry the scheme, a graph is not valid ONNX, the float twin does not compute what
            the timm network computes, or a number of the network does not fit the compute type.
    """
    require_carried(model.scheme, targets)
    canonical = canonical_graph(model)
    _write(canonical, folder / CANONICAL)
    for target in targets:
        extra = (options,) if target == "tensorrt" else ()
        _write(LOWERINGS[target](canonical, *extra), folder / graph_path(target))
    del canonical  # before the float network's graph, which is the largest
    floating = float_graph(original, model.spec)
    if "tensorrt" in targets:
        _write(tensorrt.twin(floating, options), folder / TENSORRT_FLOAT)
    _write(floating, folder / FLOAT)
    _check_twin(folder / FLOAT, original, model.spec.input_size)


def _write(model: ir.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise IntvitError(
            "the graph is not valid ONNX",
            where=path.name,
            why=str(error).splitlines()[0],
            next="please report it with the command that built the bundle",
        ) from error


@torch.no_grad()
def _check_twin(path: Path, original: nn.Module, input_size: tuple[int, int, int]) -> None:
    images = torch.rand((2, *input_size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"images": images.numpy()})
    wanted = original(images).numpy()
    worst = float(np.abs(made - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))
    if not worst < TWIN_TOLERANCE:
        raise IntvitError(
            "the float32 graph does not compute what the timm network computes",
            where="float twin",
            why=f"largest relative difference of the logits {worst:.2e}, allowed {TWIN_TOLERANCE:.0e}",
            next="please report it with the name of the model",
        )

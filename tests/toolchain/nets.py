"""Tiny networks with lively weights, calibrated in a moment, and whole bundles made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.models import ModelSpec, load
from calib.scheme import parse
from runtime.bundle import Bundle, entry_for, write_manifest
from toolchain.bundle import GOLDEN, Origin, make_manifest, write_golden, write_side_files
from toolchain.graph import canonical_graph
from toolchain.lowering import lower
from toolchain.targets.choices import TARGETS

VIT: dict[str, Any] = {
    "img_size": (16, 24),
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 7,
}
SWIN: dict[str, Any] = {
    "img_size": (32, 48),
    "patch_size": 2,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 5,
}


def vit(**changes: Any) -> nn.Module:
    """A VisionTransformer of ``VIT``'s size, or as ``changes`` say, with random parameters."""
    return livened(VisionTransformer(**{**VIT, **changes}))


def swin(**changes: Any) -> nn.Module:
    """A SwinTransformer: 16 x 24 tokens in windows of 4 x 4, every second block shifted, one patch merging."""
    return livened(SwinTransformer(**{**SWIN, **changes}))


@torch.no_grad()
def livened(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn again, so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            parameter.copy_(1 + 0.3 * drawn)
        elif parameter.ndim > 1 and name.endswith("weight"):
            parameter.copy_(1.5 * drawn / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.3 * drawn)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def massive(module: nn.Module) -> nn.Module:
    """``module`` with a channel in every stream that is far larger than the others, as in trained ViTs."""
    for name, layer in module.named_modules():
        if name.endswith("blocks.0.mlp.fc2"):
            layer.weight[3] *= 60  # type: ignore[index,operator]
    return module


def spec_of(module: Any, name: str = "tiny") -> ModelSpec:
    """The spec of a network that timm's registry does not know."""
    size = getattr(module.patch_embed, "img_size", None)
    ids = tuple(str(index) for index in range(module.num_classes))
    return ModelSpec(
        name=name,
        tag=name,
        kwargs={},
        input_size=(3, int(size[0]), int(size[1])),
        mean=(0.5, 0.4, 0.6),
        std=(0.5, 0.3, 0.4),
        interpolation="bicubic",
        crop_pct=0.9,
        num_classes=len(ids),
        class_ids=ids,
        class_names=ids,
    )


def digits() -> tuple[nn.Module, ModelSpec]:
    """The packaged vit_digits and its spec."""
    loaded = load("vit_digits")
    return loaded.module.requires_grad_(False), loaded.spec


def noise(spec: ModelSpec, count: int, seed: int = 1) -> Tensor:
    """Normalised images (count, 3, H, W) of uniform noise."""
    return spec.normalise(torch.rand((count, *spec.input_size), generator=torch.Generator().manual_seed(seed)))


def calibrated(module: nn.Module, spec: ModelSpec, scheme: str, images: int = 4) -> CalibratedModel:
    """``module`` calibrated on noise."""
    return calibrate(module, spec, parse(scheme), noise(spec, images))


TINY: dict[str, Callable[[], nn.Module]] = {"vit": vit, "swin": swin}


@functools.cache
def tiny_canonical(network: str, scheme: str) -> ir.Model:
    """The canonical graph of a network of ``TINY``, calibrated on noise. Made once; nobody changes it."""
    module = TINY[network]()
    return canonical_graph(calibrated(module, spec_of(module), scheme))


def write_bundle(
    module: nn.Module,
    spec: ModelSpec,
    scheme: str,
    folder: Path,
    model: CalibratedModel | None = None,
    targets: list[str] | None = None,
) -> Path:
    """A whole bundle of a network that the command line does not know, through the toolchain's own parts."""
    model = model or calibrated(module, spec, scheme)
    targets = targets or (["ort"] if model.scheme.integer else list(TARGETS))
    lower(model, module, targets, folder)
    write_golden(model, module, noise(spec, 8, seed=2), folder / GOLDEN)
    write_side_files(model, spec.denormalise(noise(spec, 2)), folder)
    origin = Origin("random", "0" * 64, "noise", 4, 0, True, {})
    write_manifest(folder, make_manifest(model, origin, targets, folder))
    return folder


def alter_graph(folder: Path, change: Callable[[ir.Model], None], target: str = "ort") -> Bundle:
    """Change a bundle's graph in place, with a manifest that vouches for the changed file."""
    bundle = Bundle.open(folder)
    path = bundle.file("graph", target)
    graph = ir.load(path)
    change(graph)
    path.write_bytes(serialized(graph))
    entry = entry_for(folder, path.relative_to(folder).as_posix(), "graph", target)
    files = [entry if old.path == entry.path else old for old in bundle.manifest.files]
    write_manifest(folder, bundle.manifest.model_copy(update={"files": files}))
    return Bundle.open(folder)


def with_wide_weights(model: CalibratedModel) -> ir.Model:
    """The canonical graph of ``model`` with every integer weight in an INT8 container, whatever its bits."""
    bits = {name: layer.weight_bits for name, layer in model.layers().items()}
    try:
        for layer in model.layers().values():
            layer.weight_bits = 8
        return canonical_graph(model)
    finally:
        for name, layer in model.layers().items():
            layer.weight_bits = bits[name]


def stored_as(graph: ir.Model, dtype: ir.DataType) -> int:
    """How many layers' weights are initializers of that type."""
    values = graph.graph.initializers.items()
    return sum(name.endswith(".weight_q") and value.dtype == dtype for name, value in values)


def serialized(model: ir.Model) -> bytes:
    """A graph as the bytes of an ONNX file."""
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data


def from_text(text: str, check: bool = True) -> ir.Model:
    """A model written as ONNX text, checked unless it is meant to be wrong."""
    proto = onnx.parser.parse_model(text)
    for tensor in proto.graph.initializer:
        # The parser gives each 4-bit value an int32; files hold two a byte.
        if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
            values = np.array([*tensor.int32_data, 0])[: 2 * -(-len(tensor.int32_data) // 2)] & 15
            tensor.raw_data = (values[0::2] | values[1::2] << 4).astype(np.uint8).tobytes()
            tensor.ClearField("int32_data")
    if check:
        onnx.checker.check_model(proto, full_check=True)
    return ir.serde.deserialize_model(proto)


def session(model: ir.Model, optimize: bool = True) -> onnxruntime.InferenceSession:
    """ONNX Runtime on ``model``, one thread; ``optimize`` False runs its nodes as they are written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feeds: Mapping[str, Any], optimize: bool = True) -> np.ndarray:
    """The first output of ``model``."""
    made: np.ndarray = session(model, optimize).run(None, {name: np.asarray(value) for name, value in feeds.items()})[0]
    return made

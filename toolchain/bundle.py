"""Write the bundle: graphs, golden vectors, classes, preview and the manifest that ties them together."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import onnxruntime
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calib.calibrated import CalibratedModel
from calib.models import ModelSpec
from calib.preview import contact_sheet
from calib.quant.families import sites
from calib.quant.quantizer import levels
from calib.quant.surgery import pooled, products, residuals
from calib.taps import reading
from runtime.bundle import entry_for
from runtime.files import atomic_write_json
from runtime.manifest import FileEntry, Layer, Manifest, Preprocess, Tap
from toolchain.graph.layers import tap_tensor
from toolchain.lowering import CANONICAL, FLOAT, TENSORRT_FLOAT, graph_path

GOLDEN, CLASSES, PREVIEW = "golden/golden.safetensors", "classes.json", "preview.png"
GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Origin:
    """What a bundle was made from, for its manifest.

    Attributes:
        options: those of the dialects, by target. command: what to type for the same bundle, without any path.
    """

    weights: str
    digest: str
    method: str
    images: int
    seed: int
    data_free: bool
    stages: dict[str, str]
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    command: str = ""


@torch.no_grad()
def write_golden(model: CalibratedModel, original: nn.Module, images: Tensor, path: Path) -> None:
    """The reference vectors of up to 8 normalised images (B, 3, H, W): logits and the integers at every quantizer."""
    chosen, alone = images[:GOLDEN_IMAGES].contiguous(), pooled(model.module)
    in_rows = model.layers().keys() | residuals(model.module).keys()
    taps = {name: as_rows(value) if name in in_rows else value for name, value in model.taps(chosen).items()}
    tensors = {
        "images": chosen,
        "logits": model.logits(chosen),
        "float_logits": original(chosen),
        **{f"tap/{name}": value[..., :1, :] if name in alone else value for name, value in taps.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, path)


def as_rows(tap: Tensor) -> Tensor:
    """A layer's or point's tap as the graphs hold it, (B', T, K): a pooled token keeps its axis, Swin's two are one."""
    return tap.reshape(tap.shape[0], -1, tap.shape[-1])


def write_side_files(model: CalibratedModel, pixels: Tensor, folder: Path) -> None:
    """classes.json, and preview.png of the calibration images (B, 3, H, W) in [0, 1]."""
    ids, names = list(model.spec.class_ids), list(model.spec.class_names)
    atomic_write_json(folder / CLASSES, {"ids": ids, "names": names})
    contact_sheet(pixels, folder / PREVIEW)


def preprocess_rule(spec: ModelSpec) -> Preprocess:
    """How pictures are fed to a network, as the runtime reads it."""
    return Preprocess(
        height=spec.input_size[1],
        width=spec.input_size[2],
        crop_pct=spec.crop_pct,
        crop_mode=cast(Literal["center", "squash", "border"], spec.crop_mode),
        interpolation=cast(Literal["nearest", "bilinear", "bicubic"], spec.interpolation),
        mean=spec.mean,
        std=spec.std,
    )


def make_manifest(model: CalibratedModel, origin: Origin, targets: list[str], folder: Path) -> Manifest:
    """The manifest of the files that lie in ``folder`` now."""
    spec, made_with = model.spec, versions()
    entries: list[FileEntry] = [
        entry_for(folder, CANONICAL, "canonical"),
        *(entry_for(folder, graph_path(target), "graph", target) for target in targets),
        entry_for(folder, FLOAT, "float_twin"),
        *(entry_for(folder, TENSORRT_FLOAT, "float_twin", target) for target in targets if target == "tensorrt"),
        entry_for(folder, GOLDEN, "golden"),
        entry_for(folder, CLASSES, "classes"),
        entry_for(folder, PREVIEW, "preview"),
    ]
    return Manifest(
        name=f"{spec.name}-{model.scheme}",
        model=spec.name,
        timm_tag=spec.tag,
        scheme=str(model.scheme),
        weights=cast(Literal["checkpoint", "hub", "packaged", "random"], origin.weights),
        num_classes=spec.num_classes,
        preprocess=preprocess_rule(spec),
        taps=_taps(model),
        layers=_layers(model),
        method=origin.method,
        images=origin.images,
        seed=origin.seed,
        data_free=origin.data_free,
        provenance={
            "intvit": made_with["intvit"],
            "weights_sha256": origin.digest,
            "stages": origin.stages,
            "options": origin.options,
            "command": origin.command,
            "versions": made_with,
            "calibration": model.report,
        },
        files=entries,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the bundle's bytes."""
    return {
        "intvit": _version("intvit"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnx-ir": _version("onnx-ir"),
        "onnxruntime": onnxruntime.__version__,
        "numpy": _version("numpy"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _taps(model: CalibratedModel) -> list[Tap]:
    out = []
    for name, quantizer in model.quantizers().items():
        low, high = levels(quantizer.bits)
        out.append(
            Tap(
                name=name,
                tensor=tap_tensor(name),
                golden=f"tap/{name}",
                scale=float(quantizer.scale),
                zero_point=int(quantizer.zero_point),
                qmin=low,
                qmax=high,
            )
        )
    return out


def _layers(model: CalibratedModel) -> list[Layer]:
    macs = count_macs(model)
    operator = "MatMulInteger" if model.scheme.integer else "MatMul"
    out = []
    for site in sites(model.module):
        layer = model.layers()[site.name]
        stored = "INT4, two a byte" if layer.weight_bits <= 4 else "INT8"
        stored += "" if layer.group is None else f", a scale for {layer.group}"
        out.append(
            Layer(
                name=site.name,
                kind=site.kind,
                macs=macs[site.name],
                weight_bits=layer.weight_bits,
                activation_bits=layer.act_bits,
                stored_as=stored,
                tensor=f"{site.name}/{operator}",
            )
        )
        if site.kind == "qkv":
            out += [
                Layer(
                    name=name,
                    kind=name.rpartition(".")[2],
                    macs=macs[name],
                    weight_bits=product.right.bits,
                    activation_bits=product.left.bits,
                    stored_as="no weights",
                    tensor=f"{name}/{operator}",
                )
                for name, product in products(model.module, site.name.removesuffix(".qkv")).items()
            ]
    return out


@torch.no_grad()
def count_macs(model: CalibratedModel) -> dict[str, int]:
    """Multiply-accumulates of every linear layer and integer attention product per image, as the graphs do them."""
    found: dict[str, int] = {}
    alone, layers = pooled(model.module), model.layers()

    def read(name: str, x: Tensor, out: Tensor) -> None:
        out = out[..., :1, :] if name in alone else out
        found[name] = out.numel() * (layers[name].in_features if name in layers else x.shape[-1])

    with reading({**layers, **products(model.module)}, read):
        model.module(torch.zeros((1, *model.spec.input_size)))
    return found

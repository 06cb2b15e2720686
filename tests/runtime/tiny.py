"""A hand-made bundle: a four-linear QDQ network whose golden vectors come from a slow numpy reference.

patches -> [Q] embed -> x; x + fc2([Q] gelu(fc1([Q] norm(x)))) -> mean over tokens -> [Q] head -> logits
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from runtime.bundle import entry_for, write_manifest
from runtime.manifest import FileEntry, Layer, Manifest, Preprocess, Tap

TARGETS = ("ort", "openvino")
SIDE, PATCH = 8, 4
TOKENS, PATCH_DIM = (SIDE // PATCH) ** 2, 3 * PATCH * PATCH


@dataclass
class Spec:
    """Sizes and the numbers of the four linears (weights int8 (in, out), scales float32 (out,), bias (1, 1, out))."""

    width: int = 32
    hidden: int = 64
    classes: int = 10
    seed: int = 0
    depth: int = 1
    int4: bool = True
    linears: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        blocks = [
            item
            for i in range(self.depth)
            for item in ((f"b{i}.fc1", self.width, self.hidden, 0.03), (f"b{i}.fc2", self.hidden, self.width, 0.02))
        ]
        for name, rows, columns, scale in (
            ("embed", PATCH_DIM, self.width, 0.025),
            *blocks,
            ("head", self.width, self.classes, 0.02),
        ):
            bits = 4 if self.int4 and "fc" in name else 8
            top = 2 ** (bits - 1) - 1
            self.linears[name] = {
                "bits": bits,
                "weight": rng.integers(-8 if bits == 4 else -top, top + 1, (rows, columns)).astype(np.int8),
                "wscale": (rng.uniform(0.5, 1.5, columns) * 1.7 / (top * math.sqrt(rows))).astype(np.float32),
                "bias": rng.normal(0, 0.1, (1, 1, columns)).astype(np.float32),
                "scale": np.float32(scale),
            }


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def reference(spec: Spec, images: np.ndarray, *, quantize: bool = True) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and the integers of every tap, in float64 but for the values a quantizer sees."""
    taps: dict[str, np.ndarray] = {}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        part = spec.linears[name]
        weight = part["weight"].astype(np.float64) * part["wscale"].astype(np.float64)
        if not quantize:
            return x @ weight + part["bias"]
        q = np.clip(np.rint(x.astype(np.float32) / part["scale"]), -128, 127).astype(np.int8)
        taps[name] = q
        integer = q.astype(np.int64) @ part["weight"].astype(np.int64)
        return integer * (np.float64(part["scale"]) * part["wscale"].astype(np.float64)) + part["bias"]

    count = len(images)
    grid = images.reshape(count, 3, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    x = linear("embed", grid.transpose(0, 2, 4, 1, 3, 5).reshape(count, TOKENS, PATCH_DIM))
    for i in range(spec.depth):
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        hidden = linear(f"b{i}.fc1", normed)
        x = x + linear(f"b{i}.fc2", 0.5 * hidden * (1 + _erf(hidden / math.sqrt(2))))
    return linear("head", x.mean(axis=1, keepdims=True))[:, 0].astype(np.float32), taps


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def linear(self, name: str, x: str, part: dict[str, Any], *, quantize: bool, flat_bias: bool) -> str:
        weight, scale = part["weight"], self.constant(f"{name}.wscale", part["wscale"])
        if quantize:
            step = self.constant(f"{name}.scale", part["scale"])
            zero = self.constant(f"{name}.zero", np.int8(0))
            x = self.node("QuantizeLinear", [x, step, zero], f"{name}.q")
            x = self.node("DequantizeLinear", [x, step, zero], f"{name}.dq")
            if part["bits"] == 4:
                low, high = weight.reshape(-1)[0::2], weight.reshape(-1)[1::2]
                packed = ((low & 15) | ((high & 15) << 4)).astype(np.uint8).tobytes()
                tensor = helper.make_tensor(f"{name}.w4", TensorProto.INT4, weight.shape, packed, raw=True)
                self.initializers.append(tensor)
                w = self.node("Cast", [tensor.name], f"{name}.w8", to=TensorProto.INT8)
            else:
                w = self.constant(f"{name}.w8", weight)
            w = self.node("DequantizeLinear", [w, scale], f"{name}.w", axis=1)
        else:
            w = self.constant(f"{name}.w", weight.astype(np.float32) * part["wscale"])
        product = self.node("MatMul", [x, w], f"{name}.product")
        bias = part["bias"].reshape(-1) if flat_bias else part["bias"]
        return self.node("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}.out")


def graph(spec: Spec, *, quantize: bool = True, flat_bias: bool = False) -> onnx.ModelProto:
    """The QDQ graph, or its float twin; ``flat_bias`` stores the biases as (N,), the form that runs slowly."""
    out = _Writer()

    def linear(name: str, x: str) -> str:
        return out.linear(name, x, spec.linears[name], quantize=quantize, flat_bias=flat_bias)

    grid = np.array([0, 3, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH], np.int64)
    x = out.node("Reshape", ["images", out.constant("grid", grid)], "grid.out")
    x = out.node("Transpose", [x], "grid.turned", perm=[0, 2, 4, 1, 3, 5])
    flat = out.constant("flat", np.array([0, TOKENS, PATCH_DIM], np.int64))
    x = linear("embed", out.node("Reshape", [x, flat], "patches"))
    ones, zeros = np.ones(spec.width, np.float32), np.zeros(spec.width, np.float32)
    gamma, beta = out.constant("gamma", ones), out.constant("beta", zeros)
    for i in range(spec.depth):
        normed = out.node("LayerNormalization", [x, gamma, beta], f"b{i}.norm", axis=-1, epsilon=1e-6)
        hidden = out.node("Gelu", [linear(f"b{i}.fc1", normed)], f"b{i}.gelu")
        x = out.node("Add", [x, linear(f"b{i}.fc2", hidden)], f"b{i}.out")
    axis = out.constant("axis", np.array([1], np.int64))
    x = linear("head", out.node("ReduceMean", [x, axis], "pooled", keepdims=1))
    out.node("Squeeze", [x, axis], "logits")
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        out.nodes,
        "tiny",
        [info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [info("logits", TensorProto.FLOAT, ["N", spec.classes])],
        out.initializers,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def rehash(root: Path, **changes: Any) -> None:
    """Write the manifest anew for the files as they are now, as someone who alters a bundle on purpose would."""
    manifest = Manifest.model_validate_json((root / "manifest.json").read_bytes())
    files: list[FileEntry] = [entry_for(root, f.path, f.role, f.target) for f in manifest.files]
    write_manifest(root, manifest.model_copy(update={"files": files, **changes}))


def make_bundle(
    root: Path, spec: Spec | None = None, *, flat_bias: bool = False, weights: str = "checkpoint", images: int = 8
) -> Path:
    """Write a whole bundle into ``root`` and return it."""
    spec = spec or Spec()
    for folder in ("ort", "openvino", "float", "canonical", "golden"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        onnx.save(graph(spec, flat_bias=flat_bias), root / target / "model.onnx")
    onnx.save(graph(spec, quantize=False), root / "float/model.onnx")
    onnx.save(graph(spec), root / "canonical/model.onnx")
    pictures = np.random.default_rng(7).normal(0, 1, (images, 3, SIDE, SIDE)).astype(np.float32)
    logits, taps = reference(spec, pictures)
    float_logits, _ = reference(spec, pictures, quantize=False)
    golden = {f"tap.{name}": value for name, value in taps.items()}
    save_file(
        {"images": pictures, "logits": logits, "float_logits": float_logits, **golden},
        root / "golden/golden.safetensors",
    )
    ids = [f"n{i:08d}" for i in range(spec.classes)]
    (root / "classes.json").write_text(json.dumps({"ids": ids, "names": [f"class {i}" for i in range(spec.classes)]}))
    Image.new("RGB", (SIDE, SIDE), (10, 200, 30)).save(root / "preview.png")
    files = [
        *(entry_for(root, f"{target}/model.onnx", "graph", target) for target in TARGETS),
        entry_for(root, "float/model.onnx", "float_twin"),
        entry_for(root, "canonical/model.onnx", "canonical"),
        entry_for(root, "golden/golden.safetensors", "golden"),
        entry_for(root, "classes.json", "classes"),
        entry_for(root, "preview.png", "preview"),
    ]
    manifest = Manifest(
        name="tiny-w4a8",
        model="tiny",
        timm_tag="",
        scheme="w4a8",
        weights=weights,  # type: ignore[arg-type]
        num_classes=spec.classes,
        preprocess=Preprocess(
            height=SIDE, width=SIDE, crop_pct=0.9, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        taps=[
            Tap(
                name=name,
                tensor=f"{name}.q",
                golden=f"tap.{name}",
                scale=float(part["scale"]),
                zero_point=0,
                qmin=-128,
                qmax=127,
            )
            for name, part in spec.linears.items()
        ],
        layers=[
            Layer(
                name=name,
                kind="linear",
                macs=int(part["weight"].size),
                weight_bits=part["bits"],
                activation_bits=8,
                stored_as=f"int{part['bits']}",
                tensor=f"{name}.w8",
            )
            for name, part in spec.linears.items()
        ],
        method="noise",
        images=images,
        seed=0,
        data_free=True,
        provenance={"intvit": "0.1.0"},
        files=files,
    )
    write_manifest(root, manifest)
    return root

"""Faults planted in one graph of a bundle, with a manifest or registry that vouches for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from runtime.bundle import Bundle
from runtime.compile import compile_bundle
from runtime.files import sha256_file
from runtime.registry import Registry, load_registry, save_registry
from tests.runtime.tiny import rehash

CANONICAL, DIALECT, FLOAT = "canonical/model.onnx", "ort/model.onnx", "float/model.onnx"
Change = Callable[[onnx.ModelProto], None]


def plant(root: Path, graph: str, change: Change) -> Bundle:
    """Change a graph of the bundle and hash it again."""
    _rewrite(root / graph, change)
    rehash(root)
    return Bundle.open(root)


def plant_in_engine(root: Path, change: Change) -> Bundle:
    """Compile the bundle, then change the engine and register it as it is now."""
    compile_bundle(Bundle.open(root))
    (record,) = load_registry(root).engines
    path = root / record.path
    _rewrite(path, change)
    altered = record.model_copy(update={"sha256": sha256_file(path), "bytes": path.stat().st_size})
    save_registry(root, Registry(engines=[altered]))
    return Bundle.open(root)


def number(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The initializer ``name`` with other values."""

    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(value.copy()).astype(value.dtype), name))

    return edit


def attribute(output: str, name: str, value: float) -> Change:
    """The node that makes ``output`` with another float attribute."""

    def edit(model: onnx.ModelProto) -> None:
        (node,) = [node for node in model.graph.node if output in node.output]
        (found,) = [one for one in node.attribute if one.name == name]
        found.f = value

    return edit


def _rewrite(path: Path, change: Change) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)

"""TensorRT takes every canonical graph: parsed and built by TensorRT-RTX, which needs neither a GPU nor a driver.

Runs where the ``rtx`` extra is installed (``pip install 'intvit[rtx]'``, Linux x86-64).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from calib.calibrate import calibrate
from calib.models import load
from calib.scheme import parse
from toolchain.graph import canonical_graph, float_graph

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")


def build(path: Path) -> int:
    """Bytes of the engine that TensorRT-RTX builds from an ONNX file, strongly typed."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(str(path))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    source = network.get_input(0)
    side = tuple(source.shape)[1:]
    profile.set_shape(source.name, (1, *side), (1, *side), (8, *side))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16", "w8a8+attn8"])
def test_canonical_graphs_are_accepted(scheme: str, tmp_path: Path) -> None:
    loaded = load("vit_digits")
    images = torch.rand((4, *loaded.spec.input_size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = calibrate(loaded.module, loaded.spec, parse(scheme), images)
    ir.save(canonical_graph(model), tmp_path / "model.onnx")
    assert build(tmp_path / "model.onnx") > 0


def test_the_float_twin_is_accepted(tmp_path: Path) -> None:
    loaded = load("vit_digits")
    ir.save(float_graph(loaded.module, loaded.spec), tmp_path / "model.onnx")
    assert build(tmp_path / "model.onnx") > 0

"""The parity ladder on small networks: fake-quant -> canonical -> dialect -> engine, for many widths, ViT and Swin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from calib.calibrated import CalibratedModel
from calib.models import ModelSpec
from runtime.bundle import Bundle
from runtime.parity import check, sqnr_db
from tests.conftest import BACKENDS
from tests.toolchain.nets import alter_graph, calibrated, digits, noise, run, spec_of, swin, vit, write_bundle
from toolchain.graph import canonical_graph
from toolchain.passes.match import set_constant
from toolchain.targets import ort

SCHEMES = ("w8a8", "w4a8", "w4a4", "w3a8")


def tiny_vit() -> tuple[nn.Module, ModelSpec]:
    module = vit(global_pool="avg", reg_tokens=1, init_values=0.5)
    return module, spec_of(module)


def tiny_swin() -> tuple[nn.Module, ModelSpec]:
    module = swin()
    return module, spec_of(module)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, ModelSpec]]] = {
    "vit_digits": digits,
    "swin": tiny_swin,
    "avg_pool": tiny_vit,
}


@dataclass(frozen=True)
class Made:
    """A calibrated network and the bundle made of it."""

    model: CalibratedModel
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    done: dict[tuple[str, str], Made] = {}

    def make(network: str, scheme: str) -> Made:
        if (network, scheme) not in done:
            module, spec = NETWORKS[network]()
            model = calibrated(module, spec, scheme)
            folder = tmp_path_factory.mktemp(f"{network}-{scheme}") / "bundle"
            done[network, scheme] = Made(model, write_bundle(module, spec, scheme, folder, model))
        return done[network, scheme]

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_engine_computes_what_was_calibrated(
    made: Callable[[str, str], Made], network: str, scheme: str, backend: str
) -> None:
    one = made(network, scheme)
    result = check(Bundle.open(one.folder), backend=backend, threads=1)
    assert result.failures == ()
    assert result.ok
    assert [tap.name for tap in result.taps] == list(one.model.layers())
    assert (result.taps[0].max_lsb, result.taps[0].free_max_lsb) == (0, 0)
    for tap in result.taps:
        assert tap.max_lsb <= 1
        assert tap.mismatch_rate < 0.1
    assert result.logits_sqnr_db >= 60
    assert 0 < result.quantization_sqnr_db < 60  # the network is quantized, and it still computes something like itself


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4", "w3a8"])
@pytest.mark.parametrize("network", NETWORKS)
def test_int4_in_the_file_is_the_same_numbers_as_int8_in_the_file(
    made: Callable[[str, str], Made], network: str, scheme: str
) -> None:
    model = made(network, scheme).model
    packed = ort.lower(canonical_graph(model))
    bits = {name: layer.weight_bits for name, layer in model.layers().items()}
    try:
        for layer in model.layers().values():
            layer.weight_bits = 8
        wide = ort.lower(canonical_graph(model))
    finally:
        for name, layer in model.layers().items():
            layer.weight_bits = bits[name]

    def stored(graph: ir.Model, dtype: ir.DataType) -> int:
        values = graph.graph.initializers.items()
        return sum(name.endswith(".weight_q") and value.dtype == dtype for name, value in values)

    layers = len(model.layers())
    assert stored(packed, ir.DataType.INT4) == layers - 1  # the patch embedding has 8 bits
    assert (stored(wide, ir.DataType.INT4), stored(wide, ir.DataType.INT8)) == (0, layers)
    images = {"images": noise(model.spec, 4, seed=3).numpy()}
    assert (run(packed, images) == run(wide, images)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_rung_of_the_ladder_agrees(made: Callable[[str, str], Made], network: str, scheme: str) -> None:
    """Float sums in another order flip a rounding now and then; that is far below what quantization itself costs."""
    model = made(network, scheme).model
    images = noise(model.spec, 4, seed=3)
    feeds = {"images": images.numpy()}
    canonical = canonical_graph(model)
    fake_quant = model.logits(images).numpy()
    rungs = {
        "canonical": run(canonical, feeds, optimize=False),
        "dialect": run(ort.lower(canonical), feeds, optimize=False),
        "engine": run(ort.lower(canonical), feeds, optimize=True),
    }
    for name, logits in rungs.items():
        assert sqnr_db(fake_quant, logits) > 35, name


def spoiled(folder: Path, tmp_path: Path, change: Callable[[ir.Model], None], target: str) -> Bundle:
    return alter_graph(Path(shutil.copytree(folder, tmp_path / "bundle")), change, target)


def scale_weights(model: ir.Model) -> None:
    value = model.graph.initializers["blocks.1.mlp.fc1.weight_scale"]
    assert value.const_value is not None
    set_constant(value, value.const_value.numpy() * np.float32(1.01))


def change_a_step(model: ir.Model) -> None:
    value = model.graph.initializers["blocks.0.mlp.fc2.input_scale"]
    assert value.const_value is not None
    set_constant(value, value.const_value.numpy() * np.float32(1.01))


def change_one_weight(model: ir.Model) -> None:
    value = model.graph.initializers["blocks.0.attn.qkv.weight_q"]
    assert value.const_value is not None
    weights = value.const_value.numpy().copy()
    weights[3, 5] += 20 if weights[3, 5] < 0 else -20
    set_constant(value, weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", [scale_weights, change_a_step, change_one_weight])
def test_a_fault_in_the_graph_is_seen(
    made: Callable[[str, str], Made], tmp_path: Path, fault: Callable[[ir.Model], None], backend: str
) -> None:
    spoilt = spoiled(made("vit_digits", "w8a8").folder, tmp_path, fault, backend)
    result = check(spoilt, backend=backend, threads=1)
    assert not result.ok
    assert result.failures

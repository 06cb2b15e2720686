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
from calib.quant.families import block_names
from runtime.bundle import Bundle
from runtime.find import find
from runtime.ladder import climb
from runtime.parity import check
from runtime.rungs import rung
from tests.conftest import BACKENDS, NO_OPENVINO
from tests.toolchain.nets import (
    alter_graph,
    calibrated,
    digits,
    massive,
    noise,
    run,
    spec_of,
    stored_as,
    swin,
    vit,
    with_wide_weights,
    write_bundle,
)
from toolchain.graph import canonical_graph
from toolchain.passes.match import set_constant
from toolchain.targets import ort

SCHEMES = ("w8a8", "w4a8", "w4a4", "w3a8", "w8a8+attn8", "w4a8+attn8", "w8a8+res8", "w4a8+attn8+res8")


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
    assert [tap.name for tap in result.taps] == list(one.model.quantizers())
    assert (result.taps[0].max_lsb, result.taps[0].free_max_lsb) == (0, 0)
    for tap in result.taps:
        assert tap.max_lsb <= 1
        assert tap.mismatch_rate < 0.1
    assert result.logits_sqnr_db >= 60
    assert 0 < result.quantization_sqnr_db < 60  # the network is quantized, and it still computes something like itself


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", [vit, swin])
def test_the_units_of_the_stream_move_no_rounding(
    network: Callable[[], nn.Module], backend: str, tmp_path: Path
) -> None:
    """Graphs carry a stream in the units of its channels, fake-quant does not: behind proj, whose input has no shift,
    the same integers to the last one."""
    module = massive(network())
    bundle = Bundle.open(write_bundle(module, spec_of(module), "w8a8+attn8+res8", tmp_path / "bundle"))
    result = check(bundle, backend=backend, threads=1)
    assert result.ok and result.quantization_sqnr_db > 15, result.failures
    behind_proj = [tap for tap in result.taps if tap.name.endswith("residual_attn")]
    assert len(behind_proj) == len(block_names(module)) and all(tap.max_lsb == 0 for tap in behind_proj)


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4", "w3a8", "w4a8+attn8"])
@pytest.mark.parametrize("network", NETWORKS)
def test_int4_in_the_file_is_the_same_numbers_as_int8_in_the_file(
    made: Callable[[str, str], Made], network: str, scheme: str
) -> None:
    """tests/parity/test_weight_containers.py: the same on networks of full size."""
    model = made(network, scheme).model
    packed, wide = ort.lower(canonical_graph(model)), ort.lower(with_wide_weights(model))
    layers = len(model.layers())
    assert stored_as(packed, ir.DataType.INT4) == layers - 1  # the patch embedding has 8 bits
    assert (stored_as(wide, ir.DataType.INT4), stored_as(wide, ir.DataType.INT8)) == (0, layers)
    images = {"images": noise(model.spec, 4, seed=3).numpy()}
    assert (run(packed, images) == run(wide, images)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_ladder_parts_nowhere(made: Callable[[str, str], Made], network: str, scheme: str) -> None:
    """Canonical graph and dialect are the same bits wherever the pass moved no operation; find sees nothing either.

    Float sums in another order flip a rounding now and then; free runs stay far closer than quantization is to float.
    """
    bundle = Bundle.open(made(network, scheme).folder)
    result = climb(bundle, threads=1)
    assert result.ok, result.verdict
    dialect = next(step for step in result.steps if step.rung == "dialect")
    must = [tap for tap in dialect.taps if tap.must_be_exact]
    shifted = sum(tap.zero_point != 0 for tap in bundle.manifest.taps)
    assert 0 < shifted < len(must) < len(dialect.taps)
    assert all(tap.exact for tap in must)
    assert all(step.free_logits_sqnr_db > 35 for step in result.steps if step.judged)
    for upper, lower in (("canonical", "dialect"), ("dialect", "engine")) if scheme == "w4a4" else ():
        assert find(bundle, rung(upper), rung(lower), threads=1).first is None


@pytest.mark.parametrize("scheme", ["w4a4", "w8a8+attn8", "w8a8+res8"])
def test_the_ladder_to_openvino_moves_one_operation(made: Callable[[str, str], Made], scheme: str) -> None:
    """Its dialect divides by fc2's step before the shift and not behind it; every other tap, and the logits, are the
    canonical graph's bits, the input of proj too, which is quantized before it is transposed. With ``+res8`` LayerNorms
    read the stream's levels rather than its values, and those who read them are another operation's too."""
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    bundle = Bundle.open(made("vit_digits", scheme).folder)
    result = climb(bundle, backend="openvino", threads=1)
    assert result.ok, result.verdict
    dialect = next(step for step in result.steps if step.rung == "dialect")
    shifted = {tap.name for tap in bundle.manifest.taps if tap.zero_point != 0}
    free = {tap.name for tap in dialect.taps if not tap.must_be_exact}
    behind_norms = ("attn.qkv", "mlp.fc1", "head") if scheme.endswith("+res8") else ()
    elsewhere = {name for name in free if not name.endswith(behind_norms)}
    assert elsewhere and elsewhere <= shifted
    assert free - elsewhere == {tap.name for tap in dialect.taps if tap.name.endswith(behind_norms)}
    assert all(name.endswith("mlp.fc2") for name in shifted)
    assert all(tap.exact for tap in dialect.taps if tap.must_be_exact)
    assert any(tap.name.endswith("attn.proj") and tap.must_be_exact for tap in dialect.taps)
    assert dialect.logits_exact
    for upper, lower in (("canonical", "dialect"), ("dialect", "engine")):
        assert find(bundle, rung(upper, "openvino"), rung(lower, "openvino"), threads=1).first is None


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


def change_the_step_of_the_keys(model: ir.Model) -> None:
    value = model.graph.initializers["blocks.1.attn.key.input_scale"]
    assert value.const_value is not None
    set_constant(value, value.const_value.numpy() * np.float32(1.01))


def change_the_step_of_the_stream(model: ir.Model) -> None:
    value = model.graph.initializers["blocks.1.residual_attn.input_scale"]
    assert value.const_value is not None
    set_constant(value, value.const_value.numpy() * np.float32(1.01))


def forget_the_largest_of_the_row(model: ir.Model) -> None:
    """The softmax is quantized as it is, not divided by its row's largest value."""
    node = next(node for node in model.graph if node.name == "blocks.2.attn.pv/Div")
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    model.graph.remove(node, safe=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("scheme", "fault"),
    [
        ("w8a8", scale_weights),
        ("w8a8", change_a_step),
        ("w8a8", change_one_weight),
        ("w8a8+attn8", change_the_step_of_the_keys),
        ("w8a8+attn8", forget_the_largest_of_the_row),
        ("w8a8+res8", change_the_step_of_the_stream),
    ],
)
def test_a_fault_in_the_graph_is_seen(
    made: Callable[[str, str], Made], tmp_path: Path, scheme: str, fault: Callable[[ir.Model], None], backend: str
) -> None:
    bundle = spoiled(made("vit_digits", scheme).folder, tmp_path, fault, backend)
    result = check(bundle, backend=backend, threads=1)
    assert not result.ok
    assert result.failures
    assert climb(bundle, backend=backend, threads=1).verdict.startswith("dialect parts from canonical")


def test_find_steps_over_a_folded_shift(made: Callable[[str, str], Made], tmp_path: Path) -> None:
    """Where a shift became a zero point its layer's products differ on purpose; the fault behind them is named."""

    def wrong_bias(model: ir.Model) -> None:
        value = model.graph.initializers["blocks.1.mlp.fc2.bias"]
        assert value.const_value is not None
        set_constant(value, value.const_value.numpy() * np.float32(1.1))

    bundle = spoiled(made("vit_digits", "w4a4").folder, tmp_path, wrong_bias, "ort")
    assert {tap.name: tap.zero_point for tap in bundle.manifest.taps}["blocks.1.mlp.fc2"] != 0
    for lower in ("dialect", "engine"):
        first = find(bundle, rung("canonical"), rung(lower), threads=1).first
        assert first is not None and first.node == "blocks.1.mlp.fc2/Add"

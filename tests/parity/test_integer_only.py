"""``+int`` end to end: fake-quant, canonical graph, dialect and engine compute the very same integers, run freely."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from calib.calibrated import CalibratedModel
from calib.errors import IntvitError as CalibError
from calib.models import ModelSpec
from calib.quant.integer_only import require_integer_form
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.find import find
from runtime.ladder import climb
from runtime.parity import check
from runtime.rungs import rung
from tests.toolchain.nets import alter_graph, calibrated, digits, noise, run, spec_of, swin, vit, write_bundle
from toolchain.graph import canonical_graph
from toolchain.inspect import inspect
from toolchain.lowering import lower
from toolchain.passes.match import set_constant

NETWORKS: dict[str, Callable[[], tuple[nn.Module, ModelSpec]]] = {
    "vit_digits": digits,
    "swin": lambda: ((net := swin()), spec_of(net)),
}
FLOAT_NODES = {"QuantizeLinear", "DequantizeLinear", "LayerNormalization", "Softmax", "Gelu", "Erf", "Sqrt"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[CalibratedModel, Bundle]]:
    done: dict[tuple[str, str], tuple[CalibratedModel, Bundle]] = {}

    def make(network: str, scheme: str) -> tuple[CalibratedModel, Bundle]:
        if (network, scheme) not in done:
            module, spec = NETWORKS[network]()
            model = calibrated(module, spec, scheme)
            folder = tmp_path_factory.mktemp(network) / "bundle"
            done[network, scheme] = model, Bundle.open(write_bundle(module, spec, scheme, folder, model))
        return done[network, scheme]

    return make


Make = Callable[[str, str], tuple[CalibratedModel, Bundle]]
CASES = pytest.mark.parametrize(
    ("network", "scheme"), [("vit_digits", "w8a8+int"), ("vit_digits", "w4a4+int"), ("swin", "w8a8+int")]
)


@CASES
def test_every_integer_of_a_free_run_is_the_fake_quant_models(made: Make, network: str, scheme: str) -> None:
    model, bundle = made(network, scheme)
    result = check(bundle, threads=1)
    assert result.ok and [tap.name for tap in result.taps] == list(model.quantizers())
    assert all((tap.max_lsb, tap.free_max_lsb, tap.free_mismatch_rate) == (0, 0, 0.0) for tap in result.taps)
    assert result.logits_sqnr_db == result.free_logits_sqnr_db == 200.0  # not one bit of the logits differs
    assert result.quantization_sqnr_db > (5 if scheme.startswith("w4a4") else 20)


@pytest.mark.parametrize("network", ["vit_digits", pytest.param("swin", marks=pytest.mark.slow)])
def test_no_rung_of_the_ladder_differs_in_a_bit(made: Make, network: str) -> None:
    _, bundle = made(network, "w8a8+int")
    result = climb(bundle, threads=1)
    assert result.ok, result.verdict
    assert all(step.logits_exact for step in result.steps if step.taps)
    assert find(bundle, rung("dialect"), rung("engine"), threads=1).first is None


@CASES
def test_float_are_the_images_quantizer_and_the_heads_scale(made: Make, network: str, scheme: str) -> None:
    model, bundle = made(network, scheme)
    found = inspect(bundle)
    assert found.warnings == () and found.integer_mac_fraction == 1.0
    assert found.float_operators == {"Add": 1, "Cast": 1, "Mul": 1, "Reshape": 1}
    assert all(row.executed_as == "MatMulInteger, u8 x s8" for row in found.layers)
    nodes = list(canonical_graph(model).graph)
    assert [node.op_type for node in nodes if node.op_type in FLOAT_NODES] == ["QuantizeLinear"]
    wide = sum(node.op_type == "MatMulInteger" for node in nodes)
    assert wide == len(found.layers)


def test_batches_do_not_matter(made: Make) -> None:
    model, _ = made("vit_digits", "w8a8+int")
    images = noise(model.spec, 5, seed=7)
    graph = canonical_graph(model)
    wanted = model.logits(images).numpy()
    assert (run(graph, {"images": images.numpy()}) == wanted).all()
    assert (run(graph, {"images": images.numpy()[3:4]}) == wanted[3:4]).all()


def test_the_saved_model_is_the_same(made: Make, tmp_path: Path) -> None:
    model, _ = made("vit_digits", "w8a8+int")
    model.save(tmp_path)
    images = noise(model.spec, 2, seed=7)
    assert (CalibratedModel.load(tmp_path).logits(images) == model.logits(images)).all()


@pytest.mark.parametrize(
    "name", ["blocks.1.mlp.act.multiplier", "blocks.1.norm1.offset", "blocks.0.attn.qkv.multiplier"]
)
def test_a_fault_is_seen_and_found(made: Make, tmp_path: Path, name: str) -> None:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        assert value.const_value is not None
        old = value.const_value.numpy()
        base = 1 << 62 if name.endswith("offset") else 0
        set_constant(value, base + ((old - base) * 1.03).astype(np.int64))

    _, good = made("vit_digits", "w8a8+int")
    bundle = alter_graph(Path(shutil.copytree(good.root, tmp_path / "bundle")), change)
    assert not check(bundle, threads=1).ok


def test_a_target_that_is_not_exact_is_refused(made: Make, tmp_path: Path) -> None:
    model, _ = made("vit_digits", "w8a8+int")
    with pytest.raises(IntvitError, match="openvino cannot run w8a8"):
        lower(model, digits()[0], ["openvino"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_averages_tokens_is_refused() -> None:
    module = vit(global_pool="avg")
    with pytest.raises(CalibError, match="no integer-only form") as caught:
        calibrated(module, spec_of(module), "w8a8+int")
    with pytest.raises(CalibError, match="no integer-only form"):
        require_integer_form(module)  # as a build asks, before it makes an image
    require_integer_form(vit())
    assert "averages" in caught.value.why

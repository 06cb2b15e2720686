"""What ``toolchain.inspect --backend openvino`` reads from OpenVINO's runtime model, and the reasons it gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from runtime import cli, machine
from runtime.bundle import Bundle
from tests.conftest import NO_OPENVINO
from tests.toolchain.nets import alter_graph, spec_of, swin, write_bundle
from tests.toolchain.test_inspect import float_layer
from toolchain.inspect import inspect, main

pytest.importorskip("openvino", reason=NO_OPENVINO)
DigitsBundle = Callable[[str], Path]
LAYERS = 3 * 4 + 2


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w3a8"])
def test_integer_schemes_run_as_integers(digits_bundle: DigitsBundle, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "inspect.json"
    assert cli.invoke(main, [str(digits_bundle(scheme)), "--backend", "openvino", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["backend"] == "openvino"
    assert found["integer_mac_fraction"] == 1.0
    assert found["warnings"] == []
    assert len(found["layers"]) == LAYERS
    for row in found["layers"]:
        assert row["integer"] and row["executed_as"].lower().endswith("_i8")
        assert row["milliseconds"] > 0
        assert row["stored_bytes"] > 0
    assert sum(row["milliseconds"] for row in found["layers"]) <= found["milliseconds"]
    kernels = {row["executed_as"] for row in found["layers"]}
    if "amx_int8" in machine.cpu_flags():
        assert "brgemm_avx512_amx_i8" in kernels


def test_the_table_shows_times_and_kernels(digits_bundle: DigitsBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(main, [str(digits_bundle("w4a8")), "--backend", "openvino"]) == 0
    said = capsys.readouterr().out
    assert "ms" in said and "share" in said and "100.0 % of the MACs" in said and "one image:" in said


def test_a_swin_with_its_mergings(tmp_path: Path) -> None:
    module = swin()
    found = inspect(Bundle.open(write_bundle(module, spec_of(module), "w4a8", tmp_path / "bundle")), "openvino")
    assert found.integer_mac_fraction == 1.0
    assert found.warnings == ()
    assert {row.name for row in found.layers if row.integer} >= {"layers.1.downsample.reduction", "head.fc"}


def test_weight_only_schemes_run_as_float_and_that_is_no_warning(digits_bundle: DigitsBundle) -> None:
    found = inspect(Bundle.open(digits_bundle("w4a16")), "openvino")
    assert found.integer_mac_fraction == 0.0
    assert found.warnings == ()


def no_casts(model: ir.Model) -> None:
    """INT4 weights dequantized directly, as other tools store them."""
    for cast in [node for node in model.graph if node.op_type == "Cast"]:
        for use in list(cast.outputs[0].uses()):
            use.node.replace_input_with(use.idx, cast.inputs[0])
        model.graph.remove(cast, safe=True)


@pytest.mark.parametrize(
    ("change", "slow", "reason"),
    [
        (float_layer, 1, "an operand of its product is not dequantized"),
        (no_casts, LAYERS - 1, "a Cast to INT8 is missing"),
    ],
)
def test_a_layer_that_runs_in_float_is_named_with_the_reason(
    digits_bundle: DigitsBundle, tmp_path: Path, change: Callable[[ir.Model], None], slow: int, reason: str
) -> None:
    folder = Path(shutil.copytree(digits_bundle("w4a8"), tmp_path / "bundle"))
    found = inspect(alter_graph(folder, change, "openvino"), "openvino")
    rows = {row.name: row for row in found.layers}
    assert sum(not row.integer for row in rows.values()) == slow
    assert not rows["blocks.1.mlp.fc1"].integer
    assert rows["blocks.1.mlp.fc1"].executed_as.endswith("f32")
    assert any(line.startswith("blocks.1.mlp.fc1: ") and reason in line for line in found.warnings)
    assert any(line.startswith("WARNING") for line in found.warnings)


def test_a_cpu_without_exact_int8_products_is_the_reason(
    digits_bundle: DigitsBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "saturating_u8s8", lambda: True)
    found = inspect(Bundle.open(digits_bundle("w8a8")), "openvino")
    assert found.integer_mac_fraction == 0.0
    assert sum("neither VNNI nor AMX" in line for line in found.warnings) == LAYERS

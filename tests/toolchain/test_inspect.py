"""What really runs as integer, as ``toolchain.inspect`` reads it from ONNX Runtime's optimized graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from tests.toolchain.nets import alter_graph, spec_of, swin, vit, write_bundle
from toolchain.inspect import inspect, main
from toolchain.passes.match import set_constant

DigitsBundle = Callable[[str], Path]
BLOCKS = 3
KERNELS = ("MatMulIntegerToFloat", "QAttention")


def read(bundle: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "inspect.json"
    assert cli.invoke(main, [str(bundle), "--json", str(out), "--threads", "2", *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_json_has_the_fixed_keys(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    found = read(digits_bundle("w4a8"), tmp_path)
    assert {"integer_mac_fraction", "layers"} <= found.keys()
    assert [row["name"] for row in found["layers"][:3]] == [
        "patch_embed.proj",
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
    ]
    assert len(found["layers"]) == 4 * BLOCKS + 2
    for row in found["layers"]:
        assert {"name", "macs", "weight_bits", "activation_bits", "stored_as", "executed_as"} <= row.keys()
    assert found["bundle"] == Bundle.open(digits_bundle("w4a8")).sha256


@pytest.mark.parametrize(("scheme", "bits"), [("w8a8", (8, 8)), ("w4a8", (4, 8)), ("w4a4", (4, 4)), ("w3a8", (3, 8))])
def test_integer_schemes_run_as_integers(
    digits_bundle: DigitsBundle, tmp_path: Path, scheme: str, bits: tuple[int, int]
) -> None:
    found = read(digits_bundle(scheme), tmp_path)
    assert found["integer_mac_fraction"] == 1.0
    assert found["warnings"] == []
    assert sum(found["operators"].get(kernel, 0) for kernel in KERNELS) == 4 * BLOCKS + 2
    embed, *rest = found["layers"]
    assert (embed["weight_bits"], embed["activation_bits"], embed["stored_as"]) == (8, 8, "INT8")
    for row in rest:
        assert (row["weight_bits"], row["activation_bits"]) == bits
        assert row["stored_as"] == ("INT4, two a byte" if bits[0] <= 4 else "INT8")
        assert row["executed_as"].startswith(KERNELS) and "?" not in row["executed_as"]
        assert row["integer"]


def test_what_large_calls_run(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    """Three products for q, k and v in a lane, which has one thread."""
    few, many = (read(digits_bundle("w8a8"), tmp_path, "--batch", batch) for batch in ("1", "2"))
    joined = few["operators"].get("QAttention", 0)
    assert many["operators"].get("QAttention", 0) == 0 and many["operators"].get("Split", 0) <= 1
    assert many["operators"]["MatMulIntegerToFloat"] == few["operators"]["MatMulIntegerToFloat"] + 3 * joined
    assert read(digits_bundle("w8a8"), tmp_path, "--threads", "1") == many
    kernels = {row["name"]: row["executed_as"] for row in many["layers"]}
    assert joined == 0 or kernels["blocks.0.attn.qkv"] == "MatMulIntegerToFloat, u8 x s8"
    assert many["integer_mac_fraction"] == 1.0 and many["warnings"] == []


@pytest.mark.parametrize("scheme", ["w8a8+attn8", "w4a8+attn8"])
def test_attention_products_are_rows_where_they_are_integers(
    digits_bundle: DigitsBundle, tmp_path: Path, scheme: str
) -> None:
    found = read(digits_bundle(scheme), tmp_path)
    plain = read(digits_bundle(scheme.removesuffix("+attn8")), tmp_path)
    rows = {row["name"]: row for row in found["layers"]}
    assert list(rows)[1:5] == [f"blocks.0.attn.{part}" for part in ("qkv", "qk", "pv", "proj")]
    assert len(rows) == 6 * BLOCKS + 2
    tokens, width = 65, 96
    for name, queries in (("blocks.0.attn.qk", tokens), ("blocks.2.attn.pv", 1)):
        assert rows[name]["macs"] == queries * tokens * width
        assert (rows[name]["weight_bits"], rows[name]["activation_bits"]) == (8, 8)
        assert (rows[name]["stored_as"], rows[name]["stored_bytes"]) == ("no weights", 0)
        assert rows[name]["executed_as"].startswith("MatMulIntegerToFloat") and "?" not in rows[name]["executed_as"]
        assert rows[name]["integer"]
    assert found["integer_mac_fraction"] == 1.0 and found["warnings"] == []
    assert found["operators"]["MatMulIntegerToFloat"] == 6 * BLOCKS + 2 and not found["operators"].keys() & {
        "MatMul",
        "Attention",
    }
    assert sum(row["macs"] for row in plain["layers"]) == sum(
        row["macs"] for name, row in rows.items() if not name.endswith((".qk", ".pv"))
    )  # float products are not claimed
    fused = sum(plain["operators"].get(kernel, 0) for kernel in ("Attention", "QAttention"))
    assert fused == BLOCKS or plain["operators"]["MatMul"] == 2 * BLOCKS


def test_an_integer_stream_leaves_layers_and_fusions_as_they_were(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    """Its points are no layers: quantizers between additions and norms, two a block and one where it begins."""
    found, plain = (read(digits_bundle(scheme), tmp_path) for scheme in ("w8a8+res8", "w8a8"))
    assert found["layers"] == plain["layers"] and found["warnings"] == []
    points = 2 * BLOCKS + 1
    assert found["operators"]["QuantizeLinear"] == plain["operators"]["QuantizeLinear"] + points
    assert found["float_operators"]["DequantizeLinear"] >= points
    for kernel in (*KERNELS, "Attention", "LayerNormalization"):
        assert found["operators"].get(kernel, 0) == plain["operators"].get(kernel, 0), kernel


def test_macs_are_those_of_the_network(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    macs = {row["name"]: row["macs"] for row in read(digits_bundle("w8a8"), tmp_path)["layers"]}
    patches, tokens, width = 64, 65, 96
    assert macs["patch_embed.proj"] == patches * 3 * 4 * 4 * width
    assert macs["blocks.1.attn.qkv"] == tokens * width * 3 * width
    assert macs["blocks.1.attn.proj"] == tokens * width * width
    assert macs["blocks.1.mlp.fc1"] == macs["blocks.1.mlp.fc2"] == tokens * width * 4 * width
    assert macs["blocks.2.attn.qkv"] == macs["blocks.1.attn.qkv"]
    assert macs["blocks.2.attn.proj"] == width * width  # of the class token alone
    assert macs["blocks.2.mlp.fc1"] == macs["blocks.2.mlp.fc2"] == 4 * width * width
    assert macs["head"] == width * 10


def test_weight_only_schemes_run_as_float(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    found = read(digits_bundle("w4a16"), tmp_path)
    assert found["integer_mac_fraction"] == 0.0
    assert not any(row["integer"] for row in found["layers"])
    assert not any("Integer" in row["executed_as"] for row in found["layers"])
    assert {row["activation_bits"] for row in found["layers"]} == {16}
    assert found["layers"][1]["stored_as"] == "INT4, two a byte"


def test_groups_are_named_and_the_file_stays_small(tmp_path: Path) -> None:
    module = vit(embed_dim=64)
    sizes = {}
    for scheme in ("w4a16+g32", "w8a16"):
        bundle = write_bundle(module, spec_of(module), scheme, tmp_path / scheme, targets=["ort"])
        sizes[scheme] = (bundle / "ort/model.onnx").stat().st_size
    row = read(tmp_path / "w4a16+g32", tmp_path)["layers"][1]
    assert row["stored_as"] == "INT4, two a byte, a scale for 32" and row["executed_as"] == "MatMulNBits, float32"
    weights = 2 * 12 * 64 * 64
    assert sizes["w8a16"] - sizes["w4a16+g32"] > 0.35 * weights  # half a byte less each, and 4 bytes more for every 32


def test_w4_takes_about_half_of_the_weight_bytes_of_w8(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    w4, w8 = read(digits_bundle("w4a8"), tmp_path), read(digits_bundle("w8a8"), tmp_path)
    weights = 3 * 4 * 4 * 96 + BLOCKS * 12 * 96 * 96 + 96 * 10
    assert w8["linear_weight_bytes"] == weights
    assert 0.5 <= w4["linear_weight_bytes"] / w8["linear_weight_bytes"] <= 0.55
    sizes = [(digits_bundle(scheme) / "ort/model.onnx").stat().st_size for scheme in ("w4a8", "w8a8")]
    assert sizes[1] - sizes[0] > 0.4 * weights  # the file itself is smaller, not only what is said of it


def test_a_tiny_swin_with_its_mergings(tmp_path: Path) -> None:
    module = swin()
    found = inspect(Bundle.open(write_bundle(module, spec_of(module), "w4a8", tmp_path / "bundle")))
    assert found.integer_mac_fraction == 1.0
    assert found.warnings == ()
    rows = {row.name: row for row in found.layers}
    assert rows["layers.1.downsample.reduction"].macs == (16 * 24 // 4) * 64 * 32
    assert rows["layers.0.blocks.1.attn.qkv"].macs == 16 * 24 * 16 * 48


def one_dimensional_bias(model: ir.Model) -> None:
    """What the obvious export looks like: static batch, opset 20, bias (N,)."""
    value = model.graph.initializers["blocks.1.mlp.fc1.bias"]
    assert value.const_value is not None
    set_constant(value, value.const_value.numpy().reshape(-1))
    for edge in (*model.graph.inputs, *model.graph.outputs):
        assert edge.shape is not None
        edge.shape = ir.Shape([1, *list(edge.shape)[1:]])
    model.graph.opset_imports[""] = 20


def float_layer(model: ir.Model, name: str = "blocks.1.mlp.fc1") -> None:
    """One layer without its input's quantizer."""
    node = next(node for node in model.graph if node.name == f"{name}/MatMul")
    dequantize = node.inputs[0].producer()
    assert dequantize is not None and dequantize.inputs[0] is not None
    quantize = dequantize.inputs[0].producer()
    assert quantize is not None
    node.replace_input_with(0, quantize.inputs[0])
    model.graph.remove(dequantize, safe=True)
    model.graph.remove(quantize, safe=True)


@pytest.mark.parametrize(("change", "kernel"), [(one_dimensional_bias, "Gemm"), (float_layer, "MatMul")])
def test_a_layer_that_runs_in_float_is_named(
    digits_bundle: DigitsBundle,
    tmp_path: Path,
    change: Callable[[ir.Model], None],
    kernel: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(digits_bundle("w8a8"), tmp_path / "bundle"))
    alter_graph(folder, change)
    found = read(folder, tmp_path)
    assert any(line.startswith("WARNING") for line in found["warnings"])
    assert "WARNING" in capsys.readouterr().out
    rows = {row["name"]: row for row in found["layers"]}
    slow = rows.pop("blocks.1.mlp.fc1")
    assert not slow["integer"]
    assert slow["executed_as"].startswith(kernel)
    assert all(row["integer"] for row in rows.values())
    total = slow["macs"] + sum(row["macs"] for row in rows.values())
    assert found["integer_mac_fraction"] == pytest.approx(1 - slow["macs"] / total)


def test_an_attention_product_that_runs_in_float_is_named(tmp_path: Path) -> None:
    """The left operand's quantizer is gone; ONNX Runtime then multiplies floats."""
    module = swin()
    folder = write_bundle(module, spec_of(module), "w8a8+attn8", tmp_path / "bundle")
    whole = inspect(Bundle.open(folder))
    assert whole.integer_mac_fraction == 1.0 and whole.warnings == ()
    found = inspect(alter_graph(folder, lambda model: float_layer(model, "layers.1.blocks.1.attn.qk")))
    slow = next(row for row in found.layers if not row.integer)
    assert slow.name == "layers.1.blocks.1.attn.qk" and "float32" in slow.executed_as
    assert slow.macs == 6 * (4 * 4) ** 2 * 32  # 2 x 3 windows of 16 tokens, 4 heads of 8 channels, after one merging
    assert found.integer_mac_fraction == pytest.approx(1 - slow.macs / sum(row.macs for row in found.layers))
    assert len(found.warnings) == 1 and "27 layers should run as integer, found 26" in found.warnings[0]


def test_a_changed_bundle_is_refused(
    digits_bundle: DigitsBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(digits_bundle("w8a8"), tmp_path / "bundle"))
    path = folder / "ort/model.onnx"
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[len(data) // 2] ^= 1
    path.write_bytes(data.tobytes())
    assert cli.invoke(main, [str(folder), "--json", str(tmp_path / "out.json")]) == 1
    assert "ort/model.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_graph_that_does_not_load_is_an_error_not_a_number(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits_bundle("w8a8"), tmp_path / "bundle"))

    def break_it(model: ir.Model) -> None:
        next(node for node in model.graph if node.op_type == "Softmax").op_type = "NoSuchOperator"

    with pytest.raises(IntvitError, match="cannot load"):
        inspect(alter_graph(folder, break_it))


def test_what_is_printed_fits_a_terminal(
    digits_bundle: DigitsBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.invoke(main, [str(digits_bundle("w4a8")), "--threads", "2"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("blocks.")]
    assert len(rows) == 4 * BLOCKS and all(line.rstrip().endswith("u8 x s8") for line in rows)
    assert "integer kernels: 12 x MatMulIntegerToFloat, u8 x s8; 2 x QAttention, u8 x s8\n" in said and "{" not in said

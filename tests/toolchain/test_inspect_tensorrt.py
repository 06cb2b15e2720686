"""Engines as TensorRT's inspector tells them, in the 10.x and the 11.x form.

The samples are written here after the documented form; no engine was built for them, and what they say of any kernel is
made up. They hold the reader to the form, not TensorRT to a kernel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.onnx_wire import read_graph
from tests.runtime.tiny import rehash
from tests.toolchain.nets import serialized
from toolchain import inspect as inspection_of
from toolchain.inspect import inspect as inspect_backend
from toolchain.inspect import main
from toolchain.inspect_tensorrt import engine_layers, inspect
from toolchain.targets import tensorrt
from toolchain.targets.choices import TensorRtOptions

DigitsBundle = Callable[[str], Path]
WORDS = {"INT8": "Int8", "FP16": "Half", "FP32": "Float"}
SENTENCES = {"INT8": "Row major Int8 format", "FP16": "Row major linear FP16 format", "FP32": "Row major linear FP32"}
BLOCKS = 3


def tensor(name: str, kind: str, form: str) -> dict[str, Any]:
    """A layer's input or output of float type ``kind``, as ``form`` spells it."""
    common = {"Name": name, "Dimensions": [1, 65, 96]}
    if form == "11":
        return {**common, "Location": "Device", "Format": "Row major linear format", "Datatype": WORDS[kind]}
    return {**common, "Format/Datatype": (WORDS if form == "10 myelin" else SENTENCES)[kind]}


def layer(sources: list[str], kind: str, types: tuple[str, str], form: str, tactic: str = "", name: str = "") -> Any:
    """One layer made of ONNX nodes: ``types`` are those of its input and output."""
    return {
        "Name": name or "+".join(sources) + "_myl0_7",
        "LayerType": kind,
        "Inputs": [tensor("x", types[0], form)],
        "Outputs": [tensor("y", types[1], form)],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {source}]" for source in sources),
    }


def engine(bundle: Bundle, form: str, *, floats: str = "", fused: bool = True) -> str:
    """An engine of the bundle's network: integer layers but the one called ``floats``, attention one kernel or not."""
    layers = [layer([], "Reformat", ("FP32", "FP16"), form, name="Reformatting CopyNode for Input Tensor 0 to images")]
    for one in bundle.manifest.layers:
        kind = "FP16" if one.name == floats else "INT8"
        tactic = "" if kind == "FP16" else "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize64x64x64"
        layers.append(layer([one.tensor, f"{one.name}/Add"], "gemm", (kind, "FP16"), form, tactic))
    for block in range(BLOCKS):
        site = f"blocks.{block}.attn"
        parts = [f"{site}.qk/MatMul", f"{site}/Softmax", f"{site}.pv/MatMul"]
        for group in [parts] if fused else [[part] for part in parts]:
            layers.append(layer(group, "kgen" if fused else "gemm", ("FP16", "FP16"), form, "", "_gemm_mha_v2_myl0_9"))
    io: dict[str, Any] = {"Bindings": ["images", "logits"]}
    if form == "11":
        io = {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 1, 32, 32]}]}
    return json.dumps({"Layers": layers, **io})


@pytest.mark.parametrize("form", ["10", "10 myelin", "11"])
def test_an_integer_engine(digits_bundle: DigitsBundle, form: str) -> None:
    bundle = Bundle.open(digits_bundle("w8a8"))
    found = inspect(bundle, engine(bundle, form))
    assert found.integer_mac_fraction == 1.0 and found.warnings == ()
    assert [row.name for row in found.layers] == [one.name for one in bundle.manifest.layers]
    assert all(row.executed_as.startswith("gemm, INT8, sm80_xmma") and row.stored_bytes > 0 for row in found.layers)
    assert found.notes == ("attention: 3 of 3 run as one kernel (3 FP16)", "1 reformat layers")
    assert found.operators == {"Reformat FP32": 1, "gemm INT8": len(found.layers), "kgen FP16": BLOCKS}


@pytest.mark.parametrize("form", ["10", "10 myelin", "11"])
def test_a_float_layer_and_attention_apart(digits_bundle: DigitsBundle, form: str) -> None:
    bundle = Bundle.open(digits_bundle("w8a8"))
    found = inspect(bundle, engine(bundle, form, floats="blocks.1.mlp.fc1", fused=False))
    (warning,) = found.warnings
    assert warning == "WARNING: blocks.1.mlp.fc1 should run as integers: gemm, FP16"
    assert {row.name for row in found.layers if not row.integer} == {"blocks.1.mlp.fc1"}
    assert found.notes[0] == "attention: 0 of 3 run as one kernel"


def test_weight_only_layers_are_no_warning(digits_bundle: DigitsBundle) -> None:
    bundle = Bundle.open(digits_bundle("w4a16"))
    text = engine(bundle, "10").replace("Int8", "FP16").replace("i8f16_i8i32", "f16f16_f16f32")
    found = inspect(bundle, text)
    assert found.integer_mac_fraction == 0.0 and found.warnings == ()
    stored = {row.name: row.stored_as for row in found.layers}
    assert stored["blocks.0.mlp.fc2"] == "INT4, two a byte"  # blocks of 128 in 384 inputs
    assert stored["blocks.0.mlp.fc1"] == "INT8, 4-bit values"  # neither 64 nor 128 divides 96


def test_weights_are_said_to_be_stored_as_they_are(digits_bundle: DigitsBundle) -> None:
    """The manifest speaks of the canonical graph's INT4, which this dialect widens."""
    bundle = Bundle.open(digits_bundle("w4a8"))
    found = inspect(bundle, engine(bundle, "10"))
    assert {row.stored_as for row in found.layers} == {"INT8", "INT8, 4-bit values"}


def test_packed_weights_of_our_kernels_are_four_bits_wide(digits_bundle: DigitsBundle, tmp_path: Path) -> None:
    """Their nodes carry the MatMul's name, so a layer of the engine is found by it; the tactic is the kernel."""
    folder = Path(shutil.copytree(digits_bundle("w4a8"), tmp_path / "bundle"))
    lowered = tensorrt.lower(ir.load(Bundle.open(folder).file("canonical")), TensorRtOptions(kernels="on"))
    path = Bundle.open(folder).file("graph", "tensorrt")
    path.write_bytes(serialized(lowered))
    rehash(folder)
    bundle = Bundle.open(folder)
    layers = [
        layer([one.tensor], "PluginV3", ("INT8", "FP16"), "11", "intvit_w4a8_f16_64x128", one.tensor)
        for one in bundle.manifest.layers
    ]
    found = inspect(bundle, json.dumps({"Layers": layers}))
    assert found.integer_mac_fraction == 1.0 and found.warnings == ()
    assert {row.weight_bits: row.stored_as for row in found.layers} == {8: "INT8", 4: "INT4, two a byte"}
    wide = inspect(Bundle.open(digits_bundle("w4a8")), json.dumps({"Layers": layers}))
    assert sum(row.stored_bytes for row in found.layers) < 0.7 * sum(row.stored_bytes for row in wide.layers)


@pytest.mark.parametrize(
    ("tactic", "kind"),
    [
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16", "FP16"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32", "INT8"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_n", "INT8"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "FP8"),
        ("_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a", "FP16"),
        ("", "FP16"),
    ],
)
def test_a_tactics_name_says_what_is_multiplied(tactic: str, kind: str) -> None:
    """Names as NVIDIA's documentation and issue 4397 show them (the FP8 one is made up); without one, the input's."""
    made = {"Name": "a", "LayerType": "gemm", "TacticName": tactic, "Inputs": [{"Format/Datatype": "Half"}]}
    (found,) = engine_layers(json.dumps({"Layers": [made]}))
    assert found.computes == kind


def test_types_are_unknown_where_shapes_are_dynamic() -> None:
    (found,) = engine_layers(
        '{"Layers": [{"Name": "a", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}]}'
    )
    assert (found.computes, found.kind) == ("unknown type", "unknown")


def test_names_serve_where_there_is_no_metadata() -> None:
    text = '{"Layers": [{"Name": "head/MatMul + head/Add_myl3_12", "LayerType": "gemm", "Metadata": ""}]}'
    (found,) = engine_layers(text)
    assert found.sources == {"head/MatMul", "head/Add"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "no engine's layers"),
        ('{"Layers": []}', "no engine's layers"),
        ('{"Layers": ["conv1", "conv2"], "Bindings": []}', "names only"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(IntvitError, match=message):
        engine_layers(text)


def test_another_networks_engine_is_refused(digits_bundle: DigitsBundle) -> None:
    text = '{"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv1]"}]}'
    with pytest.raises(IntvitError, match="none of the bundle's layers"):
        inspect(Bundle.open(digits_bundle("w8a8")), text)


def test_the_names_are_those_of_the_graph(digits_bundle: DigitsBundle) -> None:
    """What the samples and the reader call nodes is what TensorRT's parser is given."""
    bundle = Bundle.open(digits_bundle("w8a8"))
    names = {node.name for node in read_graph(bundle.file("graph", "tensorrt").read_bytes()).nodes}
    site = "blocks.0.attn"
    assert {f"{site}.qk/MatMul", f"{site}/Softmax", f"{site}.pv/MatMul"} <= names
    assert {one.tensor for one in bundle.manifest.layers} <= names


def test_the_command_line(digits_bundle: DigitsBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(digits_bundle("w8a8"))
    path, out = tmp_path / "engine.json", tmp_path / "inspect.json"
    path.write_text(engine(bundle, "11"))
    assert cli.invoke(main, [str(bundle.root), "--engine-json", str(path), "--json", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "as tensorrt executes them" in said and "3 of 3 run as one kernel" in said
    assert (found["backend"], found["integer_mac_fraction"]) == ("tensorrt", 1.0)
    assert cli.invoke(main, [str(bundle.root), "--engine-json", str(tmp_path / "none.json")]) == 1
    said = capsys.readouterr().err
    assert "No such file" in said and "next: give the file" in said


def test_an_engine_of_this_machine_is_asked_and_closed(
    digits_bundle: DigitsBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, closed = Bundle.open(digits_bundle("w8a8")), []

    class Engine:
        def layers_json(self) -> str:
            return engine(bundle, "11")

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(inspection_of, "open_engine", lambda opened, backend: Engine())
    assert inspect_backend(bundle, "tensorrt").integer_mac_fraction == 1.0
    assert closed == [True]

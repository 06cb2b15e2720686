"""The canonical graph's promises: opset, zero points, fused nodes, how weights and biases are stored, same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn

from calib.calibrated import CalibratedModel
from calib.quant.families import block_names
from calib.quant.grid import weight_grid
from calib.quant.linear import QuantLinear
from calib.quant.surgery import products, residuals
from tests.toolchain.nets import calibrated, digits, massive, noise, run, serialized, spec_of, swin, vit
from toolchain.graph import canonical_graph
from toolchain.graph.builder import Builder
from toolchain.graph.layers import linear, reshape
from toolchain.lowering import CANONICAL, lower

SCHEMES = ("w8a8", "w4a8", "w3a8", "w2a4", "w5a8", "w4a16", "w4a16+g32", "w5a16+g16", "w8a8+attn8", "w8a8+res8")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: vit(global_pool="avg", reg_tokens=1),
    "swin": swin,
}


@pytest.fixture(scope="module")
def models() -> Callable[[str], CalibratedModel]:
    made: dict[str, CalibratedModel] = {}

    def model(scheme: str) -> CalibratedModel:
        if scheme not in made:
            made[scheme] = calibrated(*digits(), scheme)
        return made[scheme]

    return model


def nodes(graph: onnx.GraphProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op_type]


def levels_of(bits: int) -> set[int]:
    """The levels docs/numerics.md promises."""
    half = 2 ** (bits - 1)
    if bits == 8:
        return set(range(-127, 128))
    return set(range(-half, half)) if bits >= 4 else set(range(1 - 2 * half, 2 * half, 2))


def nibbles(tensor: onnx.TensorProto) -> np.ndarray:
    """Signed 4-bit values, the low half of each byte first: an unpacking of our own."""
    packed = np.frombuffer(tensor.raw_data, dtype=np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int8)
    signed = np.where(halves > 7, halves - 16, halves)
    return signed[: int(np.prod(tensor.dims))].reshape(tensor.dims)


def unit_of(model: CalibratedModel, layer: str) -> np.ndarray | int:
    """The powers of two that what a layer adds to the stream is in."""
    points = residuals(model.module)
    block = layer.rsplit(".", 2)[0]
    if layer == "patch_embed.proj" and "blocks.0.residual_in" in points:  # Swin has a LayerNorm between
        return points["blocks.0.residual_in"].unit.numpy()
    if layer.endswith("downsample.reduction") and points:
        return points[layer.replace("downsample.reduction", "blocks.0.residual_in")].unit.numpy()
    point = points.get(f"{block}.residual_attn")
    return point.unit.numpy() if point is not None and layer.endswith((".proj", ".fc2")) else 1


def check_promises(model: CalibratedModel) -> None:
    proto = ir.serde.serialize_model(canonical_graph(model))
    onnx.checker.check_model(proto, full_check=True)
    graph = proto.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 21)]
    assert not proto.functions
    assert all(node.domain == "" for node in graph.node)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names) and "" not in names

    blocks = block_names(model.module)
    norms = [name for name, part in model.module.named_modules() if isinstance(part, nn.LayerNorm)]
    assert len(nodes(graph, "LayerNormalization")) == len(norms)
    assert len(nodes(graph, "Gelu")) == len(blocks)
    assert len(nodes(graph, "Softmax")) == len(blocks)
    assert not {node.op_type for node in graph.node} & {"Erf", "Pow", "Sqrt", "Tanh", "Gemm", "Conv"}
    assert len(nodes(graph, "Div")) == len(products(model.module)) // 2  # of each integer softmax by its row's largest

    zeros = [node.input[2] for kind in ("QuantizeLinear", "DequantizeLinear") for node in nodes(graph, kind)
             if len(node.input) > 2]  # fmt: skip
    assert all(not onnx.numpy_helper.to_array(held[name]).any() for name in zeros)
    for node in nodes(graph, "QuantizeLinear"):
        assert held[node.input[2]].data_type == TensorProto.INT8

    layers, quantized = model.layers(), list(model.quantizers())
    assert [node.output[0] for node in nodes(graph, "QuantizeLinear")] == [f"{name}.input_q" for name in quantized]
    # where the last block's addition reads the class token alone, its levels are cut out and dequantized once more
    cut = bool(residuals(model.module)) and getattr(model.module, "global_pool", "") == "token"
    assert len(nodes(graph, "DequantizeLinear")) == len(quantized) + len(layers) + cut
    read = {name for node in graph.node for name in node.input} | {graph.output[0].name}
    assert all(read.intersection(node.output) for node in graph.node)
    for name, layer in layers.items():
        rows, columns = layer.out_features, layer.in_features
        bias, weight, scale = (held[f"{name}.{part}"] for part in ("bias", "weight_q", "weight_scale"))
        assert list(bias.dims) == [1, 1, rows]
        assert bias.data_type == TensorProto.FLOAT
        assert list(weight.dims) == [columns, rows]
        assert list(scale.dims) == ([rows] if layer.group is None else [columns // layer.group, rows])
        unit = unit_of(model, name)
        assert (layer.weight_scale.numpy() / unit == onnx.numpy_helper.to_array(scale).T).all()
        assert (onnx.numpy_helper.to_array(scale) > 0).all()
        wanted = layer.weight_q.numpy().T
        if layer.weight_bits <= 4:
            assert weight.data_type == TensorProto.INT4
            assert len(weight.raw_data) == -(-rows * columns // 2)
            assert not weight.int32_data
            assert (nibbles(weight) == wanted).all()
        else:
            assert weight.data_type == TensorProto.INT8
            assert len(weight.raw_data) == rows * columns
            assert (np.frombuffer(weight.raw_data, np.int8).reshape(weight.dims) == wanted).all()
        assert set(np.unique(wanted).tolist()) <= levels_of(layer.weight_bits)
        (reader,) = [node for node in graph.node if f"{name}.weight_q" in node.input]
        along = {"axis": 1} if layer.group is None else {"axis": 0, "block_size": layer.group}
        assert (reader.op_type, {a.name: a.i for a in reader.attribute}) == ("DequantizeLinear", along)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_promises_on_vit_digits(models: Callable[[str], CalibratedModel], scheme: str) -> None:
    check_promises(models(scheme))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w3a16+g16", "w4a8+attn8", "w4a8+res8"])
@pytest.mark.parametrize("network", NETWORKS)
def test_promises_on_other_networks(network: str, scheme: str) -> None:
    module = NETWORKS[network]()
    check_promises(calibrated(module, spec_of(module), scheme))


def test_the_network_has_the_nodes_it_should(models: Callable[[str], CalibratedModel]) -> None:
    found = Counter(node.op_type for node in canonical_graph(models("w8a8")).graph)
    # 3 blocks: 4 linears and 2 attention products each, the patch embedding and the head; 7 norms; 3 shifts after GELU
    assert found["MatMul"] == 3 * 6 + 2
    assert found["QuantizeLinear"] == 3 * 4 + 2
    assert found["DequantizeLinear"] == 2 * (3 * 4 + 2)
    assert found["LayerNormalization"] == 7
    assert found["Gelu"] == 3
    assert found["Sub"] == 3
    assert found["Clip"] == 0


def test_both_operands_of_an_attention_product_come_from_a_dequantizer(
    models: Callable[[str], CalibratedModel],
) -> None:
    """No scale and no transposition between DequantizeLinear and MatMul, which is what integer kernels are found by."""
    graph = canonical_graph(models("w8a8+attn8")).graph
    found = {node.name: node for node in graph if node.op_type == "MatMul" and ".attn." in (node.name or "")}
    for block in range(3):
        query = "Slice" if block == 2 else "Squeeze"  # the last block has one query, the class token's
        for part, sources in (("qk", (query, "Transpose")), ("pv", ("Div", "Squeeze"))):
            node = found[f"blocks.{block}.attn.{part}/MatMul"]
            dequantizers = [value.producer() for value in node.inputs]
            assert [each.op_type for each in dequantizers] == ["DequantizeLinear"] * 2
            quantizers = [each.inputs[0].producer() for each in dequantizers]
            assert [each.op_type for each in quantizers] == ["QuantizeLinear"] * 2
            assert tuple(each.inputs[0].producer().op_type for each in quantizers) == sources
    assert Counter(node.op_type for node in graph)["QuantizeLinear"] == 3 * 8 + 2


def test_only_activations_of_fewer_than_8_bits_are_clipped() -> None:
    model = calibrated(*digits(), "w4a4")
    graph = canonical_graph(model).graph
    clips = {node.name.removesuffix("/Clip"): node for node in graph if node.op_type == "Clip"}
    assert set(clips) == {name for name, layer in model.layers().items() if layer.act_bits == 4}
    assert "patch_embed.proj" not in clips
    assert "head" in clips
    for name, node in clips.items():
        scale = model.layers()[name].in_quant.scale.item()
        low, high = (value.const_value.numpy() for value in node.inputs[1:])
        assert (low.item(), high.item()) == (np.float32(-8 * scale), np.float32(7 * scale))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_model_gives_the_same_bytes(network: str, tmp_path: Path) -> None:
    module = NETWORKS[network]()
    model = calibrated(module, spec_of(module), "w4a4")
    first, second = serialized(canonical_graph(model)), serialized(canonical_graph(model))
    assert first == second
    again = calibrated(module, spec_of(module), "w4a4")
    assert serialized(canonical_graph(again)) == first


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_computes_what_the_calibrated_model_computes(
    models: Callable[[str], CalibratedModel], batch: int
) -> None:
    model = models("w8a8")
    images = noise(model.spec, batch, seed=5)
    made = run(canonical_graph(model), {"images": images}, optimize=False)
    wanted = model.logits(images).numpy()
    assert made.shape == wanted.shape
    # a rounding that falls the other way somewhere inside moves the logits by far less than quantization itself
    assert np.abs(made - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("scheme", ["w4a8", "w8a8+attn8", "w8a8+int"])
def test_one_window_that_is_shifted_all_the_same_is_lowered(tmp_path: Path, scheme: str) -> None:
    """timm shifts it where it is told to partition always: its scores have a mask and no axis of windows."""
    module: nn.Module = swin(img_size=(16, 16), always_partition=True)
    assert module.get_submodule("layers.1.blocks.1").attn_mask.shape == (1, 16, 16)
    model = calibrated(module, spec_of(module), scheme)
    lower(model, module, ["ort"], tmp_path)
    images = noise(model.spec, 3, seed=5)
    made, wanted = run(ir.load(tmp_path / CANONICAL), {"images": images}, optimize=False), model.logits(images).numpy()
    assert np.abs(made - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("network", [vit, swin])
def test_the_stream_is_quantized_right_behind_its_additions_and_read_in_units(network: Callable[[], nn.Module]) -> None:
    """Between Add and QuantizeLinear there is nothing; every LayerNorm multiplies the channels by their units first."""
    module = massive(network())
    model = calibrated(module, spec_of(module), "w8a8+res8")
    graph = canonical_graph(model).graph
    made = {value.name: node for node in graph for value in node.outputs}
    points = residuals(model.module)
    for name, point in points.items():
        assert float(point.unit[3]) >= 8
        quantize = made[f"{name}.input_q"]
        source = quantize.inputs[0].producer()
        begins = ("Add", "LayerNormalization") if name.endswith("_in") else ("Add",)
        assert source.op_type in begins and [use.node for use in source.outputs[0].uses()] == [quantize]
    for node in graph:
        if node.op_type == "LayerNormalization" and node.name != "patch_embed.norm/LayerNormalization":
            mul = node.inputs[0].producer()
            assert (mul.op_type, mul.inputs[0].producer().op_type) == ("Mul", "DequantizeLinear")
            unit = mul.inputs[1].const_value.numpy()
            assert (np.log2(unit) % 1 == 0).all() and unit[3] >= 8
            assert "downsample" not in node.name or (unit.reshape(4, -1) == unit[: len(unit) // 4]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([16, 32]), st.integers(2, 8), st.integers(0, 1000))
def test_groups_are_packed_and_come_back_as_level_times_scale(
    rows: int, groups: int, size: int, bits: int, seed: int
) -> None:
    """A layer fed the unit vectors gives its weights, each of them one float32 product."""
    generator = torch.Generator().manual_seed(seed)
    columns, grid = groups * size, weight_grid(bits)
    layer = QuantLinear(torch.zeros(rows, columns), None, bits, 16, size)
    levels = torch.randint(grid.low, grid.high + 1, (rows, columns), generator=generator)
    layer.set_weights(levels, torch.rand(rows, groups, generator=generator) + 1e-3)
    b = Builder("one", "x", (1, 1, columns))
    model = b.finish(reshape(b, linear(b, "layer", layer, b.input, quantized=True), [-1, rows]), "y", rows)
    held = {tensor.name: tensor for tensor in ir.serde.serialize_model(model).graph.initializer}
    if bits <= 4:
        assert len(held["layer.weight_q"].raw_data) == -(-rows * columns // 2)
        assert (nibbles(held["layer.weight_q"]) == levels.numpy().T).all()
    made = run(model, {"x": np.eye(columns, dtype=np.float32)[:, None, None]}, optimize=False)
    slow = [[np.float32(levels[i, j]) * layer.weight_scale[i, j // size].numpy() for i in range(rows)]
            for j in range(columns)]  # fmt: skip
    assert np.array_equal(made, slow)

"""One product of q, k and v inside its attention, or three before it: found, left alone elsewhere, the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from runtime.backends.ort import called_bytes, optimized_bytes
from runtime.onnx_wire import read_graph
from runtime.qkv import carriers, join_qkv, part_qkv
from tests.runtime.rewrites import kinds, model, needs_attention, outputs, unsigned_activations
from tests.toolchain.nets import calibrated, noise, serialized, spec_of, vit
from toolchain.graph import canonical_graph
from toolchain.targets.ort import lower

QKV = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (uint8[B, 5, 4] x, float[B, 5, 4] fed) => (float[B, 5, 4] y)
<int8[4, 12] w = {WEIGHTS}, float xs = {0.05}, float[12] ws = {SCALES}, uint8 xz = {128}, int8 wz = {0},
 float[12] bias = {BIASES}>
{
  [product] h = com.microsoft.MatMulIntegerToFloat(x, w, xs, ws, xz, wz, bias)
  q, k, v = Split<axis = 2, num_outputs = 3>(h)
  y = Attention<q_num_heads = 2, kv_num_heads = 2, scale = 1.0>(q, k, v)
}"""
_DRAW = np.random.default_rng(3)
QKV = QKV.replace("WEIGHTS", ", ".join(map(str, _DRAW.integers(-127, 128, 48))))
QKV = QKV.replace("SCALES", ", ".join(f"{value:.4f}" for value in _DRAW.uniform(0.001, 0.01, 12)))
QKV = QKV.replace("BIASES", ", ".join(f"{value:.4f}" for value in _DRAW.standard_normal(12)))
FEEDS = {
    "x": np.random.default_rng(4).integers(0, 256, (3, 5, 4), np.uint8),
    "fed": np.zeros((3, 5, 4), np.float32),
}


@needs_attention
def test_the_product_of_q_k_and_v_joins_the_attention() -> None:
    plain = model(QKV)
    made = join_qkv(plain)
    (node,) = read_graph(made).nodes
    assert (node.op_type, node.name, node.domain) == ("QAttention", "product", "com.microsoft")
    assert np.array_equal(outputs(made, FEEDS), outputs(plain, FEEDS))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(q, k, v)\n}", "(q, k, v)\n  z = Neg(y)\n}"),  # the control: still joined
        (", scale = 1.0", ""),  # the operators' own defaults are not to be trusted to agree
        (", scale = 1.0", ", scale = 0.5"),
        ("(q, k, v)\n}", "(k, q, v)\n}"),
        ("(q, k, v)\n}", "(q, k, fed)\n}"),
        ("(q, k, v)\n}", "(q, k, v)\n  z = Neg(h)\n}"),  # someone else reads the product
        ("axis = 2", "axis = 1"),
        ("xz, wz, bias)", "xz, wz)"),  # QAttention's bias is not optional
        ("uint8[B, 5, 4] x", "int8[B, 5, 4] x"),
    ],
)
def test_other_products_do_not_join(old: str, new: str) -> None:
    assert old in QKV
    text = QKV.replace(old, new)
    if new.startswith("int8"):
        text = text.replace("uint8 xz = {128}", "int8 xz = {0}")
    plain = model(text)
    joined = kinds(join_qkv(plain))["QAttention"]
    assert joined == ("Neg(y)" in new)
    if not joined:
        assert join_qkv(plain) is plain


@needs_attention
@pytest.mark.parametrize("zeros", ["int8 wz = {0}", "int8[12] wz = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}"])
@pytest.mark.parametrize("scales", ["all", "one"])
def test_a_joined_product_parts_in_three(zeros: str, scales: str) -> None:
    text = QKV.replace("int8 wz = {0}", zeros)
    if scales == "one":
        text = text[: text.index("float[12] ws")] + "float ws = {0.004}" + text[text.index("}, uint8 xz") + 1 :]
    joined = join_qkv(model(text))
    assert kinds(joined) == {"QAttention": 1}
    made = part_qkv(joined)
    found = read_graph(made)
    assert [node.op_type for node in found.nodes] == ["MatMulIntegerToFloat"] * 3 + ["Attention"]
    assert [node.name for node in found.nodes] == ["product", "product/k", "product/v", "product/Attention"]
    assert "w" not in found.constant and all(found.constant[f"w/{letter}"].dims == (4, 4) for letter in "qkv")
    assert np.array_equal(outputs(made, FEEDS), outputs(joined, FEEDS))
    (whole,) = read_graph(joined).nodes
    assert carriers(whole, found) == list(found.nodes[:3])
    assert part_qkv(made) is made


def joined_model() -> onnx.ModelProto:
    return onnx.load_from_string(join_qkv(model(QKV)))


def without_scale(made: onnx.ModelProto) -> None:
    (node,) = made.graph.node
    node.attribute.remove(next(one for one in node.attribute if one.name == "scale"))


def masked(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[5] = "mask"


def fed_bias(made: onnx.ModelProto) -> None:
    made.graph.initializer.remove(next(one for one in made.graph.initializer if one.name == "bias"))
    made.graph.input.append(onnx.helper.make_tensor_value_info("bias", onnx.TensorProto.FLOAT, [12]))


def unlike_parts(made: onnx.ModelProto) -> None:
    """Ten columns cannot be three heads' worth of anything."""
    for one in made.graph.initializer:
        if one.name in ("w", "ws", "bias"):
            values = onnx.numpy_helper.to_array(one)[..., :10]
            one.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), one.name))


def values_as_numbers(made: onnx.ModelProto) -> None:
    weights = next(one for one in made.graph.initializer if one.name == "w")
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.helper.make_tensor("w", onnx.TensorProto.INT8, values.shape, values.flatten().tolist()))


@needs_attention
@pytest.mark.parametrize("change", [without_scale, masked, fed_bias, unlike_parts, values_as_numbers])
def test_what_cannot_be_cut_stays_joined(change: Callable[[onnx.ModelProto], None]) -> None:
    made = joined_model()
    assert part_qkv(made.SerializeToString()) != made.SerializeToString()  # the control
    change(made)
    left = made.SerializeToString()
    assert part_qkv(left) is left


@needs_attention
def test_weights_that_somebody_else_reads_are_kept() -> None:
    made = joined_model()
    made.graph.node.append(onnx.helper.make_node("Identity", ["bias"], ["copied"]))
    made.graph.output.append(onnx.helper.make_tensor_value_info("copied", onnx.TensorProto.FLOAT, [12]))
    found = read_graph(part_qkv(made.SerializeToString()))
    assert "bias" in found.constant and "w" not in found.constant


@needs_attention
@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w4a16", "w8a8+res8"])
def test_both_forms_of_a_vit_give_the_same_bits(scheme: str) -> None:
    module = vit()
    spec = spec_of(module)
    executed = optimized_bytes(serialized(lower(canonical_graph(calibrated(module, spec, scheme)))))
    made = called_bytes(executed, 4, 2)
    assert called_bytes(executed, 1, 2) is executed
    assert called_bytes(executed, 1, 1) == called_bytes(executed, 2, 2) == made
    joined = kinds(executed)["QAttention"]
    assert joined == int(scheme != "w4a16" and unsigned_activations(executed))
    assert (made is executed) == (joined == 0)
    assert kinds(made)["QAttention"] == 0 and kinds(made)["Attention"] == 2
    assert kinds(made)["MatMulIntegerToFloat"] == kinds(executed)["MatMulIntegerToFloat"] + 3 * joined
    images = {"images": noise(spec, 3, seed=5).numpy()}
    assert np.array_equal(outputs(made, images), outputs(executed, images))

"""The OpenVINO dialect: what it refuses, and what OpenVINO really makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from runtime.backends.openvino import OpenVinoEngine, OpenVinoOptions, compiled_model, load, properties
from runtime.backends.openvino_nodes import ExecutedNode, executed_nodes
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.onnx_wire import with_extra_outputs
from runtime.parity import sqnr_db
from tests.conftest import NO_OPENVINO
from tests.toolchain.nets import calibrated, from_text, noise, run, serialized, spec_of, stored_as, swin, vit
from toolchain.graph import canonical_graph
from toolchain.targets import openvino

GOOD = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 4] x) => (float[B, 2, 3] y)
<float step = {0.015625}, int8 zero = {0}, float[3] ws = {0.5, 0.25, 0.125},
 int8[4, 3] w = {7, -6, 5, -4, 3, -2, 1, 0, -7, 6, -5, 4}, float[1, 1, 3] bias = {1, -2, 3}>
{
  [quantizer] x_q = QuantizeLinear(x, step, zero)
  x_dq = DequantizeLinear(x_q, step, zero)
  [dequantizer] w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] p = MatMul(x_dq, w_dq)
  [sum] y = Add(p, bias)
}"""


def refused(text: str) -> IntvitError:
    with pytest.raises(IntvitError) as caught:
        openvino.check(from_text(text))
    return caught.value


def test_a_legal_graph_passes() -> None:
    openvino.check(from_text(GOOD))


@pytest.mark.parametrize("zero", ["int8 zero = {-61}", "uint8 zero = {128}", "uint8 zero = {0}"])
def test_any_zero_point_but_int8_0_is_refused(zero: str) -> None:
    error = refused(GOOD.replace("int8 zero = {0}", zero))
    assert error.where == "quantizer"
    assert "shift" in error.why


def test_int4_beside_a_quantized_activation_is_refused() -> None:
    error = refused(GOOD.replace("int8[4, 3] w", "int4[4, 3] w"))
    assert error.where == "product"
    assert "Cast" in error.why


def test_int4_beside_a_float_activation_is_legal() -> None:
    openvino.check(from_text(GOOD.replace("int8[4, 3] w", "int4[4, 3] w").replace("MatMul(x_dq", "MatMul(x")))


def test_int4_of_an_odd_number_of_input_channels_is_refused() -> None:
    odd = GOOD.replace("[B, 2, 4] x", "[B, 2, 3] x").replace("int8[4, 3] w", "int4[3, 3] w").replace(", 6, -5, 4}", "}")
    error = refused(odd.replace("MatMul(x_dq", "MatMul(x"))
    assert error.where == "product" and "odd number of input channels" in error.why


def test_lowering_adds_casts_and_no_other_node() -> None:
    module = vit()
    canonical = canonical_graph(calibrated(module, spec_of(module), "w4a4"))
    before = serialized(canonical)
    dialect = openvino.lower(canonical)
    assert serialized(canonical) == before
    count = Counter(node.op_type for node in dialect.graph)
    assert count["Cast"] == 2 * 4 + 1  # every linear but the patch embedding
    count.subtract(Counter(node.op_type for node in canonical.graph))
    assert {name: extra for name, extra in count.items() if extra} == {"Cast": 9}


@pytest.mark.parametrize(("make", "blocks", "early"), [(vit, 2, 2), (swin, 4, 2)])
def test_what_one_kernel_of_attention_gives_is_quantized_before_it_is_transposed(
    make: Callable[[], nn.Module], blocks: int, early: int
) -> None:
    """Not in Swin's shifted windows, every second block: their second product is a kernel of its own."""
    module = make()
    dialect = openvino.lower(canonical_graph(calibrated(module, spec_of(module), "w8a8")))
    made: dict[str, list[str]] = {"attn.proj": [], "attn.qkv": [], "patch_embed.proj": []}
    for node in dialect.graph:
        site = node.name.removesuffix("/QuantizeLinear")
        for end, makers in made.items():
            if node.name != site and site.endswith(end) and node.inputs[0] is not None:
                producer = node.inputs[0].producer()
                makers.append("" if producer is None else producer.op_type)
    assert len(made["attn.proj"]) == len(made["attn.qkv"]) == blocks
    assert made["attn.proj"].count("MatMul") == early
    assert made["patch_embed.proj"] == [""]  # the images themselves
    assert set(made["attn.qkv"]) <= {"LayerNormalization", "Reshape"}


@pytest.mark.parametrize("scheme", ["w4a16", "w4a16+g16", "w3a16+attn8+g32"])
def test_weight_only_schemes_keep_int4_packed(scheme: str) -> None:
    module = vit()
    dialect = openvino.lower(canonical_graph(calibrated(module, spec_of(module), scheme)))
    assert "Cast" not in {node.op_type for node in dialect.graph}
    assert any(value.dtype == ir.DataType.INT4 for value in dialect.graph.initializers.values())


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16", "w4a16+g16"])
def test_dialect_and_canonical_give_the_same_bits(scheme: str) -> None:
    """But for fc2's steps, where a rounding may fall the other way: on these images none does."""
    module = vit(global_pool="avg", reg_tokens=1)
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    images = {"images": noise(spec, 3, seed=7).numpy()}
    wanted = run(canonical, images, optimize=False)
    assert (run(openvino.lower(canonical), images, optimize=False) == wanted).all()


@pytest.mark.parametrize(
    ("changes", "scheme", "widened"),
    [
        ({"embed_dim": 33, "num_heads": 3}, "w4a16", 2 * 3 + 1),  # qkv, proj, fc1 and the head; fc2 reads 132
        ({"mlp_ratio": 41 / 32}, "w3a16", 2),
        ({"embed_dim": 34, "num_heads": 2}, "w4a16", 0),
    ],
)
def test_int4_of_an_odd_number_of_input_channels_is_stored_as_int8(
    changes: dict[str, Any], scheme: str, widened: int
) -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = vit(**changes)
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    dialect = openvino.lower(canonical)
    assert stored_as(dialect, ir.DataType.INT8) - stored_as(canonical, ir.DataType.INT8) == widened
    images = {"images": noise(spec, 3, seed=7).numpy()}
    _, made = executed(serialized(dialect), images)
    assert sqnr_db(run(canonical, images, optimize=False), made) > 80


def executed(model: bytes, feeds: Mapping[str, Any]) -> tuple[list[ExecutedNode], np.ndarray]:
    """What OpenVINO runs of ``model`` for images of this shape, and the logits."""
    loaded = load(model, where="test")
    loaded.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = compiled_model(loaded, properties(1, OpenVinoOptions()), where="test")
    return executed_nodes(compiled, feeds["images"]), np.array(compiled(dict(feeds))["logits"])


def products(nodes: list[ExecutedNode]) -> list[ExecutedNode]:
    return [node for node in nodes if node.kind == "FullyConnected"]


@pytest.mark.parametrize(("make", "layers"), [(vit, 2 * 4 + 2), (swin, 4 * 4 + 3)])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w3a8", "w8a8+res8"])
def test_every_linear_is_an_integer_product(make: Callable[[], nn.Module], layers: int, scheme: str) -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = make()
    spec = spec_of(module)
    dialect = openvino.lower(canonical_graph(calibrated(module, spec, scheme)))
    nodes, _ = executed(serialized(dialect), {"images": noise(spec, 2).numpy()})
    assert len(products(nodes)) == layers
    assert all(node.integer for node in products(nodes)), [node.kernel for node in products(nodes)]


def test_gelu_and_the_next_quantizer_are_fused_into_fc1() -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = vit()
    spec = spec_of(module)
    dialect = openvino.lower(canonical_graph(calibrated(module, spec, "w8a8")))
    nodes, _ = executed(serialized(dialect), {"images": noise(spec, 2).numpy()})
    found = [node for node in products(nodes) if any(source.endswith("/Gelu") for source in node.sources)]
    assert len(found) == 2
    for node in found:
        assert any(source.endswith("fc2/QuantizeLinear") for source in node.sources)


def test_int4_dequantized_directly_would_run_in_float() -> None:
    """Why the dialect has a Cast: without it OpenVINO calls the weights i4 and multiplies floats."""
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = vit()
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, "w4a8"))
    images = {"images": noise(spec, 2).numpy()}
    direct, _ = executed(serialized(canonical), images)
    assert [node.integer for node in products(direct)].count(True) == 1  # the patch embedding
    cast, _ = executed(serialized(openvino.lower(canonical)), images)
    assert all(node.integer for node in products(cast))


def test_exposed_taps_leave_the_kernels_and_the_bits_as_they_are(digits_bundle: Callable[[str], Path]) -> None:
    """What parity rests on: the graph it reads the integers from runs node by node as the engine's does."""
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    bundle = Bundle.open(digits_bundle("w4a8"))
    model, quantizers = OpenVinoEngine.tapped(bundle)
    images = {"images": bundle.golden().images}
    plain, logits = executed(model, images)
    exposed, same = executed(with_extra_outputs(model, [quantizer.tensor for quantizer in quantizers]), images)
    assert Counter((node.kind, node.kernel) for node in plain) == Counter((node.kind, node.kernel) for node in exposed)
    assert (same == logits).all()
    engine = OpenVinoEngine.open(bundle, threads=1)
    assert (engine.run(bundle.golden().images) == logits).all()


def test_groups_stay_packed_in_the_compiled_model() -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    module = vit()
    spec = spec_of(module)
    model = calibrated(module, spec, "w4a16+g16")
    images = noise(spec, 2, seed=7)
    loaded = load(serialized(openvino.lower(canonical_graph(model))), where="test")
    loaded.reshape({"images": list(images.shape)})
    compiled = compiled_model(loaded, properties(1, OpenVinoOptions()), where="test")
    made = np.array(compiled({"images": images.numpy()})["logits"])
    assert sqnr_db(model.logits(images).numpy(), made) > 80
    kinds = Counter(op.get_output_element_type(0).get_type_name() for op in compiled.get_runtime_model().get_ops()
                    if op.get_rt_info()["layerType"].astype(str) == "Const")  # fmt: skip
    assert kinds["i4"] == 2 * 4 + 1  # every linear layer but the patch embedding

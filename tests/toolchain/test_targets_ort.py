"""The ORT dialect: what it refuses, and what ONNX Runtime really makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from runtime.backends.ort import make_session, optimized_bytes
from runtime.errors import IntvitError
from runtime.execution import INTEGER_KERNELS, execution
from runtime.onnx_wire import read_graph
from tests.toolchain.nets import calibrated, from_text, noise, run, serialized, spec_of, swin, vit
from toolchain.graph import canonical_graph
from toolchain.targets import ort

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
        ort.check(from_text(text))
    return caught.value


def test_a_legal_graph_passes() -> None:
    ort.check(from_text(GOOD))


@pytest.mark.parametrize("shape", ["float[3] bias", "float[1, 3] bias"])
def test_a_bias_that_is_not_three_dimensional_is_refused(shape: str) -> None:
    error = refused(GOOD.replace("float[1, 1, 3] bias", shape))
    assert error.where == "product"
    assert "(1, 1, N)" in error.why


def test_a_one_dimensional_bias_is_refused_on_either_side_of_the_add() -> None:
    text = GOOD.replace("float[1, 1, 3] bias", "float[3] bias").replace("Add(p, bias)", "Add(bias, p)")
    assert refused(text).where == "product"


def test_quantized_integers_with_two_readers_are_refused() -> None:
    text = GOOD.replace("[product] p = MatMul(x_dq, w_dq)", "x2 = DequantizeLinear(x_q, step, zero)\n"
                        "  [product] p0 = MatMul(x_dq, w_dq)\n  p1 = MatMul(x2, w_dq)\n  p = Add(p0, p1)")  # fmt: skip
    error = refused(text)
    assert error.where == "quantizer"
    assert "more than one" in error.why


def test_int4_that_is_dequantized_directly_is_refused() -> None:
    error = refused(GOOD.replace("int8[4, 3] w", "int4[4, 3] w"))
    assert error.where == "dequantizer"
    assert "Cast" in error.why


def test_lowering_leaves_the_canonical_graph_as_it_was() -> None:
    module = vit()
    canonical = canonical_graph(calibrated(module, spec_of(module), "w4a4"))
    before = serialized(canonical)
    dialect = ort.lower(canonical)
    assert serialized(canonical) == before
    assert serialized(dialect) != before
    types = Counter(node.op_type for node in dialect.graph)
    assert types["Sub"] == 0
    assert types["Cast"] == 2 * 4 + 1  # every linear but the patch embedding


PRODUCT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 3, 5, 8] q, float[B, 3, 5, 8] k) => (float[B, 3, 5, 5] y)
<float q_step = {0.015625}, float k_step = {0.03}, int8 zero = {0}, float[1, 3, 5, 5] bias>
{
  t = Transpose<perm = [0, 1, 3, 2]>(k)
  q_q = QuantizeLinear(q, q_step, zero)
  q_dq = DequantizeLinear(q_q, q_step, zero)
  k_q = QuantizeLinear(t, k_step, zero)
  k_dq = DequantizeLinear(k_q, k_step, zero)
  [product] y = MatMul(q_dq, k_dq)
}"""


@pytest.mark.parametrize("batch", [1, 4])
def test_an_attention_product_is_one_integer_kernel_and_exact(batch: int) -> None:
    """Both operands are activations with four axes; x86 makes both unsigned, and the sums stay those of int8."""
    model = from_text(PRODUCT.replace(", float[1, 3, 5, 5] bias", ""))
    ort.check(model)
    found = read_graph(optimized_bytes(serialized(model))).op_histogram()
    assert found["MatMulIntegerToFloat"] == 1
    assert not found.keys() & {"MatMul", "FusedMatMul", "Gemm", "DequantizeLinear"}
    generator = np.random.default_rng(batch)
    q, k = (4 * generator.standard_normal((batch, 3, 5, 8), np.float32) for _ in range(2))  # beyond both ranges
    left, right = (
        np.clip(np.rint(x / np.float32(step)), -128, 127).astype(np.int64) for x, step in ((q, 0.015625), (k, 0.03))
    )
    assert left.min() == -128 and right.max() == 127
    total = left @ right.swapaxes(-1, -2)
    wanted = total.astype(np.float32) * (np.float32(0.015625) * np.float32(0.03))
    assert np.array_equal(run(model, {"q": q, "k": k}), wanted)


def test_a_score_bias_of_four_axes_after_a_product_is_legal() -> None:
    text = PRODUCT.replace("[product] y = MatMul(q_dq, k_dq)", "[product] s = MatMul(q_dq, k_dq)\n  y = Add(s, bias)")
    text = text.replace("float[1, 3, 5, 5] bias", f"float[1, 3, 5, 5] bias = {{{', '.join(map(str, range(75)))}}}")
    ort.check(from_text(text))
    found = read_graph(optimized_bytes(serialized(from_text(text)))).op_histogram()
    assert found["MatMulIntegerToFloat"] == 1 and "MatMul" not in found


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_every_linear_of_vit_digits_is_an_integer_kernel(digits_bundle: Callable[[str], Path], scheme: str) -> None:
    graph = read_graph(optimized_bytes((digits_bundle(scheme) / "ort/model.onnx").read_bytes()))
    found = graph.op_histogram()
    blocks = 3
    joined = found.get("QAttention", 0)  # the product of q, k and v with the attention behind it
    assert found["MatMulIntegerToFloat"] + joined == 4 * blocks + 2
    attention = found.get("Attention", 0) + joined  # from ONNX Runtime 1.24 one operator, else two float products
    assert attention in (0, blocks)
    assert found.get("MatMul", 0) == (0 if attention else 2 * blocks)
    assert found["QuantizeLinear"] == 4 * blocks + 2
    assert "DequantizeLinear" not in found
    assert "Gemm" not in found
    assert "Cast" not in found  # folded at load


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w3a8", "w4a8+attn8", "w4a8+res8"])
def test_every_linear_of_a_tiny_swin_is_an_integer_kernel(scheme: str) -> None:
    module = swin()
    dialect = ort.lower(canonical_graph(calibrated(module, spec_of(module), scheme)))
    optimized = read_graph(optimized_bytes(serialized(dialect)))
    found = execution(optimized, [])
    a_block = 6 if scheme.endswith("+attn8") else 4
    assert sum(found.integer_kernels.values()) == 4 * a_block + 3  # patch embedding, merging, head
    assert set(found.integer_kernels) <= INTEGER_KERNELS
    assert not found.fallbacks


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16", "w4a16+g16", "w4a8+attn8", "w8a8+res8"])
@pytest.mark.parametrize("batch", [1, 3])
def test_canonical_and_dialect_give_the_same_logits(scheme: str, batch: int) -> None:
    module = vit(global_pool="avg", reg_tokens=1)
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    images = {"images": noise(spec, batch, seed=7).numpy()}
    wanted = run(canonical, images, optimize=False)
    dialect = ort.lower(canonical)
    made = [run(dialect, images, optimize=False)]
    if "a16" not in scheme:  # the next test
        made.append(run(dialect, images, optimize=True))
    for logits in made:
        assert np.abs(logits - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w3a16+g16", "w4a16+g32", "w6a16+g32"])
def test_weight_only_schemes_keep_float_activations_in_the_engine(scheme: str) -> None:
    """By default ORT's MatMulNBits quantizes its float input to 8 bits; the runtime's session must say otherwise."""
    module = vit()
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    images = {"images": noise(spec, 3, seed=7).numpy()}
    wanted = run(canonical, images, optimize=False)
    engine = make_session(serialized(ort.lower(canonical)), threads=1)
    assert np.abs(engine.run(None, images)[0] - wanted).max() < 1e-4 * np.abs(wanted).max()


def nbits(model: bytes) -> list[tuple[int, int]]:
    """Bits and block size of every MatMulNBits that ONNX Runtime's optimizer makes, in order."""
    found = [node.integers for node in read_graph(optimized_bytes(model)).nodes if node.op_type == "MatMulNBits"]
    return [(node["bits"][0], node["block_size"][0]) for node in found]


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [
        ("w4a16", {32: 32, 128: 128}),
        ("w4a16+g16", {32: 16, 128: 16}),
        ("w2a16+g32", {32: 32, 128: 32}),
        ("w4a16+attn8+g16", {32: 16, 128: 16}),
    ],
)
def test_four_bit_weights_beside_floats_are_packed_in_the_engine_too(scheme: str, blocks: dict[int, int]) -> None:
    """Widths 32 and, in fc2, 128. The numbers are the canonical graph's, whatever blocks they are stored in."""
    module = vit()
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    dialect = ort.lower(canonical)
    assert "Cast" not in {node.op_type for node in dialect.graph}
    images = {"images": noise(spec, 3, seed=7).numpy()}
    assert (run(dialect, images, optimize=False) == run(canonical, images, optimize=False)).all()
    widths = [32, 32, 32, 128] * 2 + [32]
    found = nbits(serialized(dialect))
    if not found:
        pytest.skip("this ONNX Runtime has no MatMulNBits for these weights on this machine")
    assert [pair for pair in found if pair[0] == 4] == [(4, blocks[width]) for width in widths]


def test_weights_that_no_block_divides_keep_the_cast() -> None:
    module = vit(embed_dim=24)
    dialect = ort.lower(canonical_graph(calibrated(module, spec_of(module), "w4a16")))
    count = Counter(node.op_type for node in dialect.graph)
    assert count["Cast"] == 2 * 3 + 1  # fc2 has 96 inputs, in blocks of 32


def test_the_dialect_keeps_names_that_the_manifest_speaks_of() -> None:
    module = vit()
    model = calibrated(module, spec_of(module), "w4a8")
    dialect = ort.lower(canonical_graph(model))
    values = {value.name for node in dialect.graph for value in node.outputs}
    names = {node.name for node in dialect.graph}
    for name in model.layers():
        assert f"{name}.input_q" in values
        assert f"{name}/MatMul" in names
    assert [value.name for value in dialect.graph.inputs] == ["images"]
    assert [value.name for value in dialect.graph.outputs] == ["logits"]
    assert isinstance(dialect, ir.Model)

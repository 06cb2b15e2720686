"""Rewrites around ONNX Runtime's optimizer: found where they should be, left alone elsewhere, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends.ort import make_session, optimized_bytes
from runtime.fusions import fold_biases, fuse_attention
from runtime.onnx_wire import read_graph
from tests.runtime.rewrites import kinds, model, needs_attention, outputs, unsigned_activations
from tests.toolchain.nets import calibrated, noise, serialized, spec_of, swin, vit
from toolchain.graph import canonical_graph, float_graph
from toolchain.targets.ort import lower

ATTENTION = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 5, 24] x, float[1, 2, 5, 5] fed) => (float[B, 5, 8] y)
<int64[5] heads = {-1, 5, 3, 2, 4}, int64[3] merged = {-1, 5, 8}, int64[1] zero = {0}>
{
  r = Reshape(x, heads)
  t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
  q5, k5, v5 = Split<axis = 0, num_outputs = 3>(t)
  q = Squeeze(q5, zero)
  k = Squeeze(k5, zero)
  v = Squeeze(v5, zero)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(q, kt)
  sm = Add(s, mask)
  [attention] p = Softmax<axis = -1>(sm)
  o = MatMul(p, v)
  ot = Transpose<perm = [0, 2, 1, 3]>(o)
  y = Reshape(ot, merged)
}"""
BIAS = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (uint8[B, 5, 4] x) => (float[B, 5, 3] y)
<int8[4, 3] w = {1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12}, float xs = {0.5}, float[3] ws = {0.1, 0.2, 0.3},
 uint8 xz = {128}, int8 wz = {0}, float[1, 1, 3] bias = {1.5, -2.5, 3.25}>
{
  h = com.microsoft.MatMulIntegerToFloat(x, w, xs, ws, xz, wz)
  y = Add(h, bias)
}"""


@needs_attention
@pytest.mark.parametrize("masked", [True, False])
def test_attention_becomes_one_operator(masked: bool) -> None:
    text = (
        ATTENTION
        if masked
        else ATTENTION.replace("sm = Add(s, mask)", "").replace("Softmax<axis = -1>(sm)", "Softmax<axis = -1>(s)")
    )
    plain = model(text)
    made = fuse_attention(plain)
    assert kinds(made) == {"Split": 1, "Attention": 1}
    assert next(node.name for node in read_graph(made).nodes if node.op_type == "Attention") == "attention"
    x = np.random.default_rng(1).standard_normal((3, 5, 24)).astype(np.float32)
    feeds = {"x": x, "fed": np.zeros((1, 2, 5, 5), np.float32)}
    assert np.allclose(outputs(made, feeds), outputs(plain, feeds), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("perm = [2, 0, 3, 1, 4]", "perm = [2, 0, 3, 1, 4], other = 1"),  # the control: still fused
        ('"" : 21', '"" : 20'),  # not one of ours
        ("perm = [0, 2, 1, 3]", "perm = [0, 1, 2, 3]"),  # heads not merged
        ("perm = [0, 1, 3, 2]", "perm = [0, 1, 2, 3]"),  # keys not transposed
        ("Softmax<axis = -1>", "Softmax<axis = 1>"),
        ("MatMul(p, v)", "MatMul(p, k)"),
        ("MatMul(q, kt)", "MatMul(v, kt)"),
        ("Add(s, mask)", "Add(s, fed)"),  # not a constant
        ("{-1, 5, 8}", "{-1, 10, 4}"),  # merged otherwise
        ("(float[B, 5, 8] y)", "(float[B, 5, 8] y, float[B, 2, 5, 5] p)"),  # someone wants the probabilities
        ("kt = Transpose", "extra = Neg(q)\n  kt = Transpose"),  # someone else reads the queries
    ],
)
def test_anything_else_stays_as_it_is(old: str, new: str) -> None:
    assert old in ATTENTION
    plain = model(ATTENTION.replace(old, new))
    fused = kinds(fuse_attention(plain))["Attention"]
    assert fused == ("other" in new)
    if not fused:
        assert fuse_attention(plain) is plain


def test_the_bias_goes_into_the_product() -> None:
    plain = model(BIAS)
    made = fold_biases(plain)
    assert kinds(made) == {"MatMulIntegerToFloat": 1}
    x = np.random.default_rng(2).integers(0, 256, (2, 5, 4), np.uint8)
    assert np.array_equal(outputs(made, {"x": x}), outputs(plain, {"x": x}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = Add(h, bias)", "y = Mul(h, bias)"),
        ("y = Add(h, bias)", "n = Neg(h)\n  y = Add(h, n)"),  # not a constant
        ("float[1, 1, 3] bias = {1.5, -2.5, 3.25}", "float[1, 1, 1] bias = {1.5}"),  # no row
        ("(float[B, 5, 3] y)", "(float[B, 5, 3] y, float[B, 5, 3] h)"),  # someone wants the product
        ("y = Add(h, bias)", "y = Add(h, bias)\n  z = Neg(bias)"),  # someone else reads the bias
    ],
)
def test_other_additions_stay(old: str, new: str) -> None:
    assert old in BIAS
    plain = model(BIAS.replace(old, new))
    assert fold_biases(plain) is plain


@needs_attention
@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w4a16"])
def test_an_engine_of_a_vit_has_neither_loose_biases_nor_loose_attention(scheme: str) -> None:
    module = vit()
    spec = spec_of(module)
    dialect = serialized(lower(canonical_graph(calibrated(module, spec, scheme))))
    executed = optimized_bytes(dialect)
    found = kinds(executed)
    joined = int(scheme != "w4a16" and unsigned_activations(executed))
    assert found["QAttention"] == joined  # the last block takes its queries from one token alone
    assert found["Attention"] == 2 - joined
    assert found["Softmax"] == 0
    assert found["Slice"] == 2  # the last block's queries, and the tokens it leaves behind
    if scheme != "w4a16":
        assert found["MatMulIntegerToFloat"] == 2 * 4 + 2 - joined
        assert found["Add"] == 1 + 2 * 2  # positions, residuals
    images = {"images": noise(spec, 3, seed=5).numpy()}
    wanted = make_session(dialect, threads=1).run(None, images)[0]
    assert np.abs(outputs(executed, images) - wanted).max() < 2e-3 * np.abs(wanted).max()


@needs_attention
def test_swin_windows_that_share_their_mask_are_fused(tmp_path: Path) -> None:
    module = swin()
    spec = spec_of(module)
    plain = serialized(float_graph(module, spec))
    made = fuse_attention(plain)
    assert kinds(made)["Attention"] == 2
    assert kinds(made)["Softmax"] == 2  # the shifted ones stay
    images = {"images": noise(spec, 2, seed=5).numpy()}
    assert np.allclose(outputs(made, images), outputs(plain, images), rtol=1e-4, atol=1e-5)

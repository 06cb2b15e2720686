"""LinearKernels: integer products become nodes of our kernels, with the same integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.ort import make_session
from runtime.kernels import reference
from runtime.kernels.in_onnx import written_out
from runtime.kernels.packing import pack_quantizer, unpack_int4
from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import ComputeDtype, LinearKernels
from toolchain.rules import findings

K, N = 48, 5
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, {k}] x) => (float[B, 2, {n}] y)
<float step = {{0.015625}}, int8 zero = {{0}}, float c = {{0.5}},
 {kind}[{k}, {n}] w = {{{levels}}}, float[{n}] ws = {{0.011, 0.007, 0.003, 0.02, 0.013}},
 float[1, 1, {n}] bias = {{1, -2, 3, 0.5, -0.25}}, float next = {{0.03125}}, int8 next_zero = {{0}},
 float[{n}] r = {{0.75, 2, 1.25, 0.5, 1.5}}, float low = {{-0.25}}, float high = {{0.21875}}>
{{
{nodes}
}}"""
HEAD = """  [q] u_q = QuantizeLinear({source}, step, zero)
  [dq] u_dq = DequantizeLinear(u_q, step, zero)
  [weight] w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] p = MatMul(u_dq, w_dq)"""
SHIFT = "  [shift] u = Sub(x, c)\n"
TAILS = {
    "sum": "  [sum] y = Add(p, bias)",
    "gelu": "  [sum] s = Add(p, bias)\n  [gelu] y = Gelu(s)",
    "int8": """  [sum] s = Add(p, bias)
  [next] v_q = QuantizeLinear(s, next, next_zero)
  [back] y = DequantizeLinear(v_q, next, next_zero)""",
    "gelu to int8": """  [sum] s = Add(p, bias)
  [gelu] h = Gelu(s)
  [next] v_q = QuantizeLinear(h, next, next_zero)
  [back] y = DequantizeLinear(v_q, next, next_zero)""",
}
# What calibration puts between Gelu and quantizer: a factor a channel, a shift, and the bounds of fewer than 8 bits.
TAILS["gelu, factor to int8"] = TAILS["gelu to int8"].replace("h = Gelu(s)", "g = Gelu(s)\n  [factor] h = Mul(g, r)")
TAILS["gelu, shift to int8"] = TAILS["gelu to int8"].replace("h = Gelu(s)", "g = Gelu(s)\n  [shift] h = Sub(g, c)")
TAILS["gelu, factor, shift to int8"] = TAILS["gelu, factor to int8"].replace(
    "h = Mul(g, r)", "f = Mul(g, r)\n  [shift] h = Sub(f, c)"
)
TAILS["gelu, factor, shift to int4"] = TAILS["gelu, factor, shift to int8"].replace(
    "h = Sub(f, c)", "t = Sub(f, c)\n  [clip] h = Clip(t, low, high)"
)
AFFINE = [tail for tail in TAILS if "factor" in tail or "shift" in tail]
QUANTIZED = [tail for tail in TAILS if "to int" in tail or tail == "int8"]


def text(tail: str = "sum", bits: int = 8, *, shift: bool = False, k: int = K, seed: int = 0) -> str:
    """A layer of k x 5 with random weights; every step is a power of two, so float16 holds it."""
    largest = 7 if bits == 4 else 127
    levels = np.random.default_rng(seed).integers(-largest, largest + 1, k * N)
    nodes = (SHIFT if shift else "") + HEAD.format(source="u" if shift else "x") + "\n" + TAILS[tail]
    kind = "int4" if bits == 4 else "int8"
    return TEXT.format(k=k, n=N, kind=kind, levels=", ".join(map(str, levels)), nodes=nodes)


def x(seed: int = 0, k: int = K) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((3, 2, k)).astype(np.float32)}


def lowered(source: str) -> ir.Model:
    model = from_text(source)
    assert LinearKernels()(model).modified
    ComputeDtype(ir.DataType.FLOAT16)(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    return model


def outputs(model: ir.Model, feeds: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A tensor of the graph, its kernels' nodes written out."""
    data = onnx.load_from_string(written_out(serialized(model)))
    data.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    made: np.ndarray = make_session(data.SerializeToString(), threads=1, optimize=False).run([name], feeds)[0]
    return made


def kernel(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.domain)
    return node


@pytest.mark.parametrize(
    ("tail", "op_type", "gelu", "left"),
    [
        ("sum", "linear_f16", 0, ["q"]),
        ("gelu", "linear_f16", 1, ["q"]),
        ("int8", "linear_i8", 0, ["q", "back"]),
        *((tail, "linear_i8", 1, ["q", "back"]) for tail in ("gelu to int8", *AFFINE)),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_one_node_takes_what_the_kernel_does(tail: str, op_type: str, gelu: int, left: list[str], bits: int) -> None:
    model = lowered(text(tail, bits))
    node = kernel(model)
    assert (node.domain, node.op_type, node.name) == ("intvit", op_type, "product")
    assert {name: one.value for name, one in node.attributes.items()} == {
        "plugin_namespace": "intvit",
        "plugin_version": "1",
        "aot": 1,
        "bits": bits,
        "gelu": gelu,
    } | ({"affine": int(tail in AFFINE)} if op_type == "linear_i8" else {})
    assert [one.name for one in model.graph if not one.domain and one.op_type != "Cast"] == left
    assert model.graph.opset_imports["intvit"] == 1
    kinds = [ir.DataType.INT8, *[ir.DataType.FLOAT] * (len(node.inputs) - 2)]
    assert [value.dtype for value in node.inputs[1:]] == kinds
    assert node.inputs[1].shape == [N, 32 if bits == 4 else 64]
    used = {value.name for one in model.graph for value in one.inputs}
    never_read = {name for name in from_text(text(tail, bits)).graph.initializers if f"{name})" not in TAILS[tail]}
    assert set(model.graph.initializers) - (never_read & {"c", "next", "next_zero", "r", "low", "high"}) <= used
    assert findings(model, "tensorrt") == []


@given(st.sampled_from(list(TAILS)), st.sampled_from([4, 8]), st.integers(0, 99))
def test_the_node_computes_what_numerics_md_says(tail: str, bits: int, seed: int) -> None:
    """Every bit: exact sums, one product of the two scales, one multiplication, one addition, one rounding; behind GELU
    a product, a difference, a quotient.
    """
    source = text(tail, bits, seed=seed)
    before, model = from_text(source), lowered(source)
    stored = {name: value.const_value.numpy() for name, value in before.graph.initializers.items()}
    levels = stored["w"].astype(np.int8).T
    a = outputs(model, x(seed), "u_q")
    node = kernel(model)
    made = outputs(model, x(seed), node.outputs[0].name)
    ends = (-8, 7) if "int4" in tail else (-128, 127)
    quantizer = pack_quantizer(0.03125, 0.5 if "shift" in tail else 0, ends)
    wanted = reference.linear(
        a.reshape(-1, K),
        levels,
        np.float32(stored["step"]) * stored["ws"],
        stored["bias"].reshape(-1),
        with_gelu="gelu" in tail,
        factor=(stored["r"] if "factor" in tail else np.ones(N, np.float32)) if tail in AFFINE else None,
        quantizer=quantizer if tail in QUANTIZED else None,
    )
    assert made.reshape(wanted.shape).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_integers_are_the_canonical_graphs(bits: int) -> None:
    """Float32 against float32: the same int8 behind a plain layer; behind a rational GELU at most a step apart."""
    for tail in QUANTIZED:
        source = text(tail, bits)
        feeds = {"x": x()["x"].astype(np.float16).astype(np.float32)}
        wanted, made = from_text(source), lowered(source)
        apart = np.abs(outputs(made, feeds, "v_q").astype(int) - outputs(wanted, feeds, "v_q"))
        assert apart.max() <= ("gelu" in tail) and (apart > 0).mean() < 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_packed_and_nothing_is_lost(bits: int) -> None:
    before, model = from_text(text(bits=bits)), lowered(text(bits=bits))
    packed = model.graph.initializers["w"].const_value.numpy()
    levels = unpack_int4(packed.view(np.uint8), K) if bits == 4 else packed[:, :K]
    assert (levels == before.graph.initializers["w"].const_value.numpy().astype(np.int8).T).all()


@given(st.floats(2**-8, 0.125, width=32), st.integers(1, 100))
def test_a_shift_that_float16_rounds_is_undone_as_it_is_rounded(step: float, steps: int) -> None:
    """Of the layer's output for x = c, where the quantizer gives 0, only the bias is left: ``b + W c``."""
    bias = np.array([1, -2, 3, 0.5, -0.25])
    model = from_text(text(shift=True))
    weights = model.graph.initializers
    weight_scale = weights["ws"].const_value.numpy()
    sums = (weights["w"].const_value.numpy().astype(float) * weight_scale).sum(0)
    c = np.float32(step * steps)
    for name, array in (
        ("step", np.float32(step)),
        ("c", c),
        ("bias", (bias + c * sums).astype(np.float32)[None, None]),
    ):
        weights[name].const_value = ir.tensor(array, name=name)
    LinearKernels()(model)
    node = kernel(model)
    assert np.allclose(
        node.inputs[3].const_value.numpy(),
        bias + float(np.float16(c)) * sums,
        atol=2e-5 * np.abs(c * sums).max() + 1e-6,
    )
    half = np.float32(np.float16(np.float32(step)))
    assert (node.inputs[2].const_value.numpy() == half * weight_scale).all()


def in_a_row(tail: str) -> str:
    """Two layers of 16 x 16, the second with integers from ``tail``."""
    source = text(tail, k=16)
    second = """  [back] v_dq = DequantizeLinear(v_q, next, next_zero)
  [weight2] w2_dq = DequantizeLinear<axis = 1>(w2, ws2)
  [product2] p2 = MatMul(v_dq, w2_dq)
  [sum2] y = Add(p2, bias2)"""
    wide = np.random.default_rng(1).integers(-127, 128, 16 * 16)
    source = source.replace("  [back] y = DequantizeLinear(v_q, next, next_zero)", second)
    source = source.replace(", 5]", ", 16]").replace("[5]", "[16]")
    source = source.replace("0.011, 0.007, 0.003, 0.02, 0.013", ", ".join(["0.011"] * 16))
    source = source.replace("1, -2, 3, 0.5, -0.25", ", ".join(["0.5"] * 16))
    source = source.replace("0.75, 2, 1.25, 0.5, 1.5", ", ".join(["0.75", "2"] * 8))
    source = source.replace(
        "high = {0.21875}>",
        "high = {0.21875}, int8[16, 16] w2 = {" + ", ".join(map(str, wide)) + "},"
        " float[16] ws2 = {"
        + ", ".join(["0.01"] * 16)
        + "}, float[1, 1, 16] bias2 = {"
        + ", ".join(["-1"] * 16)
        + "}>",
    )
    start = source.index("w = {") + 5
    return source[:start] + ", ".join(map(str, wide)) + source[source.index("}", start) :]


@pytest.mark.parametrize("tail", ["gelu to int8", *AFFINE])
def test_layers_in_a_row(tail: str) -> None:
    """The first takes the second's quantizer with it, and the second reads its integers."""
    source = in_a_row(tail)
    model = lowered(source)
    assert [node.op_type for node in model.graph if node.domain] == ["linear_i8", "linear_f16"]
    left = [node.op_type for node in model.graph if not node.domain and node.op_type != "Cast"]
    assert left == ["QuantizeLinear"]
    feeds = {"x": x(k=16)["x"].astype(np.float16).astype(np.float32)}
    wanted = run(from_text(source), feeds, optimize=False)
    assert np.abs(outputs(model, feeds, "y") - wanted).max() < 0.03 * np.abs(wanted).max()


@given(st.floats(2**-8, 0.125, width=32), st.integers(-100, 100))
def test_numbers_between_two_kernels_are_not_rounded_to_float16(step: float, steps: int) -> None:
    """The kernel's step, shift and bounds, and what the next one makes of its integers: float32, to the last bit."""
    model = from_text(in_a_row("gelu, factor, shift to int4"))
    weights = model.graph.initializers
    next_scale, next_bias = (weights[name].const_value.numpy() for name in ("ws2", "bias2"))
    c, bounds = np.float32(step * steps), np.float32([-8, 7]) * np.float32(step)
    for name, number in zip(("next", "c", "low", "high"), (np.float32(step), c, *bounds), strict=True):
        weights[name].const_value = ir.tensor(np.asarray(number), name=name)
    LinearKernels()(model)
    ComputeDtype(ir.DataType.FLOAT16)(model)
    first, second = (node for node in model.graph if node.domain)
    assert first.inputs[5].const_value.numpy().tolist() == [np.float32(step), c, -8, 7]
    assert (second.inputs[2].const_value.numpy() == np.float32(step) * next_scale).all()
    assert (second.inputs[3].const_value.numpy() == next_bias.reshape(-1)).all()


@pytest.mark.parametrize("tail", ["gelu to int8", "gelu, factor, shift to int4"])
def test_a_step_that_a_float16_node_multiplies_by_is_float16s(tail: str) -> None:
    """Where the next layer is no kernel's, division and product have the same step, as docs/tensorrt.md says."""
    model = from_text(text(tail))
    for name, number in (("next", 0.0341), ("low", -8 * 0.0341), ("high", 7 * 0.0341)):
        model.graph.initializers[name].const_value = ir.tensor(np.array(number, np.float32), name=name)
    LinearKernels()(model)
    ComputeDtype(ir.DataType.FLOAT16)(model)
    (back,) = (node for node in model.graph if node.name == "back")
    assert kernel(model).inputs[5].const_value.numpy()[0] == back.inputs[1].const_value.numpy() != np.float32(0.0341)


LEFT = {
    "K that is no multiple of 16": text(k=24),
    "a zero point": text().replace("int8 zero = {0}", "int8 zero = {3}"),
    "unsigned": text().replace("int8 zero = {0}", "uint8 zero = {0}"),
    "weights by row": text(k=16)
    .replace("axis = 1", "axis = 0")
    .replace("float[5] ws = {", f"float[16] ws = {{{'1, ' * 11}"),
    "no bias": text().replace("p = MatMul", "y = MatMul").replace("  [sum] y = Add(p, bias)", ""),
    "a product that someone else reads": text().replace("Add(p, bias)", "Add(p, p)"),
}


@pytest.mark.parametrize("source", LEFT.values(), ids=list(LEFT))
def test_what_no_kernel_does_is_left_alone(source: str) -> None:
    model = from_text(source)
    with pytest.raises(ir.passes.PreconditionError, match="no layer"):
        LinearKernels()(model)
    assert not [node for node in model.graph if node.domain]


def test_a_gelu_of_another_kind_is_left_alone() -> None:
    model = lowered(text("gelu").replace("Gelu(s)", 'Gelu<approximate = "tanh">(s)'))
    assert kernel(model).op_type == "linear_f16" and "Gelu" in {node.op_type for node in model.graph}


WHOLE = text("gelu, factor, shift to int4")
KEPT = {
    "a factor without GELU": (WHOLE.replace("  [gelu] g = Gelu(s)\n", "").replace("Mul(g, r)", "Mul(s, r)"), "Mul"),
    "a factor by row": (WHOLE.replace("float[5] r = {0.75, 2, 1.25, 0.5, 1.5}", "float[2, 1] r = {0.75, 2}"), "Mul"),
    "one factor for all": (WHOLE.replace("float[5] r = {0.75, 2, 1.25, 0.5, 1.5}", "float r = {0.75}"), "Mul"),
    "a shift by channel": (WHOLE.replace("Sub(f, c)", "Sub(f, r)"), "Sub"),
    "a shift the other way round": (WHOLE.replace("Sub(f, c)", "Sub(c, f)"), "Sub"),
    "a shift before the factor": (
        WHOLE.replace("f = Mul(g, r)", "f = Sub(g, c)").replace("t = Sub(f, c)", "t = Mul(f, r)"),
        "Mul",
    ),
    "bounds between levels": (WHOLE.replace("low = {-0.25}", "low = {-0.24}"), "Clip"),
    "bounds beyond INT8": (WHOLE.replace("high = {0.21875}", "high = {4}"), "Clip"),
    "bounds that cross": (WHOLE.replace("high = {0.21875}", "high = {-0.5}"), "Clip"),
    "one bound": (WHOLE.replace("Clip(t, low, high)", "Clip(t, low)"), "Clip"),
    "unsigned levels": (WHOLE.replace("int8 next_zero", "uint8 next_zero"), "QuantizeLinear"),
    "a product that someone else reads": (WHOLE.replace("Sub(f, c)", "Sub(f, f)"), "Sub"),
}


@pytest.mark.parametrize(("source", "op_type"), KEPT.values(), ids=list(KEPT))
def test_a_quantizer_that_no_kernel_computes_stays_whole(source: str, op_type: str) -> None:
    """Nothing of it goes into the node."""
    model = lowered(source)
    assert kernel(model).op_type == "linear_f16"
    left, behind = ([node.op_type for node in one.graph] for one in (model, from_text(source)))
    assert left.count(op_type) == behind.count(op_type) > 0
    assert left.count("QuantizeLinear") == 2


def test_weights_beyond_the_packing_are_a_precondition_failure() -> None:
    model = from_text(text())
    levels = model.graph.initializers["w"].const_value.numpy().copy()
    levels[3, 2] = -128
    model.graph.initializers["w"].const_value = ir.tensor(levels, name="w")
    with pytest.raises(ir.passes.PreconditionError, match=r"product: weights are not in -127\.\.127"):
        LinearKernels()(model)


def test_ensures() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="product is still"):
        LinearKernels().ensures(from_text(text()))

"""Products of unsigned right operands in place of those that saturate: the same numbers, and nothing else touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import machine
from runtime.backends import ort
from runtime.backends.ort import make_session, optimized_bytes
from runtime.errors import IntvitError
from runtime.onnx_wire import INT8, UINT8, read_graph
from runtime.quantizers import OPERANDS
from runtime.saturation import exact_products
from tests.runtime.rewrites import kinds, model, outputs
from tests.toolchain.nets import calibrated, noise, serialized, spec_of, vit
from toolchain.graph import canonical_graph
from toolchain.targets.ort import lower

# Two products share both zero points; the third has none, the fourth's right operand is no constant.
GRAPH = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (uint8[B, 6] x, int8[6, 3] fed) => (float[B, 3] y, int32[B, 3] z, int32[B, 3] u, int32[B, 3] v, int32[B, 3] w)
<int8[6, 3] one = {ONE}, int8[6, 3] two = {TWO}, uint8 xz = {128}, int8 wz = {0}, float xs = {0.05},
 float[3] ws = {0.001, 0.002, 0.003}>
{
  [first] y = com.microsoft.MatMulIntegerToFloat(x, one, xs, ws, xz, wz)
  [second] z = MatMulInteger(x, two, xz, wz)
  [third] u = MatMulInteger(x, one)
  [fourth] v = MatMulInteger(x, fed, xz, wz)
  [fifth] w = MatMulInteger(x, fed, xz, wz)
}"""
_DRAW = np.random.default_rng(3)


def text(one: np.ndarray, two: np.ndarray) -> str:
    lists = (", ".join(str(value) for value in weights.ravel()) for weights in (one, two))
    return GRAPH.replace("ONE", next(lists)).replace("TWO", next(lists))


def signed_operands(data: bytes) -> set[str]:
    """The right operands of integer products that are int8."""
    graph, found = read_graph(data), set()
    for node in graph.nodes:
        if len(OPERANDS.get(node.op_type, ())) == 2:
            at, zero_at = OPERANDS[node.op_type][1]
            told = graph.constant.get(node.inputs[at]) or graph.constant.get((*node.inputs, *[""] * 8)[zero_at])
            assert told is not None
            found |= {node.inputs[at]} if told.data_type == INT8 else set()
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), low=st.sampled_from([-128, -127, -65]))
def test_the_same_numbers_with_unsigned_operands(seed: int, low: int) -> None:
    draw = np.random.default_rng(seed)
    one, two = draw.integers(low, 128, (2, 6, 3))
    one[0, 0] = low
    two[0, 0] = 127
    plain = model(text(one, two))
    made = exact_products(plain)
    assert signed_operands(plain) == {"one", "two", "fed"} and not signed_operands(made)
    assert {tensor.name for tensor in read_graph(made).initializers}.isdisjoint({"one", "two", "wz"})
    feeds = {
        "x": draw.integers(0, 256, (4, 6), np.uint8),
        "fed": draw.integers(-128, 128, (6, 3), np.int8),
    }
    for got, wanted in zip(*(make_session(data, threads=1).run(None, feeds) for data in (made, plain)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert exact_products(made) is made


def test_a_tensor_two_products_read_is_turned_once_and_names_stay() -> None:
    made = exact_products(model(text(*_DRAW.integers(-128, 128, (2, 6, 3)))))
    assert kinds(made)["Cast"] == kinds(made)["BitwiseXor"] == 1
    names = [node.name for node in read_graph(made).nodes if node.op_type in OPERANDS]
    assert names == ["first", "second", "third", "fourth", "fifth"]


def test_small_weights_stay_signed() -> None:
    """255 * (64 + 64) fits into 16 bits; one weight of 65 beside another does not."""
    small = np.full((6, 3), -64)
    beyond = small.copy()
    beyond[2, 1] = 65
    made = exact_products(model(text(small, beyond)))
    assert signed_operands(made) == {"one"}
    assert read_graph(made).constant["one"].data_type == INT8


def test_zero_points_by_column_move_with_their_weights() -> None:
    weights = _DRAW.integers(-128, 128, (2, 6, 3))
    plain = model(text(*weights).replace("int8 wz = {0}", "int8[3] wz = {3, -7, 0}"))
    made = exact_products(plain)
    zero = read_graph(made).constant["wz/unsigned"]
    assert (zero.dims, zero.data_type, bytes(zero.raw)) == ((3,), UINT8, bytes([131, 121, 128]))
    feeds = {"x": _DRAW.integers(0, 256, (4, 6), np.uint8), "fed": _DRAW.integers(-128, 128, (6, 3), np.int8)}
    np.testing.assert_array_equal(outputs(made, feeds), outputs(plain, feeds))


def test_zero_points_that_are_computed_stay_with_their_operands() -> None:
    """So does an operand that nothing says the type of."""
    weights = _DRAW.integers(-128, 128, (2, 6, 3))
    plain = (
        text(*weights)
        .replace("int8 wz = {0}", "float zero = {3}")
        .replace("  [first]", "  wz = Cast<to = 3>(zero)\n  [first]")
    )
    plain = model(plain.replace("[fifth] w = MatMulInteger(x, fed, xz, wz)", "[fifth] w = MatMulInteger(x, fed)"))
    made = read_graph(exact_products(plain))
    found = {node.name: node.inputs[1] for node in made.nodes if node.op_type in OPERANDS}
    assert found == {"first": "one", "second": "two", "third": "one/unsigned", "fourth": "fed", "fifth": "fed"}
    feeds = {"x": _DRAW.integers(0, 256, (4, 6), np.uint8), "fed": _DRAW.integers(-128, 128, (6, 3), np.int8)}
    np.testing.assert_array_equal(outputs(exact_products(plain), feeds), outputs(plain, feeds))


def test_graphs_without_such_products_are_left_alone() -> None:
    plain = model('<ir_version: 10, opset_import: ["" : 21]>\ng (float[B, 4] x) => (float[B, 4] y) { y = Neg(x) }')
    assert exact_products(plain) is plain


def test_weights_that_are_not_in_the_file_are_refused() -> None:
    plain = model(text(*_DRAW.integers(-128, 128, (2, 6, 3))))
    place = plain.index(b"\x4a\x12", plain.index(b"\x42\x03one"))  # TensorProto.raw_data, 18 bytes
    with pytest.raises(IntvitError, match="int8 constant cannot be read"):
        exact_products(plain[:place] + b"\x6a\x12" + plain[place + 2 :])  # doc strings are no values


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a8+attn8", "w8a8+int", "w4a16+g16"])
def test_engines_without_saturating_products(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scheme loads and gives the same numbers where products saturate (two did not load with ONNX Runtime's own
    option: weights alone, whose layers dequantize by channel, and ``+int``, whose products share a zero point)."""
    module = vit()
    spec = spec_of(module)
    dialect = serialized(lower(canonical_graph(calibrated(module, spec, scheme))))
    monkeypatch.setattr(machine, "saturating_u8s8", lambda: False)
    plain = optimized_bytes(dialect)
    monkeypatch.setattr(machine, "saturating_u8s8", lambda: True)
    made = optimized_bytes(dialect)
    feeds = {"images": noise(spec, 2).numpy()}
    np.testing.assert_allclose(outputs(made, feeds), outputs(plain, feeds), rtol=1e-5, atol=1e-5)
    graph = read_graph(made)
    for name in signed_operands(made):
        assert np.abs(np.frombuffer(graph.constant[name].raw, np.int8).astype(int)).max() <= 64


def test_a_rung_of_the_ladder_does_not_saturate_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """``+int`` has its products in the graph as it is lowered, and the ladder's rungs are not optimized."""
    module = vit()
    spec = spec_of(module)
    dialect = serialized(lower(canonical_graph(calibrated(module, spec, "w8a8+int"))))
    assert signed_operands(dialect)
    loaded = []

    def load(data: bytes, **settings: Any) -> Any:
        loaded.append(data)
        return make_session(data, **settings)

    monkeypatch.setattr(ort, "make_session", load)
    said = []
    for saturates in (False, True):
        monkeypatch.setattr(machine, "saturating_u8s8", lambda so=saturates: so)
        feeds = {"images": noise(spec, 2).numpy()}
        said += ort.OrtEngine.run_graph(dialect, ["logits"], feeds, threads=1, where="dialect").values()
    assert loaded[0] is dialect and loaded[1] == exact_products(dialect) != dialect
    np.testing.assert_array_equal(*said)

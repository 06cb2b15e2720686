"""Taps found again after the optimizer has renamed, moved and merged their quantizers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.ort import optimized_bytes
from runtime.errors import IntvitError
from runtime.manifest import Tap
from runtime.onnx_wire import INT8, UINT8, read_graph
from runtime.quantizers import Quantizer, locate, symmetric
from tests.runtime.tiny import Spec, graph


def _tap(name: str, zero_point: int = 0) -> Tap:
    return Tap(name=name, tensor=f"{name}.q", golden=name, scale=0.1, zero_point=zero_point, qmin=-128, qmax=127)


TAPS = [_tap(name) for name in ("embed", "b0.fc1", "b0.fc2", "head")]


def test_every_tap_is_the_operand_of_its_product() -> None:
    plain = graph(Spec()).SerializeToString()
    executed = read_graph(optimized_bytes(plain))
    found = locate(TAPS, read_graph(plain), executed, where="test")
    products = [node for node in executed.nodes if node.op_type == "MatMulIntegerToFloat"]
    assert [quantizer.tensor for quantizer in found] == [node.inputs[0] for node in products]


def test_unnamed_nodes_are_found_by_their_product() -> None:
    model = graph(Spec())
    for node in model.graph.node:
        node.name = ""
    plain = model.SerializeToString()
    assert len(locate(TAPS, read_graph(plain), read_graph(optimized_bytes(plain)), where="test")) == 4


def test_an_unoptimized_graph_is_read_directly() -> None:
    plain = read_graph(graph(Spec()).SerializeToString())
    found = locate(TAPS, plain, plain, where="test")
    assert [(q.tensor, q.elem_type, q.offset) for q in found] == [(tap.tensor, INT8, 0) for tap in TAPS]


def test_a_float_product_still_has_its_integers() -> None:
    """A graph whose quantizer was renamed and whose product stayed float: found through the DequantizeLinear."""
    plain = graph(Spec())
    executed = onnx.ModelProto.FromString(plain.SerializeToString())
    for node in executed.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "head.q" else name for name in names]
    found = locate(
        TAPS[-1:], read_graph(plain.SerializeToString()), read_graph(executed.SerializeToString()), where="test"
    )
    assert found[0].tensor == "renamed"


def test_a_zero_point_that_is_no_constant() -> None:
    model = graph(Spec())
    for tensor in list(model.graph.initializer):
        if tensor.name == "head.zero":
            model.graph.initializer.remove(tensor)
    view = read_graph(model.SerializeToString())
    with pytest.raises(IntvitError, match="cannot read the integers of tap 'head'"):
        locate(TAPS, view, view, where="test")


@given(st.lists(st.integers(-128, 127), min_size=1), st.sampled_from([(INT8, 0), (UINT8, 128)]))
def test_shift_there_and_back(values: list[int], kind: tuple[int, int]) -> None:
    quantizer = Quantizer(_tap("x"), "x", *kind)
    golden = np.array(values, np.int8)
    there = quantizer.from_reference(golden)
    assert there.dtype == (np.uint8 if kind[0] == UINT8 else np.int8)
    np.testing.assert_array_equal(quantizer.to_reference(there), golden)


def test_values_that_do_not_fit() -> None:
    with pytest.raises(IntvitError, match="does not fit"):
        Quantizer(_tap("x"), "x", UINT8, 100).from_reference(np.array([-128], np.int8))


def test_a_tap_whose_quantizer_went_before_what_moves_it() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N, 4, 2] x) => (int8[N, 8] head_q) <float step = {0.1}, int8 zero = {0}, int64[2] flat = {-1, 8}>
    { early = QuantizeLinear(x, step, zero)
      t = Transpose<perm = [0, 2, 1]>(early)
      head_q = Reshape(t, flat) }"""
    moved = read_graph(onnx.parser.parse_model(text).SerializeToString())
    tap = TAPS[-1].model_copy(update={"tensor": "head_q"})
    wanted = [Quantizer(tap, "head_q", INT8, 0)]
    assert locate([tap], moved, moved, where="test") == wanted
    assert symmetric([tap], moved, where="test") == wanted

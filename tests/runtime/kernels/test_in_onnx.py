"""Plugin nodes written out in ONNX's operators: under ONNX Runtime they give the bits of the kernels' reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from runtime.backends.ort import make_session
from runtime.errors import IntvitError
from runtime.kernels import reference
from runtime.kernels.in_onnx import written_out
from runtime.kernels.nodes import uses_kernels
from runtime.kernels.packing import pack_quantizer
from runtime.kernels.tiles import OUTPUTS
from runtime.onnx_wire import read_graph
from tests.runtime.kernels.graphs import layer


def drawn(n: int, k: int, bits: int, seed: int) -> tuple[np.ndarray, ...]:
    """Activations (2, 3, k), levels (n, k), scale and bias (n,); some results overflow neither float16 nor int8."""
    rng = np.random.default_rng(seed)
    largest = 7 if bits == 4 else 127
    a = rng.integers(-128, 128, (2, 3, k)).astype(np.int8)
    levels = rng.integers(-8 if bits == 4 else -largest, largest + 1, (n, k)).astype(np.int8)
    scale = (rng.uniform(0.2, 2, n) / (128 * largest * np.sqrt(k))).astype(np.float32)
    return a, levels, scale, rng.normal(size=n).astype(np.float32)


@given(
    st.integers(1, 40),
    st.integers(1, 12).map(lambda sixteens: 16 * sixteens),
    st.sampled_from([4, 8]),
    st.sampled_from(OUTPUTS[1:]),
    st.floats(-2, 2, width=32),
    st.tuples(st.integers(-128, 0), st.integers(0, 127)),
    st.integers(0, 2**16),
)
def test_every_bit_is_the_references(
    n: int, k: int, bits: int, output: str, shift: float, ends: tuple[int, int], seed: int
) -> None:
    a, levels, scale, bias = drawn(n, k, bits, seed)
    gelu, factor = "gelu" in output, None
    quantizer = pack_quantizer(0.013, shift, ends) if output.startswith("i8") else None
    if output.endswith("affine"):
        factor = np.random.default_rng(seed).uniform(-2, 2, n).astype(np.float32)
    model = written_out(layer(levels, scale, bias, bits=bits, gelu=gelu, factor=factor, quantizer=quantizer))
    (made,) = make_session(model, threads=1, optimize=False).run(None, {"a": a})
    wanted = reference.linear(a.reshape(-1, k), levels, scale, bias, with_gelu=gelu, factor=factor, quantizer=quantizer)
    assert made.dtype == wanted.dtype
    assert made.reshape(wanted.shape).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxs_own_evaluator_agrees(bits: int) -> None:
    """A second runtime, so that it is ONNX's definition of the operators and not one library's."""
    a, levels, scale, bias = drawn(20, 80, bits, 3)
    after = {"factor": np.linspace(0.5, 2, 20, dtype=np.float32), "quantizer": pack_quantizer(0.01, 0.4, (-100, 127))}
    model = written_out(layer(levels, scale, bias, bits=bits, gelu=True, **after))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    (made,) = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"a": a})
    wanted = reference.linear(a.reshape(-1, 80), levels, scale, bias, with_gelu=True, **after)
    assert (made.reshape(wanted.shape) == wanted).all()


def test_other_graphs_are_left_as_they_are() -> None:
    model = written_out(layer(*drawn(4, 16, 8, 0)[1:]))
    assert not uses_kernels(read_graph(model)) and written_out(model) is model


def test_onnx_runtime_has_no_such_node() -> None:
    """Why they are written out."""
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail):
        ort.InferenceSession(layer(*drawn(4, 16, 8, 0)[1:]), providers=["CPUExecutionProvider"])


def test_weights_that_are_not_stored_are_said() -> None:
    model = onnx.load_from_string(layer(*drawn(4, 16, 8, 0)[1:]))
    del model.graph.initializer[0]
    with pytest.raises(IntvitError, match="no stored weights") as caught:
        written_out(model.SerializeToString())
    assert caught.value.where == "fc1/MatMul"


def test_other_inputs_are_said() -> None:
    """As before there was a factor: a step in the place of factor and quantizer."""
    model = onnx.load_from_string(layer(*drawn(4, 16, 8, 0)[1:], quantizer=pack_quantizer(0.5)))
    del model.graph.node[0].input[5]
    with pytest.raises(IntvitError, match="has other inputs") as caught:
        written_out(model.SerializeToString())
    assert "linear_i8 has 5; here they are a, w, scale, bias, factor, quantizer" in caught.value.why
    assert caught.value.where == "fc1/MatMul"

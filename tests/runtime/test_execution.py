"""What runs as integer, told from optimized graphs: a good one and the trap of the flat bias."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtime.backends.ort import optimized_bytes
from runtime.errors import IntvitError
from runtime.execution import Execution, execution, warnings
from runtime.manifest import Layer
from runtime.onnx_wire import read_graph
from tests.runtime.tiny import Spec, graph


def _layers(count: int, activation_bits: int = 8) -> list[Layer]:
    return [
        Layer(
            name=f"l{i}",
            kind="linear",
            macs=1,
            weight_bits=4,
            activation_bits=activation_bits,
            stored_as="int4",
            tensor="",
        )
        for i in range(count)
    ]


def _execution(model: onnx.ModelProto, layers: list[Layer]) -> Execution:
    return execution(read_graph(optimized_bytes(model.SerializeToString())), layers)


@pytest.mark.parametrize("int4", [False, True])
def test_every_linear_is_integer(int4: bool) -> None:
    found = _execution(graph(Spec(int4=int4)), _layers(4))
    assert found.integer_kernels == {"MatMulIntegerToFloat": 4}
    assert found.as_expected and warnings(found) == []


def test_a_missing_kernel_is_named() -> None:
    found = _execution(graph(Spec()), _layers(5))
    assert not found.as_expected
    (line,) = warnings(found)
    assert "5 layers" in line and "4 MatMulIntegerToFloat" in line


def test_sixteen_bit_activations_are_not_expected_to_be_integer() -> None:
    assert _execution(graph(Spec(), quantize=False), _layers(4, activation_bits=16)).as_expected


def test_a_float_model_called_integer() -> None:
    (line,) = warnings(_execution(graph(Spec(), quantize=False), _layers(4)))
    assert "found 0 integer kernels (none)" in line


def test_the_flat_bias_trap_is_seen() -> None:
    """With a fixed batch, a bias stored as (N,) is refused at load or ends in float products; either way it is said."""
    model = graph(Spec(int4=False), flat_bias=True)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        found = _execution(model, _layers(4))
    except IntvitError as error:
        assert "cannot load" in error.what
    else:
        assert found.fallbacks and not found.as_expected


def test_a_float_product_on_a_dequantized_activation() -> None:
    """The stored graph itself, unoptimized: each MatMul reads a DequantizeLinear, one of them through a Reshape."""
    model = graph(Spec())
    shape = onnx.numpy_helper.from_array(np.array([0, 0, -1]), "same")
    model.graph.initializer.append(shape)
    at, product = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "MatMul")
    reshape = onnx.helper.make_node("Reshape", [product.input[0], "same"], ["moved"], name="moved")
    product.input[0] = "moved"
    model.graph.node.insert(at, reshape)
    found = execution(read_graph(model.SerializeToString()), _layers(4))
    assert [fallback.tensor for fallback in found.fallbacks] == ["embed.q", "b0.fc1.q", "b0.fc2.q", "head.q"]
    assert len(warnings(found)) == 5

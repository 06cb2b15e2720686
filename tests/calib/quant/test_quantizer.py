"""The activation quantizer is ONNX QuantizeLinear, to the integer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from calib.quant.quantizer import ActQuantizer, levels, quantize

BITS = st.integers(2, 8)
SCALES = st.floats(2**-20, 2**10, width=32)
VALUES = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-(2**20), 2**20, width=32, allow_subnormal=False)
)


def reference(values: np.ndarray, scale: float, zero_point: int, bits: int) -> np.ndarray:
    """ONNX's text: y = saturate(round half to even(x / y_scale) + y_zero_point), the division in float32."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rounded = np.rint(values / np.float32(scale)).astype(np.float64)
    return np.clip(rounded + zero_point, low, high).astype(np.int64)


@pytest.fixture(scope="module")
def onnx_quantize() -> onnxruntime.InferenceSession:
    """One QuantizeLinear node to int8 with scale and zero point as inputs."""
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "quantize",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero", TensorProto.INT8, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT8, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_onnx(session: onnxruntime.InferenceSession, values: np.ndarray, scale: float, zero: int) -> np.ndarray:
    feeds = {"x": values, "scale": np.array(scale, np.float32), "zero": np.array(zero, np.int8)}
    return session.run(None, feeds)[0].astype(np.int64)


def ours(values: np.ndarray, scale: float, zero_point: int, bits: int = 8) -> np.ndarray:
    module = ActQuantizer(bits)
    module.set(scale, zero_point)
    out = module(torch.from_numpy(values))
    assert out.dtype == torch.float32
    integers = out.numpy().astype(np.int64)
    assert np.array_equal(integers, out.numpy())
    return integers


@pytest.mark.parametrize(("bits", "expected"), [(8, (-128, 127)), (4, (-8, 7)), (2, (-2, 1))])
def test_levels(bits: int, expected: tuple[int, int]) -> None:
    assert levels(bits) == expected


@given(VALUES, SCALES, BITS, st.data())
def test_equals_the_definition(values: np.ndarray, scale: float, bits: int, data: st.DataObject) -> None:
    zero_point = data.draw(st.integers(*levels(bits)))
    assert np.array_equal(ours(values, scale, zero_point, bits), reference(values, scale, zero_point, bits))


@settings(max_examples=200)
@given(values=VALUES, scale=SCALES, zero_point=st.integers(-128, 127))
def test_equals_onnxruntime(onnx_quantize, values: np.ndarray, scale: float, zero_point: int) -> None:
    assert np.array_equal(ours(values, scale, zero_point), by_onnx(onnx_quantize, values, scale, zero_point))


@pytest.mark.parametrize("zero_point", [-128, -7, 0, 1, 127])
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0**-7])
def test_ties_go_to_the_even_level_before_the_zero_point(onnx_quantize, scale: float, zero_point: int) -> None:
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    found = ours(ties, scale, zero_point)
    even = np.array([round(x / scale) for x in ties.tolist()])  # Python rounds half to even
    assert np.array_equal(found, np.clip(even + zero_point, -128, 127))
    assert np.array_equal(found, by_onnx(onnx_quantize, ties, scale, zero_point))


def test_saturates_at_both_ends(onnx_quantize) -> None:
    values = np.array([-1e30, -129, -128.5, -128, 127, 127.49, 127.5, 128, 1e30], np.float32)
    expected = [-128, -128, -128, -128, 127, 127, 127, 127, 127]
    assert ours(values, 1.0, 0).tolist() == expected
    assert by_onnx(onnx_quantize, values, 1.0, 0).tolist() == expected
    assert ours(values, 1.0, 0, bits=4).tolist() == [-8] * 4 + [7] * 5


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.007])
def test_divides_instead_of_multiplying_by_the_reciprocal(onnx_quantize, scale: float) -> None:
    """Near ties the two differ; an engine divides."""
    step = np.float32(scale)
    values = ((np.arange(-128, 127) + np.float32(0.5)) * step).astype(np.float32)
    near = np.concatenate([values, np.nextafter(values, np.float32(9)), np.nextafter(values, np.float32(-9))])
    found = ours(near, scale, 0)
    assert np.array_equal(found, by_onnx(onnx_quantize, near, scale, 0))
    assert np.array_equal(found, reference(near, scale, 0, 8))


@given(VALUES, SCALES)
def test_an_unclipped_value_is_within_half_a_step(values: np.ndarray, scale: float) -> None:
    inside = np.clip(values, -127 * scale, 127 * scale).astype(np.float32)
    restored = ours(inside, scale, 0) * np.float64(np.float32(scale))
    assert np.all(np.abs(restored - inside) <= 0.5 * scale * (1 + 1e-4))


def test_tensor_arguments_are_taken_too() -> None:
    values = torch.tensor([0.24, 0.26, -3.0])
    assert quantize(values, torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 8).tolist() == [3, 4, -3]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_is_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        ActQuantizer(8).set(scale)


def test_numbers_are_part_of_the_state() -> None:
    one, two = ActQuantizer(8), ActQuantizer(8)
    one.set(0.25, -128)
    two.load_state_dict(one.state_dict())
    assert float(two.scale) == 0.25 and int(two.zero_point) == -128
    assert two.scale.dtype == torch.float32 and two.zero_point.dtype == torch.int32

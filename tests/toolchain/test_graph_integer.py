"""The ONNX nodes of ``+int`` give the integers of ``calib.quant.integers``: every bit, on ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from calib.quant import integers
from calib.quant.integer_only import IntLayerNorm, ShiftGelu, exponent_of
from calib.quant.rescale import Rescale
from tests.toolchain.nets import serialized, session
from toolchain.graph import integer
from toolchain.graph.builder import Builder

WIDTH = 12
UNITS = (1e-7, 3e-4, 0.02)
# Wrong in ONNX Runtime 1.31.1 for int64 beyond int32, on x86: toolchain/graph/integer.py says how.
WRONG_IN_INT64 = {"Min", "Max", "Clip", "Sign"}
Write = Callable[[Builder, ir.Value], Any]


def session_of(write: Write, width: int = WIDTH) -> onnxruntime.InferenceSession:
    """What ``write`` makes of an int64 input (batch, WIDTH), optimized as an engine is."""
    b = Builder("test", "x", (1, 1, 1))
    b.input = ir.Value(name="x", shape=ir.Shape(["batch", WIDTH]), type=ir.TensorType(ir.DataType.INT64))
    model = b.finish(write(b, b.input), "y", width)
    onnx.checker.check_model(onnx.load_from_string(serialized(model)), full_check=True)
    assert {node.op_type for node in model.graph}.isdisjoint(WRONG_IN_INT64)
    return session(model)


def batches(most: int) -> st.SearchStrategy[np.ndarray]:
    elements = st.one_of(st.integers(-most, most), st.sampled_from([-most, most, 0]))
    return arrays.arrays(np.int64, st.tuples(st.integers(1, 3), st.just(WIDTH)), elements=elements)


def same(made: onnxruntime.InferenceSession, x: np.ndarray, wanted: Tensor) -> bool:
    (found,) = made.run(None, {"x": x})
    assert found.dtype == np.int64
    return bool((found == wanted.numpy()).all())


@functools.cache
def gelu(unit: float) -> tuple[ShiftGelu, onnxruntime.InferenceSession]:
    act = ShiftGelu(WIDTH)
    act.in_step.fill_(unit)
    gains = torch.linspace(0.1, 3, WIDTH)
    act.rescale.fix(act.in_step.double() * 2.0**-15, unit * 200 / gains, (-128, 127), zero=-100)
    return act, session_of(lambda b, x: integer.gelu(b, "act", act, x))


@functools.cache
def norm(unit: float) -> tuple[IntLayerNorm, onnxruntime.InferenceSession]:
    plain = nn.LayerNorm(WIDTH, eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data = torch.randn(WIDTH, generator=generator)
    made = IntLayerNorm(plain.requires_grad_(False))
    made.settle(torch.tensor(unit), torch.tensor(0.02), (-128, 127))
    return made, session_of(lambda b, x: integer.layer_norm(b, "norm", made, x))


@functools.cache
def softmax(unit: float) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    def part(index: int) -> Write:
        return lambda b, x: b.op("Identity", [integer.shiftmax(b, x, exponent_of(unit))[index]])

    return session_of(part(0)), session_of(part(1), width=1)


@functools.cache
def rescale(shift: int) -> tuple[Rescale, onnxruntime.InferenceSession]:
    made = Rescale(WIDTH)
    made.fix(
        2.0**-shift * torch.linspace(-0.9, 0.99, WIDTH), torch.tensor(1.0), (-(1 << 40), 1 << 40), torch.tensor(3.0)
    )
    return made, session_of(lambda b, x: integer.rescaled(b, "test", x, made))


@settings(deadline=None, max_examples=60)
@given(batches(integers.MOST_HIDDEN), st.sampled_from(UNITS))
def test_shift_gelu(x: np.ndarray, unit: float) -> None:
    act, made = gelu(unit)
    hidden = torch.from_numpy(x)
    wanted = act.rescale.levels(integers.shift_gelu(hidden, *act.exponent))
    assert same(made, x, wanted)
    act.quantized = True
    real = act((hidden * act.in_step.double()).float())  # the module, on the float32 numbers those integers stand for
    assert torch.equal(real, (wanted - act.rescale.zero).float() * act.rescale.step)


@settings(deadline=None, max_examples=60)
@given(batches(integers.MOST_RESIDUAL), st.sampled_from([2.0**-18, 2.0**-10, 1.0]))
def test_layer_norm(x: np.ndarray, unit: float) -> None:
    module, made = norm(unit)
    wanted = module.rescale.levels(integers.normalised(torch.from_numpy(x), module.epsilon))
    assert same(made, x, wanted)
    module.quantized = True
    assert torch.equal(module(torch.from_numpy(x).float() * unit), wanted.float() * module.rescale.step)


@settings(deadline=None, max_examples=60)
@given(batches(1 << 29), st.sampled_from(UNITS))
def test_shiftmax(x: np.ndarray, unit: float) -> None:
    levels, sums = integers.shiftmax(torch.from_numpy(x), *exponent_of(unit))
    for made, wanted in zip(softmax(unit), (levels, sums), strict=True):
        assert same(made, x, wanted)


@settings(deadline=None, max_examples=60)
@given(batches(integers.MOST_INPUT), st.sampled_from([0, 1, 7, 28]))
def test_rescaling(x: np.ndarray, shift: int) -> None:
    module, made = rescale(shift)
    assert same(made, x, module.levels(torch.from_numpy(x)))


@pytest.mark.parametrize("shift", [0, 16, 23, 60])
def test_shifts_of_negative_numbers_go_down(shift: int) -> None:
    made = session_of(lambda b, x: integer.shifted(b, x, shift))
    values = np.array([[0, 1, -1, 5, -5, 1 << 40, -(1 << 40), (1 << 62) - 1, -(1 << 62), 1 << 16, -(1 << 16), -3]])
    assert same(made, values, torch.from_numpy(values) >> shift)


def test_roots() -> None:
    values = np.array([[v for i in (1, 2, 9, 31, 45, 62) for v in (2**i - 1, 2**i - 2 or 1)]])

    def write(b: Builder, x: ir.Value) -> ir.Value:
        column = b.op("Reshape", [x, b.ints([WIDTH, 1])])
        made: ir.Value = b.op("Reshape", [integer._root(b, column), b.ints([1, WIDTH])])
        return made

    assert same(session_of(write), np.maximum(values, 1), integers.root(torch.from_numpy(values).clamp_min(1)))

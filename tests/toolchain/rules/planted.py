"""One quantized layer that every target takes, ways to plant a fault in it, and what each fault must lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from tests.toolchain.nets import from_text
from tests.toolchain.rules import engines
from toolchain.passes.match import set_constant
from toolchain.rules import RULES, findings
from toolchain.targets.choices import TARGETS

SIZE = 32


def numbers(count: int, low: int = -7, high: int = 7, seed: int = 0) -> str:
    """``count`` integers as ONNX text."""
    drawn = np.random.default_rng(seed).integers(low, high + 1, count)
    return "{" + ", ".join(str(value) for value in drawn) + "}"


def steps(count: int, first: float = 0.005) -> str:
    """``count`` different scales as ONNX text."""
    return "{" + ", ".join(f"{first * (1 + i):.6f}" for i in range(count)) + "}"


def same(count: int, value: str) -> str:
    """``count`` times one value as ONNX text."""
    return "{" + ", ".join([value] * count) + "}"


WEIGHT = f"int8[{SIZE}, {SIZE}] w = {numbers(SIZE * SIZE)}"
WEIGHT_SCALE = f"float[{SIZE}] ws = {steps(SIZE)}"
SCALE, ZERO = "float s = {0.02}", "int8 z = {0}"
BIAS = f"float[1, 1, {SIZE}] b = {same(SIZE, '0.5')}"
QUANTIZE = "[quantize] xq = QuantizeLinear(x, s, z)"
DEQUANTIZE = "[dequantize] xd = DequantizeLinear(xq, s, z)"
DEQUANTIZE_WEIGHT = "[weight] wd = DequantizeLinear<axis = 1>(w, ws)"
PRODUCT = "[product] p = MatMul(xd, wd)"
SUM = "[sum] y = Add(p, b)"
HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
GOOD = f"""{HEAD}
g (float[1, 5, {SIZE}] x) => (float[1, 5, {SIZE}] y)
<{SCALE}, {ZERO}, {WEIGHT}, {WEIGHT_SCALE}, {BIAS}>
{{
  {QUANTIZE}
  {DEQUANTIZE}
  {DEQUANTIZE_WEIGHT}
  {PRODUCT}
  {SUM}
}}"""
WEIGHT_ONLY = GOOD.replace(f"  {QUANTIZE}\n  {DEQUANTIZE}\n", "").replace("MatMul(xd,", "MatMul(x,")
GEMM = (
    GOOD.replace("float[1, 5,", "float[5,")
    .replace(BIAS, f"float[{SIZE}] b = {same(SIZE, '0.5')}, int8[{SIZE}] wz = {same(SIZE, '0')}")
    .replace("(w, ws)", "(w, ws, wz)")
    .replace(f"{PRODUCT}\n  {SUM}", "[product] y = Gemm(xd, wd)")
)


def swap(text: str, *changes: tuple[str, str]) -> str:
    """``text`` with each first half replaced by its second; every first half must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def other_type(kind: str, low: int = -7, high: int = 7) -> tuple[str, str]:
    """The change that gives the weights another type, for :func:`swap`."""
    return WEIGHT, f"{kind}[{SIZE}, {SIZE}] w = {numbers(SIZE * SIZE, low, high)}"


MINUS_128 = (WEIGHT, swap(WEIGHT, (" w = {", " w = {-128, "), (f",{WEIGHT.rsplit(',', 1)[1]}", "}")))
BLOCKS = (
    (WEIGHT_SCALE, f"float[2, {SIZE}] ws = {steps(2 * SIZE, 0.001)}"),
    ("DequantizeLinear<axis = 1>(w", f"DequantizeLinear<axis = 0, block_size = {SIZE // 2}>(w"),
)


def half(*keep: str) -> Callable[[ir.Model], None]:
    """A change of a model to FP16, initializers called ``keep`` left as they are."""

    def change(model: ir.Model) -> None:
        for name, value in model.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT and name not in keep and value.const_value is not None:
                set_constant(value, value.const_value.numpy().astype(np.float16))
        for edge in (*model.graph.inputs, *model.graph.outputs):
            edge.dtype = ir.DataType.FLOAT16

    return change


@dataclass(frozen=True)
class Case:
    """A planted fault.

    Attributes:
        rule, node: the one finding it must lead to, on each of ``targets`` (default: all that the rule names).
        valid: whether ONNX's own checker takes the graph.
        tensorrt: a piece of the refusal, or "" where it is taken without a word.
        onnxruntime, openvino: what :mod:`engines` reads off them.
    """

    name: str
    rule: str
    node: str
    text: str
    targets: Sequence[str] = ()
    change: Callable[[ir.Model], None] | None = None
    valid: bool = True
    tensorrt: str | None = None
    onnxruntime: str | None = None
    openvino: str | None = None

    def model(self) -> ir.Model:
        """The graph with the fault."""
        model = from_text(self.text, check=self.valid and self.change is None)
        if self.change is not None:
            self.change(model)
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return model


def cases(found: Sequence[Case], engine: str = "") -> pytest.MarkDecorator:
    """Parametrise a test over the cases, or those that say something of ``engine``."""
    chosen = [case for case in found if not engine or getattr(case, engine) is not None]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: f"{case.rule}: {case.name}")


def check_found(case: Case) -> None:
    """The fault is the only finding on every target it concerns, with everything a person needs to act."""
    rule = next(rule for rule in RULES if rule.id == case.rule)
    model = case.model()
    for target in case.targets or rule.verdicts:
        found = findings(model, target)
        assert [(finding.rule, finding.node) for finding in found] == [(case.rule, case.node)], target
        assert found[0].severity == rule.verdicts[target].severity
        assert all((found[0].what, found[0].why, found[0].next))
    for target in set(TARGETS) - set(rule.verdicts):
        assert case.rule not in {finding.rule for finding in findings(model, target)}


def check_tensorrt(case: Case) -> None:
    """TensorRT-RTX refuses the graph in the words the case quotes, or takes it where the case says so."""
    assert case.tensorrt is not None
    said = engines.tensorrt(case.model())
    assert (case.tensorrt in said) if case.tensorrt else said == ""


def check_onnxruntime(case: Case) -> None:
    """ONNX Runtime does what the case says, on a machine where the graph without the fault runs as integers."""
    if engines.onnxruntime(from_text(GOOD)) != "integer":
        pytest.skip("the layer without the fault is not integer on this machine")
    assert engines.onnxruntime(case.model()) == case.onnxruntime


def check_openvino(case: Case) -> None:
    """As :func:`check_onnxruntime`, of OpenVINO."""
    if engines.openvino(from_text(GOOD)) != "integer":
        pytest.skip("the layer without the fault is not integer on this machine")
    assert engines.openvino(case.model()) == case.openvino

"""QuantizeFirst: ``Transpose -> Reshape -> [Clip] -> Q`` becomes ``[Clip] -> Q -> Transpose -> Reshape``."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.toolchain.nets import from_text, run, serialized
from toolchain.passes import QuantizeFirst

HEAD = """<ir_version: 10, opset_import: ["" : 21]>
g (float[B, 2, 3, 4] x) => (float[B, 3, 5] y)
<float step = {{0.0625}}, int8 zero = {{0}}, float low = {{-0.5}}, float high = {{0.4375}},
 int64[3] shape = {{-1, 3, 8}}, int8[8, 5] w = {{{weights}}}, float[5] ws = {{0.5, 0.25, 0.125, 1, 2}}>
{{
{front}
  [dq] u_dq = DequantizeLinear(u_q, step, zero)
  w_dq = DequantizeLinear<axis = 1>(w, ws)
  [product] y = MatMul(u_dq, w_dq)
}}"""
MOVED = "  [turn] t = Transpose<perm = [0, 2, 1, 3]>(x)\n  [flat] f = Reshape(t, shape)\n"
PLAIN = MOVED + "  [q] u_q = QuantizeLinear(f, step, zero)"
CLIPPED = MOVED + "  [clip] c = Clip(f, low, high)\n  [q] u_q = QuantizeLinear(c, step, zero)"


def text(front: str) -> str:
    return HEAD.format(front=front, weights=", ".join(str((7 * index) % 15 - 7) for index in range(40)))


def images(count: int = 3) -> dict[str, np.ndarray]:
    return {"x": 2 * np.random.default_rng(0).standard_normal((count, 2, 3, 4)).astype(np.float32)}


def tap(model: ir.Model) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == "u_q")


def levels(model: ir.Model) -> np.ndarray:
    """The tap's integers as ONNX Runtime computes them."""
    model = model.clone()
    value = tap(model)
    value.type = ir.TensorType(ir.DataType.INT8)
    value.shape = ir.Shape(["B", 3, 8])
    model.graph.outputs.insert(0, value)
    return run(model, images(), optimize=False)


@pytest.mark.parametrize(("front", "first"), [(PLAIN, ["q"]), (CLIPPED, ["clip", "q"])], ids=["plain", "clipped"])
def test_the_quantizer_goes_first_and_every_bit_stays(front: str, first: list[str]) -> None:
    model = from_text(text(front))
    wanted, integers = run(model, images(), optimize=False), levels(model)
    assert QuantizeFirst()(model).modified
    assert [node.name for node in model.graph][: len(first) + 2] == [*first, "turn", "flat"]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    maker = tap(model).producer()
    assert maker is not None and maker.name == "flat"
    assert (levels(model) == integers).all()
    assert len(np.unique(integers)) > 4
    assert (run(model, images(), optimize=False) == wanted).all()
    assert not QuantizeFirst()(model).modified


@pytest.mark.parametrize(
    "front",
    [
        pytest.param("  f = Reshape(x, shape)\n  s = Sqrt(f)\n  u_q = QuantizeLinear(s, step, zero)", id="between"),
        pytest.param("  s = Sqrt(x)\n  f = Reshape(s, shape)\n  n = Neg(f)\n  m = Add(n, f)\n"
                     "  u_q = QuantizeLinear(m, step, zero)", id="arithmetic"),
    ],
)  # fmt: skip
def test_what_is_no_move_is_left_alone(front: str) -> None:
    model = from_text(text(front))
    before = serialized(model)
    assert not QuantizeFirst()(model).modified
    assert serialized(model) == before


def test_a_move_with_another_reader_stays_before() -> None:
    front = (
        "  [turn] t = Transpose<perm = [0, 2, 1, 3]>(x)\n  [flat] f = Reshape(t, shape)\n  [other] o = Neg(t)\n"
        "  [q] u_q = QuantizeLinear(f, step, zero)"
    )
    model = from_text(text(front))
    assert QuantizeFirst()(model).modified
    assert [node.name for node in model.graph if node.name in ("turn", "flat", "q")] == ["turn", "q", "flat"]


def test_it_may_be_asked_to_leave_some() -> None:
    model = from_text(text(PLAIN))
    asked: list[str | None] = []
    assert not QuantizeFirst(lambda source: asked.append(source.name) is not None)(model).modified
    assert set(asked) == {"x"}


def test_a_step_a_channel_is_a_precondition_failure() -> None:
    front = MOVED + "  [q] u_q = QuantizeLinear<axis = 2>(f, steps, zeros)"
    source = text(front).replace(
        "int8 zero", "float[8] steps = {1,1,1,1,1,1,1,1}, int8[8] zeros = {0,0,0,0,0,0,0,0}, int8 zero"
    )
    model = from_text(source)
    with pytest.raises(ir.passes.PreconditionError, match="single constant step"):
        QuantizeFirst()(model)
    assert next(node.name for node in model.graph) == "turn"

"""Signed products become unsigned-signed ones, with the same sums; others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.toolchain.nets import from_text, run
from toolchain.passes import UnsignedLeft

PRODUCTS = """
<ir_version: 10, opset_import: ["" : 21]>
products (int8[2, 3] a, int8[3, 2] c) => (int32[2, 2] y)
<int8[3, 2] w = {-127, 127, 5, -6, 100, -1}>
{
  first = MatMulInteger (a, w)
  second = MatMulInteger (a, c)
  y = Add (first, second)
}
"""


def named() -> ir.Model:
    model = from_text(PRODUCTS)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}{index}"
    return model


def test_the_sums_are_the_same() -> None:
    before, after = named(), named()
    assert UnsignedLeft()(after).modified
    products = [node for node in after.graph if node.op_type == "MatMulInteger"]
    assert [[value.dtype for value in node.inputs if value is not None] for node in products] == [
        [ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT8]
    ] * 2
    rng = np.random.default_rng(0)
    feeds = {"a": rng.integers(-128, 128, (2, 3), dtype=np.int8), "c": rng.integers(-128, 128, (3, 2), dtype=np.int8)}
    feeds["a"][0] = (-128, 127, -128)
    assert (run(after, feeds) == run(before, feeds)).all()


def test_what_is_unsigned_already_stays() -> None:
    model = from_text(PRODUCTS.replace("int8[2, 3] a", "uint8[2, 3] a"))
    assert not UnsignedLeft()(model).modified
    assert len(list(model.graph)) == 3


def test_a_zero_point_that_is_there_is_refused() -> None:
    text = PRODUCTS.replace("= MatMulInteger (a, c)", "= MatMulInteger (a, c, z)").replace(
        "<int8[3, 2]", "<int8 z = {1}, int8[3, 2]"
    )
    with pytest.raises(ir.passes.PreconditionError, match="zero point"):
        UnsignedLeft()(from_text(text))

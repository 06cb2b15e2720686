"""ONNX files with one node of our kernels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runtime.kernels.nodes import LINEAR_F16, LINEAR_I8, NAMESPACE, VERSION
from runtime.kernels.packing import pack_int4, pack_int8


def layer(
    levels: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    *,
    bits: int = 8,
    gelu: bool = False,
    factor: np.ndarray | None = None,
    quantizer: np.ndarray | None = None,
) -> bytes:
    """int8 ``a`` (batch, rows, k) to ``y``: float16, or int8 with a ``quantizer``. ``levels`` are int8 (n, k)."""
    n, k = levels.shape
    packed = pack_int4(levels).view(np.int8) if bits == 4 else pack_int8(levels)
    operands, attributes = {"w": packed, "scale": scale, "bias": bias}, {"bits": bits, "gelu": int(gelu)}
    if quantizer is not None:
        operands |= {"factor": np.ones_like(scale) if factor is None else factor, "quantizer": quantizer}
        attributes["affine"] = int(factor is not None)
    node = helper.make_node(
        LINEAR_F16 if quantizer is None else LINEAR_I8,
        ["a", *operands],
        ["y"],
        name="fc1/MatMul",
        domain=NAMESPACE,
        plugin_namespace=NAMESPACE,
        plugin_version=str(VERSION),
        aot=1,
        **attributes,
    )
    kind = onnx.TensorProto.FLOAT16 if quantizer is None else onnx.TensorProto.INT8
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("a", onnx.TensorProto.INT8, ["batch", "rows", k])],
        [helper.make_tensor_value_info("y", kind, ["batch", "rows", n])],
        [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(NAMESPACE, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data

"""The ONNX Runtime dialect: the canonical graph in the form that reaches ORT's integer kernels on x86 and ARM.

Signed QDQ stays as it is: on x86 ORT itself turns the activations unsigned and takes its U8S8 kernels, on ARM S8S8 is
native. Biases are (1, 1, N), because a 1-D bias lets MatMulAddFusion turn the layer into a float Gemm.
"""

from __future__ import annotations

import onnx_ir as ir

from calib.errors import IntvitError
from toolchain.passes import ExpandInt4, ShiftToZeroPoint


def lower(canonical: ir.Model) -> ir.Model:
    """A copy of ``canonical`` in the ORT dialect.

    Raises:
        IntvitError: the result breaks one of the dialect's rules (a fault of the toolchain, not of the user).
    """
    dialect = canonical.clone()
    ir.passes.Sequential(ShiftToZeroPoint(), ExpandInt4())(dialect)
    check(dialect)
    return dialect


def check(model: ir.Model) -> None:
    """Hold a graph against what ORT can run as integers.

    Raises:
        IntvitError: naming the first node that breaks a rule.
    """
    for node in model.graph:
        if node.op_type == "MatMul" and _dequantized(node.inputs[0]) and _dequantized(node.inputs[1]):
            users = [use.node for use in node.outputs[0].uses()]
            added = users[0].inputs if len(users) == 1 and users[0].op_type == "Add" else ()
            bias = next((value for value in added if value is not node.outputs[0]), None)
            if bias is not None and bias.shape is not None and len(bias.shape) < 3:
                raise _fault(node, "its bias is not (1, 1, N), so ORT would run a float Gemm")
        if node.op_type == "QuantizeLinear" and len(node.outputs[0].uses()) != 1:
            raise _fault(node, "its output feeds more than one DequantizeLinear, which ORT does not fuse")
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is not None and source.dtype == ir.DataType.INT4:
            raise _fault(node, "INT4 is dequantized at every call; a Cast to INT8 is missing")


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _fault(node: ir.Node, why: str) -> IntvitError:
    return IntvitError(
        "the graph breaks a rule of the ort target",
        where=node.name or node.op_type,
        why=why,
        next="please report it with the command that built the bundle",
    )

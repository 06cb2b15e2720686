"""The ONNX Runtime dialect: the canonical graph in the form that reaches ORT's integer kernels on x86 and ARM.

Signed QDQ stays as it is: on x86 ORT itself turns the activations unsigned and takes its U8S8 kernels, on ARM S8S8 is
native. INT4 weights beside float activations are put in blocks, of which ORT makes MatMulNBits with packed weights; the
Cast to INT8 that the integer kernels need would make 8-bit ones of them, slower than float. The products of graphs
without float (``+int``) are written by hand, and made unsigned here. Biases are (1, 1, N), because a 1-D bias lets
MatMulAddFusion turn the layer into a float Gemm.
"""

from __future__ import annotations

import onnx_ir as ir

from toolchain.passes import BlockInt4, ExpandInt4, ShiftToZeroPoint, UnsignedLeft
from toolchain.rules import findings
from toolchain.targets import broken_rule

BLOCKS = (128, 64, 32, 16)  # powers of two from 16 on become MatMulNBits; larger ones hold fewer scales


def lower(canonical: ir.Model) -> ir.Model:
    """A copy of ``canonical`` in the ORT dialect.

    Raises:
        IntvitError: the result breaks one of the dialect's rules (a fault of the toolchain, not of the user).
    """
    dialect = canonical.clone()
    ir.passes.Sequential(ShiftToZeroPoint(), BlockInt4(BLOCKS, widen=False), ExpandInt4(), UnsignedLeft())(dialect)
    check(dialect)
    return dialect


def check(model: ir.Model) -> None:
    """Hold a graph against what ORT can run as integers: the errors of ``toolchain.lint``.

    Raises:
        IntvitError: naming the first node that breaks a rule.
    """
    for finding in findings(model, "ort"):
        if finding.severity == "error":
            raise broken_rule("ort", finding.node, f"{finding.what}: {finding.why}")

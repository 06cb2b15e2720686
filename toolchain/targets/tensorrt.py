"""The TensorRT dialect: a strongly typed graph that TensorRT's parser takes as it is, from 10.x to RTX.

What TensorRT wants (docs/tensorrt.md): one compute type from the first Cast to the last, scales of quantizers included;
zero point 0, shifts in the bias; float bias; one weight scale per output channel; LayerNormalization and Gelu as single
nodes; INT4 only beside float activations, in blocks. So 4-bit weights of integer schemes are stored as INT8, and
``w4a16`` keeps them 4-bit. With ``kernels=on`` integer products are nodes of our own kernels, which read both.
"""

from __future__ import annotations

import onnx_ir as ir

from runtime.errors import IntvitError
from toolchain.passes import BalanceScales, BlockInt4, ComputeDtype, Float8, LinearKernels, WidenInt4
from toolchain.rules import findings
from toolchain.targets import broken_rule
from toolchain.targets.choices import Precision, TensorRtOptions

_DTYPES: dict[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def lower(canonical: ir.Model, options: TensorRtOptions | None = None) -> ir.Model:
    """A copy of ``canonical`` in the TensorRT dialect.

    Raises:
        IntvitError: a number of the network does not fit the compute type, the scheme has no FP8 form or nothing for
            the kernels, or the result breaks one of the dialect's rules (a fault of the toolchain, not of the user).
    """
    chosen = options or TensorRtOptions()
    dialect = canonical.clone()
    if chosen.quantizers == "fp8":
        _run(Float8(), dialect, "this scheme has no FP8 form", "build w8a8 or w4a8, or leave quantizers=int8")
    if chosen.kernels == "on":
        _run(LinearKernels(), dialect, "no layer of this scheme can run on the kernels", "build w8a8 or w4a8")
    for one in (WidenInt4(), BlockInt4()):
        one(dialect)
    if chosen.precision == "fp16":
        _run(BalanceScales(), dialect, *_too_small(chosen))
    _compute(dialect, chosen)
    check(dialect)
    return dialect


def twin(floating: ir.Model, options: TensorRtOptions | None = None) -> ir.Model:
    """A copy of the float32 twin in the dialect's compute type: what the integer engine's speed is held against.

    Raises:
        IntvitError: a number of the network does not fit the compute type.
    """
    chosen = options or TensorRtOptions()
    dialect = floating.clone()
    _compute(dialect, chosen)
    return dialect


def check(model: ir.Model) -> None:
    """Hold a graph against what TensorRT takes: the errors of ``toolchain.lint``.

    Raises:
        IntvitError: naming the first node that breaks a rule.
    """
    for finding in findings(model, "tensorrt"):
        if finding.severity == "error":
            raise broken_rule("tensorrt", finding.node, f"{finding.what}: {finding.why}")


def _compute(model: ir.Model, options: TensorRtOptions) -> None:
    dtype = _DTYPES.get(options.precision)
    if dtype is not None:
        _run(ComputeDtype(dtype), model, *_too_small(options))


def _too_small(options: TensorRtOptions) -> tuple[str, str]:
    what = f"the network does not fit the compute type {options.precision}"
    return what, "build with --option precision=bf16, or precision=fp32"


def _run(one: ir.passes.InPlacePass, model: ir.Model, what: str, next: str) -> None:
    """Run a pass whose precondition is a property of the network or the scheme, not of our own graphs."""
    try:
        one(model)
    except ir.passes.PreconditionError as error:
        raise IntvitError(what, where="--target tensorrt", why=str(error), next=next) from error

"""The TensorRT dialect: a strongly typed graph that TensorRT's parser takes as it is, from 10.x to RTX.

What TensorRT wants (docs/tensorrt.md): one compute type from the first Cast to the last, scales of quantizers included;
zero point 0, shifts in the bias; float bias; one weight scale per output channel; LayerNormalization and Gelu as single
nodes; INT4 only beside float activations, in blocks. So 4-bit weights of integer schemes are stored as INT8, and
``w4a16`` keeps them 4-bit. With ``kernels=on`` integer products are nodes of our own kernels, which read both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import onnx_ir as ir

from calib.errors import IntvitError
from toolchain.passes import BalanceScales, BlockInt4, ComputeDtype, Float8, LinearKernels, WidenInt4
from toolchain.rules import findings
from toolchain.targets import broken_rule

Precision = Literal["fp16", "bf16", "fp32"]
Quantizers = Literal["int8", "fp8"]
Kernels = Literal["off", "on"]
_DTYPES: dict[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "quantizers": get_args(Quantizers),
    "kernels": get_args(Kernels),
}
_LEFT_OUT = {
    "residual-q": "the residual stream has no calibrated range, and peers that put it in 8 bits fell to chance",
    "attn8": "integer attention products are part of the scheme: --bits w8a8+attn8",
}


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of the dialect. Those that exclude each other are an IntvitError.

    Attributes:
        precision: the compute type of everything that is not quantized.
        quantizers: what the quantizers make, and the weights are stored as: the calibrated integers; or E4M3 over the
            same ranges, for SM 8.9 and later, which no golden vector speaks of.
        kernels: whether linear layers are plugin nodes of our W4A8 and W8A8 kernels (docs/kernels.md).
    """

    precision: Precision = "fp16"
    quantizers: Quantizers = "int8"
    kernels: Kernels = "off"

    def __post_init__(self) -> None:
        if self.kernels == "on" and (self.precision, self.quantizers) != ("fp16", "int8"):
            raise IntvitError(
                "kernels=on goes with precision=fp16 and quantizers=int8 only",
                where="--option",
                why="the kernels read int8 and write float16 or int8",
                next="leave the other options out, or kernels=off",
            )

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> TensorRtOptions:
        """The options from NAME=VALUE texts.

        Raises:
            IntvitError: a name or value that is not known, or values that exclude each other; what was left out on
                purpose says why.
        """
        known = "known: " + ", ".join(f"{name}={'|'.join(values)}" for name, values in _CHOICES.items())
        for name, value in given.items():
            if name not in _CHOICES:
                why = _LEFT_OUT.get(name, "it is not one of its options")
                raise IntvitError(f"the tensorrt target has no option {name!r}", where="--option", why=why, next=known)
            if value not in _CHOICES[name]:
                raise IntvitError(f"unknown {name} {value!r}", where="--option", next=known)
        return cls(
            cast(Precision, given.get("precision", cls.precision)),
            cast(Quantizers, given.get("quantizers", cls.quantizers)),
            cast(Kernels, given.get("kernels", cls.kernels)),
        )


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

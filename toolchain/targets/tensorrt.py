"""The TensorRT dialect: a strongly typed graph that TensorRT's parser takes as it is, from 10.x to RTX.

What TensorRT wants (docs/tensorrt.md): one compute type from the first Cast to the last, scales of quantizers included;
zero point 0, shifts in the bias; float bias; one weight scale per output channel; LayerNormalization and Gelu as single
nodes; INT4 only beside float activations, in blocks. So 4-bit weights of integer schemes are stored as INT8, and
``w4a16`` keeps them 4-bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from calib.errors import IntvitError
from toolchain.passes import BalanceScales, BlockInt4, ComputeDtype, WidenInt4
from toolchain.rules import findings
from toolchain.targets import broken_rule

Precision = Literal["fp16", "bf16", "fp32"]
_DTYPES: dict[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_LEFT_OUT = {
    "residual-q": "the residual stream has no calibrated range, and peers that put it in 8 bits fell to chance",
    "fp8": "the calibrated integers say nothing about rounding to E4M3",
    "attn8": "integer attention products are part of the scheme: --bits w8a8+attn8",
}


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of the dialect. ``precision`` is the compute type of everything that is not integer."""

    precision: Precision = "fp16"

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> TensorRtOptions:
        """The options from NAME=VALUE texts.

        Raises:
            IntvitError: a name or value that is not known; what was left out on purpose says why.
        """
        for name in given:
            if name != "precision":
                why = _LEFT_OUT.get(name, "it is not one of its options")
                raise IntvitError(
                    f"the tensorrt target has no option {name!r}",
                    where="--option",
                    why=why,
                    next="known: precision=" + "|".join(get_args(Precision)),
                )
        chosen = given.get("precision", cls.precision)
        for known in get_args(Precision):
            if chosen == known:
                return cls(precision=known)
        raise IntvitError(
            f"unknown precision {chosen!r}", where="--option", next="known: " + ", ".join(get_args(Precision))
        )


def lower(canonical: ir.Model, options: TensorRtOptions | None = None) -> ir.Model:
    """A copy of ``canonical`` in the TensorRT dialect.

    Raises:
        IntvitError: a number of the network does not fit the compute type, or the result breaks one of the dialect's
            rules (a fault of the toolchain, not of the user).
    """
    chosen = options or TensorRtOptions()
    dialect = canonical.clone()
    passes = [WidenInt4(), BlockInt4()]
    if chosen.precision == "fp16":
        passes.append(BalanceScales())
    _run([*passes, *_compute(chosen)], dialect, chosen)
    check(dialect)
    return dialect


def twin(floating: ir.Model, options: TensorRtOptions | None = None) -> ir.Model:
    """A copy of the float32 twin in the dialect's compute type: what the integer engine's speed is held against.

    Raises:
        IntvitError: a number of the network does not fit the compute type.
    """
    chosen = options or TensorRtOptions()
    dialect = floating.clone()
    _run(_compute(chosen), dialect, chosen)
    return dialect


def check(model: ir.Model) -> None:
    """Hold a graph against what TensorRT takes: the errors of ``toolchain.lint``.

    Raises:
        IntvitError: naming the first node that breaks a rule.
    """
    for finding in findings(model, "tensorrt"):
        if finding.severity == "error":
            raise broken_rule("tensorrt", finding.node, f"{finding.what}: {finding.why}")


def _compute(options: TensorRtOptions) -> list[ir.passes.InPlacePass]:
    dtype = _DTYPES.get(options.precision)
    return [] if dtype is None else [ComputeDtype(dtype)]


def _run(passes: list[ir.passes.InPlacePass], model: ir.Model, options: TensorRtOptions) -> None:
    for one in passes:
        try:
            one(model)
        except ir.passes.PreconditionError as error:
            raise IntvitError(
                f"the network does not fit the compute type {options.precision}",
                where="--target tensorrt",
                why=str(error),
                next="build with --option precision=bf16, or precision=fp32",
            ) from error

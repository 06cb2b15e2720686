"""What can be asked of a build: the targets, their options, what each can carry.

No torch and no onnx here, so that a wrong command line is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from calib.scheme import Scheme
from runtime.errors import IntvitError

TARGETS = ("ort", "openvino", "tensorrt")
DEFAULT_TARGET = "ort"
INTEGER_ONLY = ("ort",)  # targets that run a graph without float (``+int``) exactly
TENSORRT_BLOCKS = (128, 64)  # of INT4, as TensorRT documents them

Precision = Literal["fp16", "bf16", "fp32"]
Quantizers = Literal["int8", "fp8"]
Kernels = Literal["off", "on"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "quantizers": get_args(Quantizers),
    "kernels": get_args(Kernels),
}
_LEFT_OUT = {
    "residual-q": "the residual stream in 8 bits is part of the scheme: --bits w8a8+res8",
    "attn8": "integer attention products are part of the scheme: --bits w8a8+attn8",
}


def option_choices() -> str:
    """The options of the tensorrt target with their values, as one types them."""
    return ", ".join(f"{name}={'|'.join(values)}" for name, values in _CHOICES.items())


def measured_backend(targets: list[str]) -> str:
    """The engine that ``--eval`` measures of a bundle with these targets."""
    return DEFAULT_TARGET if DEFAULT_TARGET in targets else targets[0]


def backend_option(targets: list[str]) -> str:
    """What a verb of the runtime has to be told beside a bundle with these targets, a space before it; mostly nothing.

    The verbs take :data:`DEFAULT_TARGET` where nothing is said.
    """
    return "" if not targets or DEFAULT_TARGET in targets else f" --backend {measured_backend(targets)}"


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
        known = "known: " + option_choices()
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


def require_carried(scheme: Scheme, targets: list[str], options: TensorRtOptions | None = None) -> None:
    """Refuse targets that cannot run ``scheme`` as it promises, before any work is done.

    Raises:
        IntvitError: one of ``targets`` cannot carry ``scheme``, or not with these ``options`` of tensorrt's.
    """
    if options is not None:
        _require_optional(scheme, options)
    refused = [target for target in targets if target not in INTEGER_ONLY]
    if scheme.integer and refused:
        raise IntvitError(
            f"{refused[0]} cannot run {scheme}",
            where=f"--target {refused[0]}",
            why="its runtime has no exact 64-bit integer arithmetic with integer matrix products",
            next=f"--target {','.join(INTEGER_ONLY)}; its bundle holds the canonical graph too",
        )
    odd = scheme.group is not None and scheme.weight_bits <= 4 and scheme.group not in TENSORRT_BLOCKS
    if odd and "tensorrt" in targets:
        raise IntvitError(
            f"tensorrt cannot run {scheme}",
            where="--target tensorrt",
            why=f"it documents 4-bit weights in groups of 64 or 128, not {scheme.group}",
            next=f"--bits {replace(scheme, group=64)}, or {replace(scheme, group=None)}; or --target ort,openvino",
        )


def _require_optional(scheme: Scheme, options: TensorRtOptions) -> None:
    """What the passes of :mod:`toolchain.targets.tensorrt` would find out of the graph, told before there is one."""
    lacks = ""
    if options.quantizers == "fp8" and scheme.float_activations:
        lacks = "its activations stay float"
    elif options.quantizers == "fp8" and scheme.act_bits < 8:
        lacks = "activations of fewer than 8 bits have no FP8 form"
    elif options.quantizers == "fp8" and scheme.residual_bits is not None:
        lacks = "integers of the residual stream are moved first, and ONNX slices no FP8"
    if lacks:
        raise IntvitError(
            f"{scheme} has no FP8 form", where="--option quantizers=fp8", why=lacks, next="build w8a8 or w4a8"
        )
    if options.kernels == "on" and scheme.float_activations:
        why = "they multiply integers, and its activations stay float"
        raise IntvitError(
            f"no layer of {scheme} can run on the kernels", where="--option kernels=on", why=why, next="build w4a8"
        )

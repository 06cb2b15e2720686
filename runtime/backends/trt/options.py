"""What a user may choose of the tensorrt backend (``--option NAME=VALUE``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from runtime.backends.base import as_typed
from runtime.backends.trt.library import Library
from runtime.errors import IntvitError
from runtime.kernels.build import FOLDER

Precision = Literal["graph", "fp16", "bf16", "fp32"]
Cuda = Literal["auto", "pycuda", "cuda-python"]
_SWITCH = {"on": True, "off": False}
_WORKSPACE_PART = 4


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine takes: one size, or ``least`` to ``most`` tuned for ``best``."""

    least: int
    best: int
    most: int

    @property
    def fixed(self) -> bool:
        """Whether it is one size."""
        return self.least == self.most

    def __str__(self) -> str:
        return str(self.least) if self.fixed else f"{self.least}:{self.best}:{self.most}"

    @classmethod
    def parse(cls, text: str) -> Batch:
        """ "8", or "1:8:32" for least, best and most.

        Raises:
            IntvitError: it is neither, or the three do not rise.
        """
        if re.fullmatch(r"\d+(:\d+:\d+)?", text):
            numbers = [int(part) for part in text.split(":")]
            least, best, most = numbers * 3 if len(numbers) == 1 else numbers
            if 1 <= least <= best <= most:
                return cls(least, best, most)
        hint = "batch=8 for one size, batch=1:8:32 for sizes 1 to 32 tuned for 8"
        raise IntvitError(f"not a batch size: {text!r}", where="--option", next=hint)


@dataclass(frozen=True)
class TensorRtOptions:
    """The options and their defaults.

    Attributes:
        library: which module; auto takes ``tensorrt`` before ``tensorrt_rtx``.
        precision: what the float parts compute in; "graph" is what the bundle's graph says. Another one is put into
            the graph before it is built (:mod:`runtime.onnx_retype`).
        batch: one size, or a range with the size to tune for (an optimization profile).
        level: TensorRT's builder_optimization_level, 0 (quick build) to 5 (slow build).
        workspace: MiB that a layer may use while it is tuned and run; 0: a quarter of the device's memory.
        device: number of the GPU.
        cuda: which library holds buffers and streams; auto takes ``pycuda`` before ``cuda-python``, and the other way
            round with ``cuda_graph=on``, which only cuda-python can do.
        cuda_graph: whether a run is recorded once and replayed.
        kernels: the folder that ``make kernels`` wrote, for graphs with nodes of our kernels.
    """

    library: Library = "auto"
    precision: Precision = "graph"
    batch: Batch = Batch(1, 1, 1)
    level: int = 3
    workspace: int = 0
    device: int = 0
    cuda: Cuda = "auto"
    cuda_graph: bool = False
    kernels: Path = FOLDER

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> TensorRtOptions:
        """Options from texts.

        Raises:
            IntvitError: an unknown name, or a value its type does not have.
        """
        known = [field.name for field in fields(cls)]
        made: dict[str, Any] = {}
        for name, text in values.items():
            if name not in known:
                hint = f"known: {', '.join(known)}"
                raise IntvitError(f"unknown option {name!r} of the tensorrt backend", where=as_typed(name), next=hint)
            made[name] = _value(name, text)
        return replace(cls(), **made)

    def workspace_bytes(self, memory_bytes: int) -> int:
        """The workspace limit on a device of that much memory (0: not known; then TensorRT's own, all of it)."""
        return self.workspace << 20 if self.workspace else memory_bytes // _WORKSPACE_PART


def _value(name: str, text: str) -> Any:
    choices = {"library": get_args(Library), "precision": get_args(Precision), "cuda": get_args(Cuda)}
    if name in choices:
        return _one_of(name, text, choices[name])
    if name == "cuda_graph":
        return _SWITCH[_one_of(name, text, tuple(_SWITCH))]
    if name == "batch":
        return Batch.parse(text)
    if name == "kernels":
        return Path(text)
    low, high = {"level": (0, 5), "workspace": (0, 1 << 20), "device": (0, 255)}[name]
    if not text.isdigit() or not low <= int(text) <= high:
        raise IntvitError(f"not a value of {name}: {text!r}", where="--option", next=f"{name}={low} to {high}")
    return int(text)


def _one_of(name: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        hint = f"{name}={' or '.join(choices)}"
        raise IntvitError(f"unknown {name} {text!r}", where="--option", next=hint)
    return text

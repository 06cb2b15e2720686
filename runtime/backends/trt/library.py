"""Which TensorRT there is: ``tensorrt`` (10.3 of JetPack 6 to 11.4) or ``tensorrt_rtx``. Imported when asked."""

from __future__ import annotations

import importlib
from typing import Literal

from runtime.backends.trt.types import TensorRT
from runtime.errors import IntvitError

Library = Literal["auto", "tensorrt", "tensorrt_rtx"]
OLDEST = (10, 3)
_INSTALL = (
    "on a Jetson: `sudo apt install python3-libnvinfer` and a virtual environment made with --system-site-packages; "
    "elsewhere: pip install 'intvit[tensorrt]' (or 'intvit[rtx]' for TensorRT-RTX)"
)


def library(chosen: Library = "auto") -> TensorRT:
    """The TensorRT module; ``auto`` takes ``tensorrt`` before ``tensorrt_rtx``.

    Raises:
        IntvitError: it is not installed, cannot be loaded, or is older than 10.3.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx") if chosen == "auto" else (chosen,):
        try:
            trt = importlib.import_module(name)
            if not hasattr(trt, "__version__"):
                raise ImportError("only a folder of that name")
        except Exception as error:  # a missing libnvinfer is an ImportError or an OSError, a stub package anything
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if name == "tensorrt" and _number(str(trt.__version__)) < OLDEST:
            what = f"TensorRT {trt.__version__} is too old"
            raise IntvitError(what, where=name, why="10.3 or later is needed", next="JetPack 6.1 or later has it")
        return trt
    raise IntvitError("TensorRT is not installed", where="backend 'tensorrt'", why="; ".join(reasons), next=_INSTALL)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def module_name(trt: TensorRT) -> str:
    """``tensorrt`` or ``tensorrt_rtx``."""
    return str(trt.__name__)


def is_rtx(trt: TensorRT) -> bool:
    """Whether this is TensorRT-RTX: it builds without a GPU, for any compute capability it knows."""
    return module_name(trt) == "tensorrt_rtx"

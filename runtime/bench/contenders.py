"""Who is timed: the integer engine, its float twin, a BF16 twin where there is one, another bundle's engine."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime import machine
from runtime.backends.base import Engine, Images, open_engine
from runtime.bundle import Bundle
from runtime.errors import IntvitError

ENGINE, TWIN, BF16, OTHER = "engine", "baseline", "bf16", "other"
CPU_BACKENDS = ("ort", "openvino")
NO_BF16 = "no BF16 beside it: this processor does not multiply bfloat16 (AMX, AVX-512 BF16 or ARM BF16)"
NO_OPENVINO = "no BF16 beside it: OpenVINO is not installed, `pip install 'intvit[openvino]'`"


def tiled(images: Images, batch: int) -> Images:
    """``batch`` images, the given ones repeated: float32 (batch, C, H, W)."""
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


@dataclass(frozen=True)
class Contender:
    """An engine that takes its turn, on images of its own.

    Attributes:
        role: ``engine``, ``baseline`` (the float twin), ``bf16`` or ``other`` (another bundle's engine).
        name: what to print, as "FP32 (ort)".
        images: float32 (batch, C, H, W).
    """

    role: str
    name: str
    engine: Engine
    images: Images

    def call(self) -> object:
        """Run the engine on the images once."""
        return self.engine.run(self.images)


@dataclass(frozen=True)
class Setup:
    """How every contender is opened.

    Attributes:
        backend: name of the integer engine's backend, and of its twin's.
        threads: of each engine.
        batch: images a call.
        options: the backend's own, for the integer engines only.
        timing: ``spin_wait``, ``cuda_graph``, ``transfers`` as "on" or "off", for integer engines and twin alike; what
            is not in it stays as the backend has it.
    """

    backend: str
    threads: int
    batch: int
    options: Mapping[str, str]
    timing: Mapping[str, str]


def precision(about: Mapping[str, Any]) -> str:
    """The precision of a float twin as its engine describes it: "FP32" where it says nothing."""
    return str(about.get("precision", "fp32")).upper()


def bf16_absence(backend: str) -> str:
    """Why no BF16 twin can be timed beside the engine, in one line; empty when one can, or on a GPU (FP16 there)."""
    if backend not in CPU_BACKENDS:
        return ""
    if not machine.fast_bf16():
        return NO_BF16
    return "" if importlib.util.find_spec("openvino") is not None else NO_OPENVINO


def _integer(role: str, bundle: Bundle, setup: Setup) -> Contender:
    options = {**setup.options, **setup.timing}
    made = open_engine(bundle, setup.backend, threads=setup.threads, options=options)
    name = f"{bundle.manifest.scheme.upper()} ({setup.backend})"
    return Contender(role, name, made, tiled(bundle.golden().images, setup.batch))


def _twin(bundle: Bundle, setup: Setup) -> Contender:
    made = open_engine(bundle, setup.backend, threads=setup.threads, twin=True, options=setup.timing)
    name = f"{precision(made.describe())} ({setup.backend})"
    return Contender(TWIN, name, made, tiled(bundle.golden().images, setup.batch))


def _bf16(bundle: Bundle, setup: Setup) -> Contender:
    made = open_engine(bundle, "openvino", threads=setup.threads, twin=True, options={"precision": "bf16"})
    return Contender(BF16, "BF16 (openvino)", made, tiled(bundle.golden().images, setup.batch))


@contextlib.contextmanager
def opened(
    bundle: Bundle, setup: Setup, *, bf16: bool = True, other: Bundle | None = None
) -> Iterator[tuple[list[Contender], list[str]]]:
    """The contenders, engine and baseline first, and a line for each that is missing; all are closed at the end.

    Args:
        bf16: whether a BF16 twin is wanted (CPU backends only; through OpenVINO, as ONNX Runtime has no such path on
            x86).
        other: a bundle whose integer engine is timed as well.

    Raises:
        IntvitError: unknown backend or option, or a graph that does not load. A BF16 twin that fails is left out.
    """
    with contextlib.ExitStack() as stack:
        made: list[Contender] = []
        absent: list[str] = []

        def add(contender: Contender) -> None:
            stack.callback(contender.engine.close)
            made.append(contender)

        add(_integer(ENGINE, bundle, setup))
        add(_twin(bundle, setup))
        if bf16 and setup.backend in CPU_BACKENDS:
            reason = bf16_absence(setup.backend)
            if not reason:
                try:
                    add(_bf16(bundle, setup))
                except IntvitError as error:
                    reason = f"no BF16 beside it: {error.what}: {error.why}"
            absent += [reason] if reason else []
        if other is not None:
            add(_integer(OTHER, other, setup))
        yield made, absent

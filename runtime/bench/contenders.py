"""Who is timed: the integer engine, its float twin, a BF16 twin where there is one, another bundle's engine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime import machine
from runtime.backends.base import Engine, Images, backend_class
from runtime.bench.disturbance import threads
from runtime.bundle import Bundle
from runtime.errors import IntvitError

# engines whose own threads keep one another from the processors on an idle machine too: OpenVINO has as many spinning
# workers as it was given threads, and a dispatcher beside them
CROWDED = frozenset({"openvino"})
ENGINE, TWIN, BF16, OTHER = "engine", "baseline", "bf16", "other"
CPU_BACKENDS = ("ort", "openvino")
SHORT = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
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
        threads: by number, those that came to be with it and with its first call.
    """

    role: str
    name: str
    engine: Engine
    images: Images
    threads: frozenset[int] = frozenset()

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

    def open(self, bundle: Bundle, *, twin: bool = False) -> Engine:
        """The bundle's integer engine on the backend, or its float twin, which gets only the options that hold for it.

        A backend whose engines are built for one batch size builds it for this one.

        Raises:
            IntvitError: unknown backend or option, or a graph that does not load.
        """
        served = backend_class(self.backend)
        shared = served.twin_options
        options = {**({"batch": str(self.batch)} if "batch" in shared else {}), **self.options}
        if twin:
            options = {name: value for name, value in options.items() if name in shared}
        return served.open(bundle, threads=self.threads, twin=twin, options={**options, **self.timing})

    def precision(self) -> str:
        """What the backend's float twin computes in, by numpy's name."""
        return str(getattr(backend_class(self.backend), "twin_precision", "float32"))


def witnesses(contenders: Sequence[Contender]) -> frozenset[int]:
    """The threads whose waiting for a processor tells of others on the machine: the caller's, and every engine's but
    those of :data:`CROWDED`."""
    known = (contender.threads for contender in contenders if contender.engine.name not in CROWDED)
    return frozenset([threading.get_native_id()]).union(*known)


def bf16_absence(backend: str) -> str:
    """Why no BF16 twin can be timed beside the engine, in one line; empty when one can, or on a GPU (FP16 there)."""
    if backend not in CPU_BACKENDS:
        return ""
    if not machine.fast_bf16():
        return NO_BF16
    return "" if machine.has_module("openvino") else NO_OPENVINO


def _integer(role: str, bundle: Bundle, setup: Setup) -> Contender:
    name = f"{bundle.manifest.scheme.upper()} ({setup.backend})"
    return Contender(role, name, setup.open(bundle), tiled(bundle.golden().images, setup.batch))


def _twin(bundle: Bundle, setup: Setup) -> Contender:
    name = f"{SHORT.get(setup.precision(), setup.precision())} ({setup.backend})"
    return Contender(TWIN, name, setup.open(bundle, twin=True), tiled(bundle.golden().images, setup.batch))


def _bf16(bundle: Bundle, setup: Setup) -> Contender:
    options = {"precision": "bf16"}
    made = backend_class("openvino").open(bundle, threads=setup.threads, twin=True, options=options)
    return Contender(BF16, "BF16 (openvino)", made, tiled(bundle.golden().images, setup.batch))


@contextlib.contextmanager
def opened(
    bundle: Bundle, setup: Setup, *, bf16: bool = True, other: Bundle | None = None
) -> Iterator[tuple[list[Contender], list[str]]]:
    """The contenders, engine and baseline first, and a line for each that is missing; all are closed at the end.

    Each has been called once.

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

        def add(opening: Callable[[], Contender]) -> None:
            before = threads()
            contender = opening()
            stack.callback(contender.engine.close)
            contender.call()  # a batch's sessions, and their threads, come with its first call
            made.append(replace(contender, threads=threads() - before))

        add(lambda: _integer(ENGINE, bundle, setup))
        add(lambda: _twin(bundle, setup))
        if bf16 and setup.backend in CPU_BACKENDS:
            reason = bf16_absence(setup.backend)
            if not reason:
                try:
                    add(lambda: _bf16(bundle, setup))
                except IntvitError as error:
                    reason = f"no BF16 beside it: {error.what}: {error.why}"
            absent += [reason] if reason else []
        if other is not None:
            add(lambda: _integer(OTHER, other, setup))
        yield made, absent

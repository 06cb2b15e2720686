"""``python -m runtime.parity BUNDLE``: does the engine compute what was calibrated, integer by integer?

``--ladder`` (:mod:`runtime.ladder`) and ``--find`` (:mod:`runtime.find`) say where it does not.

The integers are those of the graph the engine really executes, every tap exposed. ONNX Runtime: its optimized form,
loaded with the optimizer off so that the fused kernels stay. OpenVINO: the stored graph, whose kernels an output more
leaves as they are. Two comparisons with the golden vectors:

aligned  every tap's readers are fed the golden integers, so each quantizer, and the logits, are judged on the
         reference's own inputs. Every operation of the graph lies between two taps, so a fault has nowhere to hide.
free     the plain run from images to logits. Two float implementations differ in the last bit; now and then that bit
         decides a rounding, one flipped integer flips others, and after some blocks the two runs carry independent
         rounding noise. So this distance is held against the distance quantization itself puts between the
         fake-quant model and the float one (docs/decisions/0002-aligned-parity.md).
"""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from typer import Exit, Option

from runtime import cli, machine
from runtime.backends.base import backend_class, open_engine
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.golden import Golden
from runtime.onnx_retype import float_type
from runtime.onnx_wire import cut, read_graph, with_extra_outputs
from runtime.quantizers import Quantizer
from runtime.rungs import golden_feeds, levels_apart, rung

MAX_LSB = 1
MAX_MISMATCH_PERCENT = 0.1
FEW_VALUES = 3  # may differ at any tap, since 0.1 % of 1,536 integers is 1.5: docs/decisions/0032-few-values.md
MIN_LOGITS_SQNR_DB = 60.0
MIN_HALF_LOGITS_SQNR_DB = 50.0  # float16 between the taps: one part in 2048
TOLERANCE = 1e-4  # float32 sums in another order differ by 1e-6 of the largest value, a weight off by a level by 1e-3
BETWEEN = ("dialect", "engine")  # the rungs of --find
ENOUGH_FREE_DB = 35.0
FREE_MARGIN_DB = 4.0  # two runs with independent noise of the same power are 3 dB further apart than either from float
_IDENTICAL_DB = 200.0
LIMIT = f"{MAX_MISMATCH_PERCENT} % or {FEW_VALUES} of them"
# What aligned logits need, by what the float parts compute in; bfloat16's are shown and not judged.
LOGITS_SQNR_DB = {"float32": MIN_LOGITS_SQNR_DB, "float16": MIN_HALF_LOGITS_SQNR_DB, "bfloat16": -_IDENTICAL_DB}


@dataclass(frozen=True)
class TapParity:
    """One quantizer against the reference: how many integers, largest difference in levels, percent that differ."""

    name: str
    values: int
    max_lsb: int
    mismatch_rate: float
    free_max_lsb: int
    free_mismatch_rate: float

    @property
    def close(self) -> bool:
        """Within the limits, fed golden integers: see :func:`within_limits`."""
        return within_limits(self.max_lsb, self.mismatch_rate, self.values)


def within_limits(max_lsb: int, mismatch_rate: float, values: int) -> bool:
    """Whether a tap of ``values`` integers keeps the limits: at most 1 LSB, in fewer than 0.1 % of them or in 3.

    Args:
        max_lsb: the largest difference in levels. mismatch_rate: percent of the integers that differ.
    """
    few = mismatch_rate * values / 100 < FEW_VALUES + 0.5
    return max_lsb <= MAX_LSB and (mismatch_rate < MAX_MISMATCH_PERCENT or few)


@dataclass(frozen=True)
class Parity:
    """The result of :func:`check`.

    Attributes:
        ok: every condition in ``failures`` held.
        logits_sqnr_db: signal to noise of the engine's logits against the golden ones, every tap fed golden
            integers; at most 200.
        free_logits_sqnr_db: the same for the free-running engine.
        quantization_sqnr_db: of the golden logits against the float model's: what quantization itself costs.
        top1_agreement: percent of the golden images with the same first class, free-running.
        taps: in execution order.
        failures: one line for each condition that did not hold.
    """

    ok: bool
    logits_sqnr_db: float
    free_logits_sqnr_db: float
    quantization_sqnr_db: float
    top1_agreement: float
    taps: tuple[TapParity, ...]
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def sqnr_db(reference: npt.NDArray[np.float32], value: npt.NDArray[np.float32]) -> float:
    """10 log10(sum ref^2 / sum (ref - value)^2), in float64; 200 when nothing differs, -200 when nothing is right."""
    exact = reference.astype(np.float64)
    noise = float(np.square(exact - value.astype(np.float64)).sum())
    signal = float(np.square(exact).sum())
    if not math.isfinite(noise) or signal == 0.0:
        return _IDENTICAL_DB if noise == 0.0 else -_IDENTICAL_DB
    if noise == 0.0:
        return _IDENTICAL_DB
    return float(np.clip(10.0 * math.log10(signal / noise), -_IDENTICAL_DB, _IDENTICAL_DB))


def compare(quantizer: Quantizer, engine: npt.NDArray[np.generic], golden: Golden) -> tuple[int, float]:
    """(largest difference in levels, percent of elements that differ) of one tap's tensor.

    Raises:
        IntvitError: the shapes differ.
    """
    reference = golden.taps[quantizer.tap.golden].astype(np.int16)
    return levels_apart(quantizer.tap.name, quantizer.to_reference(engine), reference)


def _run(
    model: bytes, bundle: Bundle, feeds: dict[str, Any], quantizers: list[Quantizer], threads: int, backend: str
) -> dict[str, Any]:
    """The logits and every tap's tensor, by name."""
    names = list(dict.fromkeys([bundle.manifest.output_name, *(quantizer.tensor for quantizer in quantizers)]))
    where = f"{bundle.root} ({backend})"
    return backend_class(backend).run_graph(model, names, feeds, threads=threads, where=where)


def _failures(
    taps: list[TapParity], logits_db: float, free_db: float, quantization_db: float, precision: str
) -> list[str]:
    """A line for each condition that does not hold; ``precision`` is what the float parts compute in.

    Half precision between two taps moves roundings, by one step or by several where a value is large beside its spread,
    so there the taps are shown and not judged, and bfloat16's aligned logits neither.
    """
    lines = []
    needed = LOGITS_SQNR_DB[precision]
    for index, tap in enumerate(taps if precision == "float32" else ()):
        if index == 0 and (worst := max(tap.max_lsb, tap.free_max_lsb)) > 0:
            lines.append(f"the first tap {tap.name!r} differs by {worst} LSB; it must be exact")
        elif tap.max_lsb > MAX_LSB:
            lines.append(f"tap {tap.name!r} differs by {tap.max_lsb} LSB, at most {MAX_LSB} is allowed")
        elif not tap.close:
            lines.append(f"tap {tap.name!r} differs in {tap.mismatch_rate:.4f} % of its values, the limit is {LIMIT}")
    if not logits_db >= needed:
        lines.append(f"logits from golden integers: {logits_db:.1f} dB, at least {needed:.0f} needed")
    if not free_db >= min(ENOUGH_FREE_DB, quantization_db - FREE_MARGIN_DB):
        lines.append(
            f"logits of the free run: {free_db:.1f} dB from the fake-quant model, which is itself only "
            f"{quantization_db:.1f} dB from float"
        )
    return lines


def require_taps(bundle: Bundle) -> None:
    """Refuse a bundle whose layers are integer and whose manifest names no integers to compare.

    Raises:
        IntvitError: as said.
    """
    if not bundle.manifest.taps and any(layer.activation_bits <= 8 for layer in bundle.manifest.layers):
        raise IntvitError("the manifest names no taps: nothing to compare", where=str(bundle.root))


def check(bundle: Bundle, *, backend: str = "ort", threads: int | None = None) -> Parity:
    """Compare the engine with the golden vectors at every tap and at the logits.

    Raises:
        IntvitError: a tap is not in the executed graph, or the graph does not load or run.
    """
    require_taps(bundle)
    executed, quantizers = backend_class(backend).tapped(bundle)
    golden, used = bundle.golden(), threads or machine.available_cores()
    exposed = with_extra_outputs(executed, [quantizer.tensor for quantizer in quantizers])
    images = {bundle.manifest.input_name: golden.images}

    free = _run(exposed, bundle, images, quantizers, used, backend)
    free_results = [compare(quantizer, free[quantizer.tensor], golden) for quantizer in quantizers]
    del free
    aligned = _run_aligned(exposed, bundle, golden, quantizers, used, backend)
    taps = [
        TapParity(
            quantizer.tap.name,
            golden.taps[quantizer.tap.golden].size,
            *compare(quantizer, aligned[quantizer.tensor], golden),
            *free_result,
        )
        for quantizer, free_result in zip(quantizers, free_results, strict=True)
    ]

    engine = open_engine(bundle, backend, threads=used)
    try:
        logits = engine.run(golden.images)
    finally:
        engine.close()
    logits_db, free_db = sqnr_db(golden.logits, aligned[bundle.manifest.output_name]), sqnr_db(golden.logits, logits)
    quantization_db = sqnr_db(golden.float_logits, golden.logits)
    failures = _failures(taps, logits_db, free_db, quantization_db, float_type(read_graph(executed)))
    agreement = 100.0 * float((logits.argmax(axis=1) == golden.logits.argmax(axis=1)).mean())
    return Parity(not failures, logits_db, free_db, quantization_db, agreement, tuple(taps), tuple(failures))


def _run_aligned(
    exposed: bytes, bundle: Bundle, golden: Golden, quantizers: list[Quantizer], threads: int, backend: str
) -> dict[str, Any]:
    """:func:`_run` with every tap's readers fed the golden integers."""
    cuts, feeds = golden_feeds(bundle, golden, quantizers)
    return _run(cut(exposed, cuts), bundle, feeds, quantizers, threads, backend)


def show(result: Parity, console: Console) -> None:
    """Print the taps, the logits and the verdict."""
    table = Table(title="parity with the golden vectors")
    for column in ("tap", "max LSB", "differ %", "free max LSB", "free differ %"):
        table.add_column(column, justify="left" if column == "tap" else "right")
    for tap in result.taps:
        rates = (f"{tap.mismatch_rate:.4f}", str(tap.free_max_lsb), f"{tap.free_mismatch_rate:.4f}")
        table.add_row(tap.name, str(tap.max_lsb), *rates)
    console.print(table)
    console.print(
        f"logits {result.logits_sqnr_db:.1f} dB from golden integers; free run {result.free_logits_sqnr_db:.1f} dB, "
        f"where quantization itself leaves {result.quantization_sqnr_db:.1f} dB against float; "
        f"same first class for {result.top1_agreement:.1f} % of the golden images",
        highlight=False,
        soft_wrap=True,
    )
    for line in result.failures:
        console.print(f"FAILED: {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    console.print("parity ok" if result.ok else "parity FAILED", style="bold green" if result.ok else "bold red")


def main(
    bundle: cli.BundleArgument,
    backend: cli.BackendOption = "ort",
    json: cli.JsonOption = None,
    threads: cli.ThreadsOption = None,
    ladder: Annotated[bool, Option("--ladder", help="Compare every rung with the one before.")] = False,
    find: Annotated[bool, Option("--find", help="Name the first node at which two rungs part.")] = False,
    between: Annotated[
        tuple[str, str] | None,
        Option("--between", metavar="RUNG RUNG", help=f"The two rungs of --find; default: {' '.join(BETWEEN)}."),
    ] = None,
    tolerance: Annotated[
        float | None,
        Option(
            "--tolerance",
            min=0,
            help=f"Of --find: largest difference over a tensor's largest value; default: {TOLERANCE:g}.",
        ),
    ] = None,
) -> None:
    """Compare the engine's integers and logits with the golden vectors; exit code 1 when they are not the same."""
    from runtime import find as search
    from runtime import ladder as rungs  # both measure with this module's functions and limits

    for name, value in (("--between", between), ("--tolerance", tolerance)):
        if value is not None and not find:
            raise IntvitError(f"{name} belongs to --find", where=name, next=f"add --find, or leave {name} out")
    if between is not None and between[0] == between[1]:
        why = f"{between[0]} does not differ from itself"
        raise IntvitError("one rung given twice", where="--between", why=why, next="name two different rungs")
    opened, console = Bundle.open(bundle), Console()
    record: dict[str, Any] = {"backend": backend, "bundle": opened.sha256}
    deeper: list[str] = []
    if not (ladder or find):
        result = check(opened, backend=backend, threads=threads)
        show(result, console)
        record |= result.to_json()
        deeper = [] if result.ok else ["--ladder"]
    if ladder:
        climbed = rungs.climb(opened, backend=backend, threads=threads)
        rungs.show(climbed, console)
        record |= climbed.to_json()
        deeper = ["--find", "--between", *climbed.parted] if climbed.parted and not find else []
    if find:
        upper, lower = (rung(name, backend) for name in between or BETWEEN)
        within = TOLERANCE if tolerance is None else tolerance
        found = search.find(opened, upper, lower, tolerance=within, threads=threads)
        search.show(found, console)
        record["find"] = found.to_json()
        record["ok"] = record.get("ok", True) and found.first is None
        deeper = [] if ladder or found.first else ["--ladder"]
    if deeper:
        typed = ["python", "-m", "runtime.parity", str(bundle), *([] if backend == "ort" else ["--backend", backend])]
        console.print(f"next: {shlex.join([*typed, *deeper])}", markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        atomic_write_json(json, record)
    if not record["ok"]:
        raise Exit(1)


if __name__ == "__main__":
    cli.run(main)

"""The parity ladder: float -> fake-quant -> canonical graph -> dialect -> engine, each rung against the one before.

Where two models part, some rung is the first to differ from the one above it: a difference at ``canonical`` is a fault
of the emitted graph, at ``dialect`` of a pass, at ``engine`` of the runtime's optimizer or kernels. Every pair of rungs
is compared as :mod:`runtime.parity` compares engine and golden vectors: aligned (both fed the golden integers at every
tap) and free. Aligned figures decide, by the same limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from runtime import machine
from runtime.backends.base import open_engine
from runtime.bundle import Bundle
from runtime.golden import Golden
from runtime.onnx_retype import float_type
from runtime.onnx_wire import INT8
from runtime.operations import operations
from runtime.parity import LIMIT, LOGITS_SQNR_DB, MAX_LSB, TapParity, require_taps, sqnr_db
from runtime.quantizers import Quantizer
from runtime.rungs import Model, Rung, Tensors, levels_apart, open_rung, rungs_of

FLOAT, FAKE_QUANT = "float", "fake-quant"
NETWORK = "the trained network"


@dataclass(frozen=True)
class StepTap(TapParity):
    """One tap of a rung against the rung before. Aligned unless a field says free.

    Attributes:
        must_be_exact: no operation that leads here was reordered, so a single LSB is a fault.
    """

    must_be_exact: bool

    @property
    def exact(self) -> bool:
        """Every integer is the same."""
        return self.max_lsb == 0

    @property
    def ok(self) -> bool:
        """Within the limits of :mod:`runtime.parity`, and exact where it must be."""
        return self.exact or (self.close and not self.must_be_exact)


@dataclass(frozen=True)
class Step:
    """A rung against the one before.

    Attributes:
        rung, against: their names.
        what: what the rung is.
        logits_sqnr_db: of its logits against the other's, at most 200; both fed golden integers at every tap.
        free_logits_sqnr_db: the same for two plain runs.
        logits_exact: the logits from golden integers have the same bits.
        judged: its figures must keep the limits. Quantization itself (float to fake-quant) is shown, not judged.
        taps: in execution order; none for the float rungs.
        precision: what the rung's float parts compute in. In half precision the taps are shown and not judged.
    """

    rung: str
    against: str
    what: str
    logits_sqnr_db: float
    free_logits_sqnr_db: float
    logits_exact: bool
    judged: bool
    taps: tuple[StepTap, ...]
    precision: str = "float32"

    @property
    def exact(self) -> bool:
        """Every integer and every logit is the same, bit for bit."""
        return self.logits_exact and all(tap.exact for tap in self.taps)

    @property
    def parts_at(self) -> str:
        """Where the two part first: a tap's name, "logits", or empty."""
        if not self.judged:
            return ""
        judged = self.taps if self.precision == "float32" else ()
        bad = next((tap.name for tap in judged if not tap.ok), "")
        return bad or ("" if self.logits_sqnr_db >= LOGITS_SQNR_DB[self.precision] else "logits")

    @property
    def verdict(self) -> str:
        """One line: where the two part and by how much; empty when they do not."""
        at = self.parts_at
        tap = next((tap for tap in self.taps if tap.name == at), None)
        if tap is not None:
            much = f"{tap.max_lsb} LSB, {tap.mismatch_rate:.4f} % of the values"
            rule = "it must be exact" if tap.must_be_exact else f"at most {MAX_LSB} LSB in {LIMIT} is allowed"
            return f"{self.rung} parts from {self.against} at tap {at!r}: {much}; {rule}"
        need = f"{self.logits_sqnr_db:.1f} dB, at least {LOGITS_SQNR_DB[self.precision]:.0f} needed"
        return f"{self.rung} parts from {self.against} at the logits: {need}" if at else ""


@dataclass(frozen=True)
class Ladder:
    """The result of :func:`climb`: every rung from the second, against the one before."""

    steps: tuple[Step, ...]

    @property
    def ok(self) -> bool:
        """No rung parts from the one before."""
        return not any(step.parts_at for step in self.steps)

    @property
    def parted(self) -> tuple[str, str] | None:
        """The first two rungs that part, where both are graphs: what ``--find --between`` takes."""
        found = next((step for step in self.steps if step.parts_at), None)
        above_graphs = (NETWORK, FLOAT, FAKE_QUANT)
        return (found.against, found.rung) if found is not None and found.against not in above_graphs else None

    @property
    def verdict(self) -> str:
        """One line: the first rung and tap at which two models part, or how far apart they are at most."""
        parted = next((step.verdict for step in self.steps if step.parts_at), "")
        if parted:
            return parted
        judged = [step for step in self.steps if step.judged]
        taps = [tap for step in judged for tap in step.taps]
        worst, rate = max((t.max_lsb for t in taps), default=0), max((t.mismatch_rate for t in taps), default=0.0)
        logits = min(step.logits_sqnr_db for step in judged)
        return f"no rung parts: at most {worst} LSB and {rate:.4f} % at a tap, logits {logits:.1f} dB or better"

    def to_json(self) -> dict[str, Any]:
        """``ok``, ``verdict`` and ``rungs``: the fields of each step and its taps, and what follows from them."""
        rungs = []
        for step in self.steps:
            taps = [asdict(tap) | {"exact": tap.exact, "ok": tap.ok} for tap in step.taps]
            rungs.append(asdict(step) | {"taps": taps, "exact": step.exact, "parts_at": step.parts_at})
        return {"ok": self.ok, "verdict": self.verdict, "rungs": rungs}


@dataclass(frozen=True)
class _Trace:
    """What a rung computed: logits and taps, aligned and free. ``model`` is None for the fake-quant rung."""

    name: str
    quantizers: Sequence[Quantizer]
    aligned: Tensors
    free: Tensors
    aligned_logits: npt.NDArray[np.float32]
    free_logits: npt.NDArray[np.float32]
    model: Model | None = None


def climb(bundle: Bundle, *, backend: str = "ort", threads: int | None = None) -> Ladder:
    """Run every rung on the golden images and compare it with the one before.

    Raises:
        IntvitError: the bundle lacks a rung's graph, a tap is not in one, or one does not load or run.
    """
    require_taps(bundle)
    rungs = rungs_of(backend)
    golden, used = bundle.golden(), threads or machine.available_cores()
    steps = list(_float_steps(bundle, golden, used))
    taps = [Quantizer(tap, tap.golden, INT8, 0) for tap in bundle.manifest.taps]
    below = _Trace(FAKE_QUANT, taps, dict(golden.taps), dict(golden.taps), golden.logits, golden.logits)
    for one in rungs:
        model = open_rung(one, bundle)
        aligned, free = model.aligned(golden, used), model.free(golden, used)
        logits = bundle.manifest.output_name
        above = _Trace(one.name, model.quantizers, aligned, free, aligned[logits], free[logits], model)
        steps.append(_step(one, below, above))
        below = above
    return Ladder(tuple(steps))


def _float_steps(bundle: Bundle, golden: Golden, threads: int) -> list[Step]:
    engine = open_engine(bundle, "ort", threads=threads, twin=True)
    try:
        logits = engine.run(golden.images)
    finally:
        engine.close()
    twin, quantized = sqnr_db(golden.float_logits, logits), sqnr_db(logits, golden.logits)
    exact = np.array_equal(golden.float_logits, logits)
    return [
        Step(FLOAT, NETWORK, "the float32 twin", twin, twin, exact, True, ()),
        Step(FAKE_QUANT, FLOAT, "the golden vectors", quantized, quantized, False, False, ()),
    ]


def _step(one: Rung, below: _Trace, above: _Trace) -> Step:
    must = _same_operations(below.model, above.model) if one.exact else set()
    taps = []
    for index, (low, high) in enumerate(zip(below.quantizers, above.quantizers, strict=True)):
        name = high.tap.name
        values = below.aligned[low.tensor].size
        aligned, free = (
            levels_apart(name, high.to_reference(new[high.tensor]), low.to_reference(old[low.tensor]))
            for new, old in ((above.aligned, below.aligned), (above.free, below.free))
        )
        taps.append(StepTap(name, values, *aligned, *free, must_be_exact=index == 0 or name in must))
    return Step(
        rung=one.name,
        against=below.name,
        what=one.what,
        logits_sqnr_db=sqnr_db(below.aligned_logits, above.aligned_logits),
        free_logits_sqnr_db=sqnr_db(below.free_logits, above.free_logits),
        logits_exact=np.array_equal(below.aligned_logits, above.aligned_logits),
        judged=True,
        taps=tuple(taps),
        precision=float_type(above.model.graph) if above.model is not None else "float32",
    )


def _same_operations(below: Model | None, above: Model | None) -> set[str]:
    """The taps that come from the same operations in both graphs, from the taps before them on."""
    if below is None or above is None:
        return set()
    digests = []
    for model in (below, above):
        leaves = {q.tensor: f"tap {q.tap.name}, zero point {q.offset + q.tap.zero_point}" for q in model.quantizers}
        digests.append(operations(model.graph, leaves, [q.tensor for q in model.quantizers]))
    return {q.tap.name for q, old, new in zip(above.quantizers, *digests, strict=True) if old == new}


def show(result: Ladder, console: Console) -> None:
    """Print the rungs, the taps' LSB by rung, and where two models part."""
    rungs = Table(title="the parity ladder: each rung against the one before, fed golden integers")
    for column in ("rung", "logits dB", "free dB", "max LSB", "differ %", "exact taps", "must be"):
        rungs.add_column(column, justify="left" if column == "rung" else "right", no_wrap=True)
    for step in result.steps:
        cells = [f"{step.logits_sqnr_db:.1f}", f"{step.free_logits_sqnr_db:.1f}", "", "", "", ""]
        if step.taps:
            worst, rate = max(t.max_lsb for t in step.taps), max(t.mismatch_rate for t in step.taps)
            exact, must = sum(t.exact for t in step.taps), sum(t.must_be_exact for t in step.taps)
            cells[2:] = [str(worst), f"{rate:.4f}", f"{exact} of {len(step.taps)}", str(must)]
        rungs.add_row(step.rung, *cells, style="red" if step.parts_at else None)
    console.print(rungs)
    with_taps = [step for step in result.steps if step.taps]
    if with_taps:
        taps = Table("tap", title="max LSB and differing values, %")
        for step in with_taps:
            taps.add_column(step.rung, justify="right")
        for row in zip(*(step.taps for step in with_taps), strict=True):
            cells = [f"{tap.max_lsb}  {tap.mismatch_rate:.4f}" for tap in row]
            taps.add_row(row[0].name, *cells, style=None if all(tap.ok for tap in row) else "red")
        console.print(taps)
    style = "bold green" if result.ok else "bold red"
    console.print(result.verdict, style=style, markup=False, highlight=False, soft_wrap=True)

"""From a bundle to a record: open the contenders, time them, watch the machine, say what it means."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime import machine
from runtime.backends.base import Engine
from runtime.bench import disturbance, sustained
from runtime.bench.contenders import BF16, CPU_BACKENDS, ENGINE, OTHER, Contender, Setup, opened, witnesses
from runtime.bench.loop import BLOCK, WARM_UP_S, Timing, interleave, together
from runtime.bench.statistics import summary
from runtime.bench.verdict import hints, spoken, timing_warnings
from runtime.bundle import Bundle
from runtime.telemetry.energy import measured_energy
from runtime.telemetry.sampler import Sampler, open_sources

HOST = {"transfers": "none, arrays stay in host memory", "cuda_graph": "none, no GPU", "spin_wait": "the engine's own"}
DEVICE = dict.fromkeys(HOST, "not stated by the backend")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        backend, batch, threads: of the engines; threads None: the physical cores available.
        streams: engines that run at the same time when throughput is measured.
        seconds: of the interleaved timing, all contenders together.
        warm_up_s: before it.
        options: the backend's own, for the integer engines.
        timing: ``spin_wait``, ``cuda_graph``, ``transfers`` as "on" or "off".
        bf16: whether a BF16 twin is wanted.
        sustained_min: minutes of the sustained run; 0: none.
        energy_s: seconds of each contender alone for its energy, where a power sensor is found.
        interval_s: between two telemetry samples.
    """

    backend: str = "ort"
    batch: int = 1
    threads: int | None = None
    streams: int = 1
    seconds: float = 5.0
    warm_up_s: float = WARM_UP_S
    options: Mapping[str, str] = field(default_factory=dict)
    timing: Mapping[str, str] = field(default_factory=dict)
    bf16: bool = True
    sustained_min: float = 0.0
    energy_s: float = 3.0
    interval_s: float = 0.1

    def gpu(self) -> int:
        """CUDA's number of the GPU the engines run on; what no backend takes for one is refused by the backend."""
        given = self.options.get("device", "0")
        return int(given) if given.isdigit() else 0

    def setup(self) -> Setup:
        """How the contenders are opened."""
        threads = self.threads or machine.available_cores()
        return Setup(self.backend, threads, self.batch, self.options, self.timing)


def _figures(contender: Contender, timing: Timing, batch: int) -> dict[str, Any]:
    found = {"name": contender.name, "role": contender.role, **summary(timing.raw_ms, batch)}
    if timing.phases:
        found["phases"] = timing.phases
    return found


def _told(about: Mapping[str, Any]) -> dict[str, str]:
    """What an engine says of itself about transfers, spin_wait and cuda_graph."""
    said = {**about, **about.get("timing", {})}
    return {name: _word(said[name]) for name in HOST if name in said}


def _word(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _streams(bundle: Bundle, plan: Plan, contenders: list[Contender]) -> dict[str, float]:
    """Images a second of each contender's kind with ``streams`` engines at once, engine and baseline only; A B B A."""
    setup, found = plan.setup(), dict[str, list[float]]()
    with contextlib.ExitStack() as stack:
        groups: list[tuple[Contender, list[Engine]]] = []
        for contender in contenders[:2]:
            more = [setup.open(bundle, twin=contender.role != ENGINE) for _ in range(plan.streams - 1)]
            for engine in more:
                stack.callback(engine.close)
            groups.append((contender, [contender.engine, *more]))
        for contender, engines in [*groups, *groups[::-1]]:
            calls, spent = together(engines, contender.images, plan.seconds / 4)
            found.setdefault(contender.role, []).append(plan.batch * calls / spent)
    return {role: sum(values) / len(values) for role, values in found.items()}


def measure(bundle: Bundle, plan: Plan | None = None, other: Bundle | None = None, **changes: Any) -> dict[str, Any]:
    """Time the bundle's engine beside its float twin, a BF16 twin and ``other``'s engine; returns the JSON record.

    ``changes`` are fields of ``plan`` (default: :class:`Plan`'s own) with other values.

    Keys: backend, batch, threads, streams; the engine's figures (see :func:`runtime.bench.statistics.summary`);
    baseline (the same figures of the float twin); others (a list of the same); speedup (baseline median / engine
    median); throughput (images a second by role, with ``streams`` engines at once, where streams > 1); settings (what
    was timed and how: transfers, spin_wait, cuda_graph always there); disturbance and disturbed (the reasons);
    warnings; absent (what was not measured, and why); telemetry; sustained; verdict; and what was measured where and
    when. Times are milliseconds a call of ``batch`` images.

    Raises:
        IntvitError: unknown backend or option, or a graph that does not load or run.
    """
    plan = replace(plan or Plan(), **changes)
    setup = plan.setup()
    with (
        opened(bundle, setup, bf16=plan.bf16, other=other) as (contenders, absent),
        open_sources(gpu=plan.gpu()) as sensors,
    ):
        watched_threads = witnesses(contenders)
        before = disturbance.read(watched_threads)
        with Sampler(sensors.sources, plan.interval_s) as sampler:
            timings = interleave(contenders, seconds=plan.seconds, warm_up_s=plan.warm_up_s)
            quiet = disturbance.between(before, disturbance.read(watched_threads))
            throughput = _streams(bundle, plan, contenders) if plan.streams > 1 else {}
            series = sustained.run(contenders[0], plan.sustained_min) if plan.sustained_min else []
        energy = {}
        if plan.energy_s:
            gpu = plan.backend not in CPU_BACKENDS
            energy = measured_energy(contenders, sensors.sources, plan.energy_s, plan.batch, gpu=gpu)
        abouts = {contender.role: contender.engine.describe() for contender in contenders}
    engine, baseline, *others = (
        _figures(contender, timing, plan.batch) for contender, timing in zip(contenders, timings, strict=True)
    )
    baseline["precision"] = setup.precision()
    for figures in others:
        about = other.manifest if figures["role"] == OTHER and other is not None else bundle.manifest
        figures |= {"speedup": figures["median_ms"] / engine["median_ms"], "model": about.model, "scheme": about.scheme}
    watched = disturbance.record(quiet, timings[0].medians)
    made: dict[str, Any] = {
        "backend": plan.backend,
        "batch": plan.batch,
        "threads": setup.threads,
        "streams": plan.streams,
        **engine,
        "baseline": baseline,
        "others": others,
        "speedup": baseline["median_ms"] / engine["median_ms"],
        "throughput": throughput,
        "settings": {
            **(HOST if plan.backend in CPU_BACKENDS else DEVICE),
            **_told(abouts[ENGINE]),
            "options": dict(plan.options),
            "seconds": plan.seconds,
            "warm_up_s": plan.warm_up_s,
            "block": BLOCK,
            "processes": 1,
        },
        "disturbance": watched,
        "disturbed": watched["reasons"],
        "absent": absent,
        "telemetry": {**sampler.record(), "absent": sensors.absent, "energy": energy},
        "sustained": sustained.record(series, plan.sustained_min) if series else None,
        "model": bundle.manifest.model,
        "scheme": bundle.manifest.scheme,
        "bundle": bundle.sha256,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "engine": abouts[ENGINE],
        "baseline_engine": abouts["baseline"],
    }
    if BF16 in abouts:
        made["bf16_engine"] = abouts[BF16]
    if bundle.manifest.weights == "random":
        made["weights"] = "RANDOM WEIGHTS"
    made["warnings"] = [
        line for figures in (made, baseline, *others) for line in timing_warnings(figures["name"], figures)
    ]
    made["warnings"] += hints(made)
    made["warnings"] += [f"clocks were held down: {reason}" for reason in made["telemetry"]["throttled"]]
    if series:
        fallen = made["telemetry"]["dropped"].items()
        made["warnings"] += [f"clock {name} fell from {top:.0f} to {last:.0f} MHz" for name, (top, last) in fallen]
    made["verdict"] = spoken(made)
    return made

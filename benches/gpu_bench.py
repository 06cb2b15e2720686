"""Measure benches/results/gpu_bench.json: the bench's loop, telemetry and energy on an NVIDIA GPU, ``--device cuda``.

TensorRT cannot be had where this is meant to run, so a stand-in takes its place: a network of timm's with random
weights in torch, once in float16 and once in float32, each a CUDA graph that tells the parts of a call as an engine on
a device does. So nothing here is the speed of an integer engine. What is measured is the bench:

ratio       float32 over float16 by the host's clock, of REPEATS runs of :func:`runtime.bench.loop.interleave`: do they
            agree?
parts       do copies and compute between CUDA's events add up to what the host's clock says?
compute     the same graph replayed by itself between two events: does the loop change what it measures?
telemetry   what NVML says beside the runs, and the energy of an image
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from benches.cpu_latency import raw
from benches.gpu_kernels import describe_gpu
from benches.gpu_timing import captured, need_gpu
from benches.record import RESULTS, write_result
from benches.verbs import chosen
from calib.models import load
from runtime import machine
from runtime.backends.base import Images, Logits
from runtime.bench.contenders import Contender
from runtime.bench.loop import PHASES, Timing, interleave
from runtime.bench.statistics import relative_spread, summary
from runtime.bench.verdict import timing_warnings
from runtime.cli import run
from runtime.telemetry.energy import mean_power, measured_energy
from runtime.telemetry.sampler import Sampler, Sensors, open_sources

NAME = "gpu_bench"
MODELS = ("deit_s", "deit_b")
BATCHES = (1, 8, 64)
REPEATS = 3
SEED = 0
DTYPES = {"FP16": torch.float16, "FP32": torch.float32}


class HostMark:
    """A moment by the host's clock, with the methods of ``torch.cuda.Event``: for a stand-in on the CPU."""

    def record(self) -> None:
        self.at = time.perf_counter_ns()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: HostMark) -> float:
        """Milliseconds until ``end``."""
        return (end.at - self.at) / 1e6


class StandIn:
    """A torch network at one batch size, as :class:`runtime.backends.base.Engine`; on CUDA one graph, replayed.

    Args:
        network: float32 (N, C, H, W) to (N, classes); moved to ``device`` and ``dtype``.
        size: (C, H, W). batch: N. device: "cuda" or "cpu".
    """

    name = "torch"

    def __init__(
        self, network: nn.Module, size: tuple[int, int, int], classes: int, *, batch: int, dtype: Any, device: str
    ) -> None:
        self.input_shape, self.num_classes = size, classes
        self._network, self._dtype, self._device = network.to(device, dtype).eval(), dtype, device
        pinned = device == "cuda"
        self._sent = torch.empty((batch, *size), pin_memory=pinned)
        self._images = torch.zeros((batch, *size), device=device)
        self._logits = torch.zeros((batch, classes), device=device)
        self._got = torch.empty((batch, classes), pin_memory=pinned)
        mark: Any = (lambda: torch.cuda.Event(enable_timing=True)) if pinned else HostMark
        self._marks = [mark() for _ in range(4)]
        self._replay: Callable[[], Any] = captured([self._compute]).replay if pinned else self._compute

    @torch.inference_mode()
    def _compute(self) -> None:
        self._logits.copy_(self._network(self._images.to(self._dtype)))

    def run_phased(self, images: Images) -> tuple[Logits, Mapping[str, float]]:
        """Logits, and the milliseconds of each part of the call: see :mod:`runtime.bench.loop`."""
        begin, sent, computed, got = self._marks
        self._sent.copy_(torch.from_numpy(images))
        begin.record()
        self._images.copy_(self._sent, non_blocking=True)
        sent.record()
        start = time.perf_counter_ns()
        self._replay()
        enqueued = (time.perf_counter_ns() - start) / 1e6
        computed.record()
        self._got.copy_(self._logits, non_blocking=True)
        got.record()
        got.synchronize()
        took = (begin.elapsed_time(sent), sent.elapsed_time(computed), computed.elapsed_time(got), enqueued)
        return self._got.numpy().copy(), dict(zip(PHASES, took, strict=True))

    def run(self, images: Images) -> Logits:
        """See :meth:`runtime.backends.base.Engine.run`."""
        return self.run_phased(images)[0]

    def bare_ms(self, calls: int) -> list[float]:
        """Milliseconds of ``calls`` replays, each between two marks with nothing else; copies and host left out."""
        begin, _, _, end = self._marks
        times = []
        for _ in range(calls):
            begin.record()
            self._replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return times

    def describe(self) -> dict[str, Any]:
        """See :meth:`runtime.backends.base.Engine.describe`."""
        graph = self._device == "cuda"
        return {"backend": self.name, "version": torch.__version__, "float": str(self._dtype), "cuda_graph": graph}

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Engine.close`."""
        self._replay = self._closed

    def _closed(self) -> None:
        raise RuntimeError("closed")


def contenders(model: str, batch: int, device: str) -> list[Contender]:
    """The network in float16 as what is timed, in float32 as its baseline, on the same random images."""
    spec = load(model, "random", seed=SEED).spec
    images = np.random.default_rng(SEED).standard_normal((batch, *spec.input_size)).astype(np.float32)
    made: list[Contender] = []
    for name, dtype in DTYPES.items():
        network = load(model, "random", seed=SEED).module
        engine = StandIn(network, spec.input_size, spec.num_classes, batch=batch, dtype=dtype, device=device)
        made.append(Contender("baseline" if made else "engine", f"{name} (torch)", engine, images))
    return made


def figures(contender: Contender, timings: Sequence[Timing], batch: int, bare: Sequence[float]) -> dict[str, Any]:
    """What the runs say of one contender, all their calls together, in milliseconds; ``bare``: see ``bare_ms``."""
    every = [value for timing in timings for value in timing.raw_ms]
    phases = {name: [value for timing in timings for value in timing.phases[name]] for name in PHASES}
    found = summary(every, batch)
    found["warnings"] = timing_warnings(contender.name, {**found, "phases": phases})
    parts = {name: median(values) for name, values in phases.items()}
    inside = [sum(call) for call in zip(*(phases[name] for name in PHASES[:3]), strict=True)]
    alone = median(bare)
    return {
        **found,
        "raw_ms": raw(every),
        "phases": parts,
        "outside_ms": median(call - part for call, part in zip(every, inside, strict=True)),
        "bare_ms": alone,
        "compute_over_bare": parts["compute_ms"] / alone,
    }


def seen(sampler: Sampler) -> dict[str, Any]:
    """Telemetry beside the runs: mean watts of every rail, lowest and highest clocks, highest temperatures."""
    clocks, heat = dict[str, list[float]](), dict[str, list[float]]()
    for _, reading in sampler.samples:
        for kept, values in ((clocks, reading.clocks_mhz), (heat, reading.temperature_c)):
            for name, value in values.items():
                kept.setdefault(name, []).append(value)
    record = sampler.record()
    return {
        "sources": record["sources"],
        "samples": record["samples"],
        "power_w": mean_power(sampler.samples),
        "clocks_mhz": {name: [min(values), max(values)] for name, values in clocks.items()},
        "temperature_c": {name: max(values) for name, values in heat.items()},
        "throttled": record["throttled"],
        "dropped": record["dropped"],
    }


def measure(
    model: str, batch: int, sensors: Sensors, *, seconds: float, repeats: int = REPEATS, device: str = "cuda"
) -> dict[str, Any]:
    """One row: ``repeats`` runs of ``seconds`` each, the graphs by themselves, telemetry beside the runs, energy."""
    made = contenders(model, batch, device)
    with Sampler(sensors.sources) as sampler:
        runs = [interleave(made, seconds=seconds) for _ in range(repeats)]
    engines = [contender.engine for contender in made]
    bare = [engine.bare_ms(100 if device == "cuda" else 5) for engine in engines if isinstance(engine, StandIn)]
    energy = measured_energy(made, sensors.sources, seconds, batch, gpu=True)
    for engine in engines:
        engine.close()
    ratios = [median(baseline.raw_ms) / median(mine.raw_ms) for mine, baseline in runs]
    return {
        "model": model,
        "batch": batch,
        "ratios": ratios,
        "spread_percent": 100 * relative_spread(ratios),
        "contenders": {
            contender.name: figures(contender, timings, batch, alone)
            for contender, timings, alone in zip(made, zip(*runs, strict=True), bare, strict=True)
        },
        "telemetry": seen(sampler) if sampler.samples else {},
        "energy": energy,
    }


def main(
    device: Annotated[str, typer.Option("--device", help="Only cuda.")] = "cuda",
    models: Annotated[str, typer.Option("--models", help="Comma-separated.")] = ",".join(MODELS),
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Of each run, and of each energy.")] = 2.0,
    results: Annotated[Path, typer.Option("--results", help="Where the record goes.")] = RESULTS,
) -> None:
    """Run the bench over torch on this GPU, with NVML beside it."""
    need_gpu(device)
    rows: list[dict[str, Any]] = []
    with open_sources() as sensors:
        for line in sensors.absent:
            print(line, flush=True)
        for model in chosen(models, MODELS, "--models"):
            for batch in BATCHES:
                rows.append(measure(model, batch, sensors, seconds=seconds, device=device))
                about = {"gpu": describe_gpu(), "absent": sensors.absent, "seconds": seconds}
                about["packages"] = {name: machine.version_of(name) for name in ("nvidia-ml-py",)}
                write_result(NAME, {**about, "rows": rows}, seeds=[SEED], results=results)
                ratios = ", ".join(f"{ratio:.3f}" for ratio in rows[-1]["ratios"])
                print(
                    f"{model}, batch {batch}: FP32 over FP16 {ratios}; {rows[-1]['telemetry'].get('power_w')} W",
                    flush=True,
                )


if __name__ == "__main__":
    run(main)

"""Measure benches/results/synthesis_speed.json: what one iteration of a method costs beside a plain pass.

"plain" is the network as timm makes it: forward, cross entropy, backward to the input, on the same batch, in the same
precision (bfloat16 autocast where the processor has it); "plain, our copy" is that pass in the engine's copy of the
network, which on a CPU computes attention unfused. Ours is the whole iteration: views, network, priors with their
gradients, Adam and clamping. All take turns; times are medians, raw times are kept.

On a GPU (``--device cuda``, into synthesis_speed_cuda.json) the same for deit_s shapes at batch 32 with random weights,
and the head prior also in its naive pairwise form; ``images_per_minute`` counts the method's own number of iterations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Annotated, Any
from unittest import mock

import torch
import torch.nn.functional as F
import typer
from torch import nn

from benches.head_similarity import naive_loss
from benches.real_accuracy import CHECKPOINT
from benches.record import RESULTS, kept_rows, put_row, write_result
from benches.synthesis_ablation import ABLATION
from calib.given import device_of
from calib.models import LoadedModel, load
from calib.precision import has_fast_bf16
from calib.synthesis import losses
from calib.synthesis.engine import descend
from calib.synthesis.losses import gradient, wanted
from calib.synthesis.methods import DFQ_VIT, MIMIQ, PSAQ, SynthesisConfig
from calib.synthesis.plan import Group
from calib.synthesis.priors.attention_prior import layouts
from calib.synthesis.state import start
from calib.synthesis.twin import forward, twins
from calib.taps import AttentionTaps
from runtime.cli import run

NAME = "synthesis_speed"
KEY = ("device", "model", "method", "batch", "threads")
METHODS: dict[str, SynthesisConfig] = {
    "psaq": PSAQ,
    "mimiq": MIMIQ,
    "dfq-vit": DFQ_VIT,
    "attention prior": ABLATION["spdfq: APA"],
}


def iteration(loaded: LoadedModel, config: SynthesisConfig, batch: int, device: str) -> Callable[[], None]:
    """One whole iteration of a method on one group, to be called again and again."""
    (model,) = twins(loaded.module, 1, device)
    group = Group(tuple(range(batch)), replace(config, images=batch))
    state = start(loaded.spec, layouts(model), group, 0).to(device)
    taps = AttentionTaps(model, wanted(config))

    def once() -> None:
        with taps:
            _, slope = gradient(model, group.config, state, taps)
        descend(group.config, False, state, slope)
        state.images = state.images.clamp(-1, 1)

    return once


def plain(network: nn.Module, loaded: LoadedModel, batch: int, device: str) -> Callable[[], None]:
    """Forward and backward to the input of ``network``, and nothing else."""
    model = network.to(device).eval().requires_grad_(False)
    images = torch.randn((batch, *loaded.spec.input_size), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(batch, device=device)

    def once() -> None:
        x = images.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(forward(model, x), labels), x)

    return once


def timed(calls: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call, taking turns, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, once in calls.items():
            begun = time.perf_counter()
            once()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - begun)
    return times


def naive(once: Callable[[], None]) -> Callable[[], None]:
    """The same iteration with the head prior as pairwise products."""

    def slow() -> None:
        with mock.patch.object(losses, "head_similarity_loss", lambda q, k, prefix, rows: naive_loss(q, k, prefix)):
            once()

    return slow


def rows_of(
    loaded: LoadedModel, model: str, batch: int, device: str, repeats: int, with_naive: bool
) -> list[dict[str, Any]]:
    """A row a method."""
    calls = {"plain": plain(loaded.module, loaded, batch, device)}
    calls["plain, our copy"] = plain(twins(loaded.module, 1, device)[0], loaded, batch, device)
    calls |= {name: iteration(loaded, config, batch, device) for name, config in METHODS.items()}
    if with_naive:
        calls["mimiq, naive pairs"] = naive(iteration(loaded, MIMIQ, batch, device))
    times = timed(calls, repeats, device)
    base = median(times["plain"])
    made = []
    for name, seconds in times.items():
        config = METHODS.get(name, MIMIQ)
        made.append(
            {
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "model": model,
                "method": name,
                "batch": batch,
                "threads": torch.get_num_threads(),
                "bf16": has_fast_bf16(device),
                "ms": 1e3 * median(seconds),
                "ratio": median(seconds) / base,
                "images_per_minute": None
                if name.startswith("plain")
                else 60 * batch / (median(seconds) * config.iterations),
                "raw_ms": [round(1e3 * value, 3) for value in seconds],
            }
        )
        print(f"{name}: {made[-1]['ms']:.1f} ms, {made[-1]['ratio']:.2f} x plain", flush=True)
    return made


def main(
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", min=3)] = 15,
    force: Annotated[bool, typer.Option("--force", help="Drop rows of another machine.")] = False,
) -> None:
    """Measure one iteration of every single-prior method."""
    device = device_of(device)
    name = NAME if device == "cpu" else f"{NAME}_{device}"
    rows, _ = kept_rows(name, KEY, force)
    if device == "cuda":
        made = rows_of(load("deit_s", "random"), "deit_s (random weights)", 32, device, repeats, True)
    else:
        torch.set_num_threads(1)
        made = rows_of(load("vit_t", str(CHECKPOINT)), "vit_t", 16, device, repeats, False)
    for row in made:
        rows = put_row(rows, row, KEY)
    write_result(name, {"rows": rows}, seeds=[0])
    print(f"{RESULTS / name}.json")


if __name__ == "__main__":
    run(main)

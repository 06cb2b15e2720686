"""Measure benches/results/head_similarity.json: the inter-head similarity loss beside its written-out form.

Forward and backward of both on the same random queries and keys, interleaved; the peak memory of each in a process of
its own. ``--device cuda`` makes head_similarity_cuda.json on a machine that has one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benches.record import RESULTS, ROOT, write_result
from calib.given import device_of
from calib.synthesis.priors.head_similarity import C1, C2, head_similarity_loss
from runtime.cli import run
from runtime.errors import IntvitError

NAME = "head_similarity"
PREFIX = 1
SEED = 0
Loss = Callable[[Sequence[Tensor], Sequence[Tensor], int], Tensor]


@dataclass(frozen=True)
class Case:
    """One network's attention: what is measured, on how many threads."""

    network: str
    layers: int
    heads: int
    width: int
    tokens: int
    batch: int
    dtype: str
    threads: int

    def inputs(self, device: str) -> tuple[list[Tensor], list[Tensor]]:
        """Queries and keys of every layer, (B, H, T, d) standard normal, waiting for a gradient."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (2, self.layers, self.batch, self.heads, self.tokens, self.width)
        drawn = torch.randn(shape, generator=generator).to(device, getattr(torch, self.dtype))
        queries, keys = ([layer.clone().requires_grad_() for layer in part] for part in drawn)
        return queries, keys


CASES = {
    "vit_b": Case("vit_b", 12, 12, 64, 197, 4, "float32", 2),
    "vit_ti": Case("vit_ti", 12, 3, 64, 197, 8, "bfloat16", 1),
}


def naive_loss(queries: Sequence[Tensor], keys: Sequence[Tensor], prefix_tokens: int) -> Tensor:
    """The written-out form: all pairs of stretched maps multiplied, (B, N, H, H, N), and left to autograd."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        s = (q.float()[:, :, prefix_tokens:] @ k.float()[:, :, prefix_tokens:].transpose(2, 3)).transpose(1, 2)
        low, high = s.amin(3, keepdim=True), s.amax(3, keepdim=True)
        a = (s - low) / (high - low + 1e-8)
        first, second = a.unsqueeze(3), a.unsqueeze(2)
        mean, other = first.mean(4), second.mean(4)
        covariance = (first * second).mean(4) - mean * other
        variance = covariance.diagonal(dim1=2, dim2=3)
        below = (mean**2 + other**2 + C1) * (variance.unsqueeze(3) + variance.unsqueeze(2) + C2)
        ssim = (2 * mean * other + C1) * (2 * covariance + C2) / below
        losses.append((1 - ssim**2).mean())
    return torch.stack(losses).mean()


FORMS: dict[str, Loss] = {"naive": naive_loss, "ours": head_similarity_loss}


def step(form: str, inputs: tuple[list[Tensor], list[Tensor]]) -> tuple[float, list[Tensor]]:
    """One forward and backward: the loss and the gradient of every query and key."""
    loss = FORMS[form](*inputs, PREFIX)
    gradient = torch.autograd.grad(loss, [*inputs[0], *inputs[1]])
    return loss.item(), list(gradient)


def process_memory(field: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS, what is held now, or VmHWM, the most ever held."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise IntvitError("no memory figure", where="/proc/self/status", why=f"no {field}", next="measure on Linux")


def peak_memory(case: Case, form: str, device: str) -> float:
    """MiB that one forward and backward needs at most above its inputs; for a process of its own."""
    torch.set_num_threads(case.threads)
    small = Case(**{**asdict(case), "layers": 1, "heads": 2, "tokens": 9, "batch": 1})
    step(form, small.inputs(device))
    inputs = case.inputs(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(form, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = process_memory("VmRSS")
    step(form, inputs)
    return (process_memory("VmHWM") - before) / 2**20


def probe(case: Case, form: str, device: str) -> float:
    """:func:`peak_memory` in a fresh process."""
    command = [sys.executable, "-m", "benches.head_similarity", "--device", device, "--probe", f"{case.network} {form}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise IntvitError("no memory figure", where=" ".join(command), why=done.stderr[-500:], next="run it alone")
    return float(json.loads(done.stdout))


def timed(case: Case, device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each form, call by call, one form after the other; a first call of each is not kept."""
    torch.set_num_threads(case.threads)
    inputs = case.inputs(device)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats + 1):
        for form, kept in times.items():
            start = time.perf_counter()
            step(form, inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            kept.append((time.perf_counter() - start) * 1e3)
    return {form: kept[1:] for form, kept in times.items()}


def relative(value: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of the reference, over all tensors together."""
    difference = sum((a.double() - b.double()).square().sum().item() for a, b in zip(value, reference, strict=True))
    return float((difference / sum(b.double().square().sum().item() for b in reference)) ** 0.5)


def measure(case: Case, device: str, repeats: int) -> dict[str, Any]:
    """One row: times, peak memory and the difference between the forms."""
    times = timed(case, device, repeats)
    memory = {form: probe(case, form, device) for form in FORMS}
    found = {form: step(form, case.inputs(device)) for form in FORMS}
    middle = {form: median(values) for form, values in times.items()}
    row: dict[str, Any] = {**asdict(case), "device": device, "repeats": repeats}
    for form in FORMS:
        row[f"{form}_ms"] = round(middle[form], 2)
        row[f"{form}_peak_mib"] = round(memory[form], 1)
        row[f"{form}_raw_ms"] = " ".join(f"{value:.4g}" for value in times[form])
    return {
        **row,
        "speedup": round(middle["naive"] / middle["ours"], 2),
        "memory_ratio": round(memory["naive"] / memory["ours"], 2),
        "loss_difference": abs(found["ours"][0] / found["naive"][0] - 1),
        "gradient_difference": relative(found["ours"][1], found["naive"][1]),
    }


def main(
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls of each form.")] = 15,
    asked: Annotated[str, typer.Option("--probe", hidden=True)] = "",
) -> None:
    """Time the inter-head similarity loss and its written-out form, and weigh their memory."""
    device = device_of(device)
    if asked:
        network, form = asked.split()
        print(json.dumps(peak_memory(CASES[network], form, device)))
        return
    name = NAME if device == "cpu" else f"{NAME}_{device}"
    rows = [measure(case, device, repeats) for case in CASES.values()]
    write_result(name, {"rows": rows}, seeds=[SEED])
    print(f"{RESULTS / name}.json: " + ", ".join(f"{row['network']} {row['ours_ms']} ms" for row in rows))


if __name__ == "__main__":
    run(main)

"""Measure benches/results/cpu_engines.json: our engines and every peer of benches.peers, interleaved in one run.

Each engine lives in a process of its own and they take turns, so that whatever slows the machine down slows all. The
networks carry timm's random weights, and biases and LayerNorms drawn at random too: timm starts them at 0 and 1, and
OpenVINO removes such operations, which no trained network lets it do (docs/decisions/0022-openvino-epilogue.md). An
engine whose library is missing, or which fails, is listed with the reason.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from benches.cpu_latency import raw
from benches.engine_process import EngineProcess, interleave
from benches.peers import ENGINES, LANES, OURS
from benches.record import kept_rows, put_row, write_result
from benches.verbs import WORK, call, chosen, must, numbers
from calib.models import load
from runtime import machine
from runtime.bundle import Bundle
from runtime.cli import MOST_THREADS, run
from runtime.errors import IntvitError

NAME = "cpu_engines"
MODELS = ("deit_t", "deit_s", "deit_b", "swin_t")
KEY = ("model", "scheme", "batch", "threads")
PACKAGES = ("openvino", "nncf", "torchao")
SEED = 0


def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """The weights of ``module``, every bias and LayerNorm drawn: N(0, 0.02^2), and N(1, 0.1^2) for gamma."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(module.state_dict())
    for name, value in module.named_parameters():
        if value.ndim == 1:
            noise = torch.randn(value.shape, generator=generator)
            weights[name] = 0.02 * noise if name.endswith("bias") else 1 + 0.1 * noise
    return weights


def build(model: str, scheme: str) -> Path:
    """The bundle to time, for both backends; done stages are taken from the cache."""
    out, weights = WORK / NAME / f"{model}-{scheme}", WORK / NAME / f"{model}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(drawn(load(model, "random", seed=SEED).module, SEED), weights)
    arguments = ["--model", model, "--bits", scheme, "--method", "noise", "--images", "4", "--budget", "fast"]
    arguments += ["--checkpoint", str(weights), "--seed", str(SEED), "--target", "ort,openvino", "--out", str(out)]
    must(call("toolchain.build", arguments, {}), "toolchain.build", arguments)
    return out


def int8_peak(threads: int, seconds: float = 2.0) -> float:
    """The most int8 multiply-accumulates a second, in 1e9, in a square product by PyTorch and by ONNX Runtime."""
    import numpy as np
    from onnx import TensorProto, helper

    from runtime.backends.ort import make_session

    side = 2048
    torch.set_num_threads(threads)
    left, right = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
    weights = helper.make_tensor("w", TensorProto.INT8, [side, side], right.numpy().tobytes(), raw=True)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(name, kind, [side, side]) for name, kind in (("x", 2), ("y", 6))]
    graph = helper.make_graph([node], "peak", ports[:1], ports[1:], [weights])
    session = make_session(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString(),
        threads=threads,
    )
    unsigned = {"x": left.numpy().view(np.uint8)}
    best = float("inf")
    for product in (lambda: torch._int_mm(left, right), lambda: session.run(None, unsigned)):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
    return side**3 / best / 1e9


def measure(
    bundle: Path, model: str, scheme: str, batch: int, threads: int, rounds: int, calls: int, names: list[str]
) -> dict[str, Any]:
    """One row: the median milliseconds of every engine, and every time."""
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        workers = []
        for name in names:
            if name in LANES and (threads == 1 or batch % threads):
                continue
            try:
                workers.append(stack.enter_context(EngineProcess(name, model, bundle, batch, threads)))
            except IntvitError as error:
                failed[name] = error.why
            print(f"{model}, batch {batch}: {name} {failed.get(name) or 'ready'}", flush=True)
        interleave(workers, 1, 2)
        times = interleave(workers, rounds, calls)
    macs = sum(layer.macs for layer in Bundle.open(bundle).manifest.layers)
    medians = {name: round(median(values), 3) for name, values in times.items()}
    mine = min((value for name, value in medians.items() if name in OURS), default=None)
    peers = min((value for name, value in medians.items() if name not in OURS), default=None)
    called = min((value for name, value in medians.items() if name not in OURS + LANES), default=None)
    return {
        "model": model,
        "scheme": scheme,
        "batch": batch,
        "threads": threads,
        "gmacs": round(batch * macs / 1e9, 3),
        "median_ms": medians,
        "raw_ms": {name: raw(values) for name, values in times.items()},
        "failed": failed,
        "best_ratio": round(mine / peers, 3) if mine and peers else None,
        "best_ratio_as_documented": round(mine / called, 3) if mine and called else None,
    }


def main(
    models: Annotated[str, typer.Option("--models", help="Comma-separated.")] = ",".join(MODELS),
    scheme: Annotated[str, typer.Option("--scheme", help="Of our engines.")] = "w8a8",
    batches: Annotated[str, typer.Option("--batches", help="Comma-separated.")] = "1,8",
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=MOST_THREADS, help="Of every engine; 0: the cores there are.")
    ] = 0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of every engine.")] = 20,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Timed calls a turn.")] = 4,
    engines: Annotated[str, typer.Option("--engines", help="Comma-separated; default: all.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is already there.")] = False,
) -> None:
    """Time every engine on every model and batch size."""
    sizes = numbers(batches, "--batches")
    used, names = threads or machine.available_cores(), chosen(engines, list(ENGINES), "--engines")
    rows, have = kept_rows(NAME, KEY, force)
    for model in chosen(models, MODELS, "--models"):
        missing = [batch for batch in sizes if (model, scheme, batch, used) not in have]
        bundle = build(model, scheme) if missing else Path()
        for batch in missing:
            row = measure(bundle, model, scheme, batch, used, rounds, calls, names)
            rows = put_row(rows, row, KEY)
            versions = {name: machine.version_of(name) for name in PACKAGES}
            peak = round(int8_peak(used), 1)
            write_result(NAME, {"peers": versions, "int8_peak_gmacs": peak, "rows": rows}, seeds=[SEED])
            print(f"{model}, batch {batch}: {row['median_ms']}", flush=True)


if __name__ == "__main__":
    run(main)

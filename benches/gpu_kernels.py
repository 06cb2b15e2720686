"""Measure benches/results/gpu_kernels.json: the CUDA kernels on an NVIDIA GPU, ``--device cuda``.

First they must be right: every layer of deit_t/s/b and swin_t, every tile, sums and outputs against numpy, bit by bit;
one difference and nothing is timed. Then, at deit_s and deit_b shapes, W4A8 and W8A8 with float16 output in every tile,
the Triton twin, and cuBLAS in float16 with bias (torch's linear): microseconds a call from CUDA graphs replayed in
turns, going round as many sets of operands as are twice the chip's cache; fc1 also with GELU and int8, and with factor
and shift before that, as calibrated networks have it. Last a whole block, ours against torch in
float16 with its fused attention. Rates are set against the chip's ceilings, measured here and from the datasheet.
"""

from __future__ import annotations

import subprocess
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer

from benches.gpu_block import Block, IntegerBlock, signal_to_noise
from benches.gpu_timing import current_stream, microseconds, need_gpu
from benches.kernel_shapes import TOKENS, VITS, Shape, every, vit
from benches.record import RESULTS, ROOT, write_result
from benches.roofline import DATASHEETS, Ceilings, floor_seconds, operations, sets_beyond, traffic
from runtime.cli import run
from runtime.errors import IntvitError
from runtime.kernels import reference
from runtime.kernels.build import build, source_hash
from runtime.kernels.launch import Kernels
from runtime.kernels.packing import LEVELS, pack_int4, pack_int8, pack_quantizer
from runtime.kernels.tiles import OUTPUTS, TILES, WIDTHS, Bits, Output, Tile

NAME = "gpu_kernels"
MODELS = ("deit_s", "deit_b")
BATCHES = (1, 8, 32, 64)
DEVICE = "cuda"  # tests go through everything but the launches on "cpu"
QUANTIZER = pack_quantizer(0.07, 0.21, (-120, 127))  # kernels without a factor leave out the shift
_FUSED: dict[str, Output] = {"gelu+int8": "i8_gelu", "gelu+affine+int8": "i8_gelu_affine"}
_TORCH = {"i32": torch.int32, "f16": torch.float16, "i8": torch.int8}


def describe_gpu() -> dict[str, Any]:
    """Name, compute capability, multiprocessors, cache, driver and the clocks as they are now."""
    properties = torch.cuda.get_device_properties(0)
    fields = "driver_version,clocks.sm,clocks.mem,power.limit,clocks_throttle_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        said = ""
    return {
        "name": properties.name,
        "sm": f"{properties.major}{properties.minor}",
        "processors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "nvidia_smi": dict(zip(fields.split(","), map(str.strip, said.split(",")), strict=False)),
    }


def operands(shape: Shape, rows: int, bits: Bits, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Random a, levels, scale, bias, factor; outputs spread by about 4: some int8 ones of step 0.07 saturate."""
    generator = np.random.default_rng([seed, rows, shape.k, shape.n, bits])
    low, top = LEVELS[bits]
    a = generator.integers(-128, 128, (rows, shape.k)).astype(np.int8)
    levels = generator.integers(low, top + 1, (shape.n, shape.k)).astype(np.int8)
    scale = (4 / (74 * top * 0.58 * np.sqrt(shape.k)) * generator.uniform(0.3, 2, shape.n)).astype(np.float32)
    bias = generator.standard_normal(shape.n).astype(np.float32)
    return a, levels, scale, bias, generator.uniform(0.3, 2, shape.n).astype(np.float32)


def packed(levels: np.ndarray, bits: Bits) -> np.ndarray:
    """The weights as the kernels read them."""
    return pack_int4(levels) if bits == 4 else pack_int8(levels)


def wanted(output: Output, sums: np.ndarray, scale: np.ndarray, bias: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What numpy says of one output, from the sums."""
    if output == "i32":
        return sums
    y = reference.dequantize(sums, scale, bias, with_gelu="gelu" in output)
    if output.startswith("f16"):
        return y.astype(np.float16)
    return reference.requantize(y, QUANTIZER, factor if output.endswith("affine") else None)


def correctness(kernels: Kernels) -> int:
    """Hold every kernel against numpy on every layer, outputs poisoned before. Returns how many launches were compared.

    Raises:
        IntvitError: an element differs.
    """
    quantizer = torch.from_numpy(QUANTIZER).to(DEVICE)
    compared = 0
    for shape in every():
        for bits in WIDTHS:
            arrays = operands(shape, shape.tokens, bits)
            sums = reference.accumulate(arrays[0], arrays[1])
            a, scale, bias, by = (torch.from_numpy(array).to(DEVICE) for array in (arrays[0], *arrays[2:]))
            weights = torch.from_numpy(packed(arrays[1], bits)).to(DEVICE)
            for output in OUTPUTS:
                right = torch.from_numpy(wanted(output, sums, *arrays[2:])).to(DEVICE)
                for tile in TILES:
                    y = torch.full_like(right, 77)
                    gelu, factor = "gelu" in output, by if output.endswith("affine") else None
                    kernels.linear(a, weights, y, scale, bias, gelu=gelu, factor=factor, quantizer=quantizer, tile=tile)
                    different = int((y.view(torch.uint8) != right.view(torch.uint8)).sum())
                    compared += 1
                    if different:
                        raise IntvitError(
                            "a kernel is wrong on this GPU",
                            where=f"W{bits}A8 {output} {tile.name}, {shape.model} {shape.layer}",
                            why=f"{different} bytes of {right.numel() * right.element_size()} differ from numpy's",
                        )
    return compared


def measured_ceilings(repeats: int) -> Ceilings:
    """What this chip reaches: products of 8192 x 8192 through torch; a copy of 1 GiB, bytes read and written."""
    size = 8192
    x8, w8 = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=DEVICE) for _ in range(2))
    x16, w16 = (torch.randn((size, size), dtype=torch.float16, device=DEVICE) for _ in range(2))
    big = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    other = torch.empty_like(big)
    calls = {
        "int8": [partial(torch._int_mm, x8, w8.t())],
        "f16": [partial(torch.matmul, x16, w16.t())],
        "copy": [partial(other.copy_, big)],
    }
    took = {name: 1e-6 * median(times) for name, times in microseconds(calls, repeats).items()}
    work = 2.0 * size**3
    return Ceilings(
        work / took["int8"], work / took["f16"], 2 * big.numel() / took["copy"], "measured here through torch"
    )


def layer_calls(
    kernels: Kernels, shape: Shape, rows: int, bits: Bits, sets: int, tiles: dict[str, Tile], output: Output
) -> dict[str, list[Any]]:
    """For each tile, and for the twin, a launch on each set of operands."""
    from toolchain import triton_twin

    base = operands(shape, 1, bits)
    scale, bias, factor, quantizer = (torch.from_numpy(array).to(DEVICE) for array in (*base[2:], QUANTIZER))
    calls: dict[str, list[Any]] = {name: [] for name in [*tiles, "triton"]}
    plain = output.split("_")[0]
    after: dict[str, Any] = {
        "gelu": "gelu" in output,
        "factor": factor if output.endswith("affine") else None,
        "quantizer": quantizer,
    }
    for _ in range(sets):
        a = torch.randint(-128, 128, (rows, shape.k), dtype=torch.int8, device=DEVICE)
        weights = torch.from_numpy(packed(base[1], bits)).to(DEVICE)
        y = torch.empty((rows, shape.n), dtype=_TORCH[plain], device=DEVICE)
        for name, tile in tiles.items():
            calls[name].append(partial(_launch, kernels, a, weights, y, scale, bias, tile=tile, **after))
        twin = partial(triton_twin.linear, a, weights, plain, scale, bias, tile=(128, 128), **after)
        calls["triton"].append(partial(twin, num_warps=8))
    return calls


def _launch(kernels: Kernels, *arrays: Any, **options: Any) -> None:
    kernels.linear(*arrays, **options, stream=current_stream())


def _half(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float16, device=DEVICE)


def time_layer(kernels: Kernels, shape: Shape, batch: int, repeats: int, cache: int) -> dict[str, Any]:
    """Raw microseconds of every way to run one layer on ``batch`` images."""
    rows = shape.tokens * batch
    variants: dict[str, Any] = {}
    for bits in WIDTHS:
        sets = sets_beyond(traffic(shape, batch, bits), cache)
        made = layer_calls(kernels, shape, rows, bits, sets, {tile.name: tile for tile in TILES}, "f16")
        variants |= {f"w{bits}a8 {name}": calls for name, calls in made.items()}
        if shape.layer == "fc1":
            tile = kernels.choose(rows, shape.n, shape.k, bits)
            for name, output in _FUSED.items():
                made = layer_calls(kernels, shape, rows, bits, sets, {tile.name: tile}, output)
                variants[f"w{bits}a8 {name}"] = made[tile.name]
    sets = sets_beyond(traffic(shape, batch, 16), cache)
    variants["fp16 cublas"] = [
        partial(F.linear, _half(rows, shape.k), _half(shape.n, shape.k), bias) for bias in _half(sets, shape.n)
    ]
    return {"sets": sets, "raw_us": microseconds(variants, repeats)}


def layer_row(timed: dict[str, Any], shape: Shape, batch: int, kernels: Kernels, chip: Ceilings) -> dict[str, Any]:
    """The row of one layer: medians, the fastest tile and the chosen one, and how near the chip's floor they come."""
    middle = {name: median(times) for name, times in timed["raw_us"].items()}
    row: dict[str, Any] = {
        "model": shape.model,
        "layer": shape.layer,
        "batch": batch,
        **timed,
        "fp16_us": middle["fp16 cublas"],
    }
    for bits in WIDTHS:
        chosen = kernels.choose(shape.tokens * batch, shape.n, shape.k, bits).name
        best = min((tile.name for tile in TILES), key=lambda name: middle[f"w{bits}a8 {name}"])
        took = middle[f"w{bits}a8 {chosen}"]
        row[f"w{bits}a8"] = {
            "us": took,
            "chosen": chosen,
            "fastest": best,
            "fastest_us": middle[f"w{bits}a8 {best}"],
            "triton_us": middle[f"w{bits}a8 triton"],
            "speedup": middle["fp16 cublas"] / took,
            "tops": operations(shape, batch) / took / 1e6,
            "of_floor": 1e6 * floor_seconds(shape, batch, bits, chip) / took,
        }
    return row


def block_row(kernels: Kernels, model: str, batch: int, repeats: int) -> dict[str, Any]:
    """A whole block: torch in float16, ours with 8- and 4-bit weights; and how near our outputs are to torch's."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = Block(VITS[model]).to(DEVICE).half().eval().requires_grad_(False)
    x = torch.randn((batch, TOKENS, VITS[model]), generator=generator).to(DEVICE).half()
    ours = {f"w{bits}a8": IntegerBlock(kernels, block, x, bits) for bits in WIDTHS}
    right = block(x)
    near = {name: signal_to_noise(right, made(x)) for name, made in ours.items()}
    variants: dict[str, Any] = {name: [partial(made, x)] for name, made in ours.items()}
    raw = microseconds({"fp16 torch": [partial(block, x)], **variants}, repeats)
    middle = {name: median(times) for name, times in raw.items()}
    ratios = {name: middle["fp16 torch"] / middle[name] for name in ours}
    return {"model": model, "batch": batch, "us": middle, "speedup": ratios, "sqnr_db": near, "raw_us": raw}


def main(
    device: Annotated[str, typer.Option("--device", help="Only cuda.")] = "cuda",
    repeats: Annotated[int, typer.Option("--repeats", min=3)] = 25,
    folder: Annotated[Path, typer.Option("--kernels", help="Where the kernels are built.")] = ROOT
    / "build"
    / "kernels",
    results: Annotated[Path, typer.Option("--results", help="Where the record goes.")] = RESULTS,
) -> None:
    """Check the kernels on this GPU, then time them."""
    need_gpu(device)
    gpu = describe_gpu()
    build(folder, (gpu["sm"],))
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True  # cuBLAS at its fastest
    begun = time.perf_counter()
    with torch.inference_mode(), Kernels(folder) as kernels:
        compared = correctness(kernels)
        print(f"{compared} launches give numpy's bits, {time.perf_counter() - begun:.0f} s", flush=True)
        chip = measured_ceilings(repeats)
        print(
            f"{chip.int8 / 1e12:.0f} int8 TOPS, {chip.f16 / 1e12:.0f} float16 TFLOPS, {chip.bandwidth / 1e12:.2f} TB/s"
        )
        record: dict[str, Any] = {
            "gpu": gpu,
            "sources": source_hash(),
            "compared": compared,
        }
        record |= {"measured": chip.as_json(), "rows": [], "blocks": []}
        if gpu["name"] in DATASHEETS:
            record["datasheet"] = DATASHEETS[gpu["name"]].as_json()
        for model in MODELS:
            for batch in BATCHES:
                for shape in vit(model):
                    timed = time_layer(kernels, shape, batch, repeats, gpu["cache_bytes"])
                    row = layer_row(timed, shape, batch, kernels, chip)
                    record["rows"].append(row)
                    ours = ", ".join(f"w{bits}a8 {row[f'w{bits}a8']['us']:.1f} us" for bits in WIDTHS)
                    print(f"{model} {shape.layer} batch {batch}: fp16 {row['fp16_us']:.1f} us, {ours}", flush=True)
                record["blocks"].append(block_row(kernels, model, batch, repeats))
                print(f"{model} block batch {batch}: {record['blocks'][-1]['us']}", flush=True)
                record["gpu_after"] = describe_gpu()
                write_result(NAME, record, seeds=[0], results=results)  # what was measured is kept if time runs out
    print(f"{results / NAME}.json, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    run(main)

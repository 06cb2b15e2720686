"""The parts of the GPU measurement that need no GPU: floors, tables, what it says without one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benches import gpu_kernels
from benches.gpu_block import Block, levels_of, signal_to_noise
from benches.kernel_shapes import Shape
from benches.record import write_result
from benches.roofline import DATASHEETS, Ceilings, floor_seconds, operations, sets_beyond, traffic
from benches.tables import render
from runtime.errors import IntvitError
from runtime.kernels import reference
from runtime.kernels.packing import unpack_int4
from runtime.kernels.tiles import TILES, WIDTHS, Bits, Tile, choose
from tests.conftest import REPO

SHAPE = Shape("deit_s", "fc1", 197, 384, 1536)


def test_operations_and_bytes_by_hand() -> None:
    assert operations(SHAPE, 2) == 2 * 394 * 384 * 1536
    assert traffic(SHAPE, 2, 8) == 394 * 384 + 1536 * 384 + 8 * 1536 + 2 * 394 * 1536
    assert traffic(SHAPE, 2, 8) - traffic(SHAPE, 2, 4) == 1536 * 384 // 2
    assert traffic(SHAPE, 1, 16) == 2 * (197 * 384 + 1536 * 384 + 1536 + 197 * 1536)


def test_the_floor_is_the_larger_of_two_times() -> None:
    slow_memory = Ceilings(1e18, 1e18, 1e9, "")
    assert floor_seconds(SHAPE, 1, 8, slow_memory) == pytest.approx(traffic(SHAPE, 1, 8) / 1e9)
    slow_products = Ceilings(1e9, 5e8, 1e18, "")
    assert floor_seconds(SHAPE, 1, 4, slow_products) == pytest.approx(operations(SHAPE, 1) / 1e9)
    assert floor_seconds(SHAPE, 1, 16, slow_products) == pytest.approx(operations(SHAPE, 1) / 5e8)


def test_int8_is_twice_float16_in_every_datasheet() -> None:
    assert all(chip.int8 == pytest.approx(2 * chip.f16, rel=1e-3) for chip in DATASHEETS.values())


@pytest.mark.parametrize(("size", "cache", "sets"), [(10, 100, 20), (1000, 100, 2), (1, 10**9, 64), (30, 100, 7)])
def test_sets_are_twice_the_cache_within_limits(size: int, cache: int, sets: int) -> None:
    assert sets_beyond(size, cache) == sets


def test_outputs_wanted_saturate_sometimes_and_are_small_sometimes() -> None:
    a, levels, *vectors = gpu_kernels.operands(Shape("x", "y", 64, 384, 96), 64, 4)
    y = gpu_kernels.wanted("i8", reference.accumulate(a, levels), *vectors)
    assert 0 < ((y == -120) | (y == 127)).mean() < 0.3
    assert (np.abs(y.astype(int)) < 20).mean() > 0.1


def test_levels_are_the_nearest() -> None:
    weight = torch.randn(8, 32)
    levels, scale = levels_of(weight, 4)
    assert levels.abs().max() == 7
    assert ((levels * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-6).all()


def test_the_float_block_is_timms() -> None:
    from timm.models.vision_transformer import Block as Theirs

    ours = Block(128).eval()
    theirs = Theirs(128, 2, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).eval()
    for name, other in (("norm1", "norm1"), ("norm2", "norm2"), ("qkv", "attn.qkv"), ("proj", "attn.proj")):
        theirs.get_submodule(other).load_state_dict(ours.get_submodule(name).state_dict())
    for name in ("fc1", "fc2"):
        theirs.get_submodule(f"mlp.{name}").load_state_dict(ours.get_submodule(name).state_dict())
    x = torch.randn(2, 5, 128)
    with torch.no_grad():
        assert signal_to_noise(theirs(x), ours(x)) > 100


class OnCpu:
    """The launcher's methods on CPU tensors, through the numpy reference; keeps no stream, times nothing."""

    wrong = False

    def linear(self, a: Any, weights: Any, y: Any, scale: Any, bias: Any, **options: Any) -> None:
        levels = weights.numpy()
        levels = (unpack_int4(levels, a.shape[-1]) if weights.dtype == torch.uint8 else levels)[:, : a.shape[-1]]
        sums = reference.accumulate(a.numpy().reshape(-1, a.shape[-1]), levels)
        if y.dtype == torch.int32:
            made: np.ndarray = sums
        else:
            values = reference.dequantize(sums, scale.numpy(), bias.numpy(), with_gelu=options.get("gelu", False))
            narrow, factor = y.dtype == torch.int8, options.get("factor")
            by = None if factor is None else factor.numpy()
            made = (
                reference.requantize(values, options["quantizer"].numpy(), by) if narrow else values.astype(np.float16)
            )
        made = made + made.dtype.type(1) if self.wrong else made  # adding 0 would make 0 of -0
        y.copy_(torch.from_numpy(made).reshape(y.shape))

    def layernorm(
        self, x: Any, branch: Any, gamma: Any, beta: Any, constants: Any, total: Any, q: Any, stream: int
    ) -> None:
        rows = [None if one is None else one.numpy().reshape(-1, x.shape[-1]) for one in (x, branch)]
        step, epsilon = constants.tolist()
        added, levels = reference.layernorm(*rows, gamma.numpy(), beta.numpy(), epsilon, step)  # type: ignore[arg-type]
        q.copy_(torch.from_numpy(levels).reshape(q.shape))
        if total is not None:
            total.copy_(torch.from_numpy(added).reshape(total.shape))

    def quantize(self, x: Any, step: Any, q: Any, stream: int) -> None:
        q.copy_(torch.from_numpy(reference.quantize(x.float().numpy(), float(step))))

    def choose(self, m: int, n: int, k: int, bits: Bits) -> Tile:
        return choose(m, n, k, bits, "90", 132)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Tensors on the CPU, each variant called once and said to take 2 microseconds, float16 3, Triton's not at all."""

    def once(variants: dict[str, Any], repeats: int) -> dict[str, list[float]]:
        for name, calls in variants.items():
            if not name.endswith("triton"):
                calls[-1]()
        return {name: [3.0 if "fp16" in name else 2.0] * repeats for name in variants}

    monkeypatch.setattr(gpu_kernels, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_kernels, "microseconds", once)
    return OnCpu()


def test_correctness_compares_everything_and_finds_a_wrong_bit(on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "every", lambda: [Shape("tiny", "fc", 5, 32, 48)])
    with torch.inference_mode():
        assert gpu_kernels.correctness(on_cpu) == 2 * 6 * 4  # type: ignore[arg-type]
        on_cpu.wrong = True
        with pytest.raises(IntvitError, match="a kernel is wrong on this GPU"):
            gpu_kernels.correctness(on_cpu)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["proj", "fc1"])
def test_a_layers_row(on_cpu: OnCpu, layer: str) -> None:
    shape = Shape("tiny", layer, 5, 32, 48)
    with torch.inference_mode():
        timed = gpu_kernels.time_layer(on_cpu, shape, 2, 3, cache=0)  # type: ignore[arg-type]
    names = ("gelu+int8", "gelu+affine+int8") if layer == "fc1" else ()
    fused = {f"w{bits}a8 {name}" for bits in WIDTHS for name in names}
    tiles = {f"w{bits}a8 {name}" for bits in WIDTHS for name in [*(tile.name for tile in TILES), "triton"]}
    assert timed["raw_us"].keys() == tiles | fused | {"fp16 cublas"}
    chip = Ceilings(1e12, 5e11, 1e18, "")
    row = gpu_kernels.layer_row(timed, shape, 2, on_cpu, chip)  # type: ignore[arg-type]
    assert row["w4a8"]["speedup"] == 1.5
    assert row["w8a8"]["tops"] == pytest.approx(2 * 10 * 32 * 48 / 2e-6 / 1e12)
    assert row["w8a8"]["of_floor"] == pytest.approx(row["w8a8"]["tops"])


def test_a_block_with_integer_layers_is_near_the_float_one(
    on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_kernels, "VITS", {"tiny": 128})
    with torch.inference_mode():
        row = gpu_kernels.block_row(on_cpu, "tiny", 2, 3)  # type: ignore[arg-type]
        timed = gpu_kernels.time_layer(on_cpu, Shape("tiny", "fc1", 5, 32, 48), 1, 3, cache=0)  # type: ignore[arg-type]
    assert row["sqnr_db"]["w8a8"] > 35
    assert 15 < row["sqnr_db"]["w4a8"] < row["sqnr_db"]["w8a8"]
    assert row["speedup"] == {"w8a8": 1.5, "w4a8": 1.5}
    layer = gpu_kernels.layer_row(timed, Shape("tiny", "fc1", 5, 32, 48), 1, on_cpu, DATASHEETS["NVIDIA H200"])  # type: ignore[arg-type]
    gpu = {"name": "NVIDIA Fake", "sm": "90", "processors": 132, "nvidia_smi": {}}
    measured = DATASHEETS["NVIDIA H200"].as_json()
    record = {"gpu": gpu, "compared": 40, "measured": measured, "rows": [layer], "blocks": [row]}
    write_result("gpu_kernels", record, results=tmp_path)
    assert "| tiny | fc1 |" in render("gpu_kernels", tmp_path)
    assert "| tiny |" in render("gpu_blocks", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("device", "says"), [("cuda", "there is no NVIDIA GPU here"), ("cpu", "does not run on 'cpu'")]
)
def test_without_a_gpu_it_says_so(device: str, says: str) -> None:
    command = [sys.executable, "-m", "benches.gpu_kernels", "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr

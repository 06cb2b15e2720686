"""The parts of the GPU measurement that need no GPU: floors, tables, what it says without one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from benches import gpu_kernels
from benches.gpu_block import Block, levels_of, signal_to_noise
from benches.kernel_shapes import Shape
from benches.roofline import DATASHEETS, Ceilings, floor_seconds, operations, sets_beyond, traffic
from runtime.kernels import reference
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
    a, levels, scale, bias = gpu_kernels.operands(Shape("x", "y", 64, 384, 96), 64, 4)
    y = gpu_kernels.wanted("i8", reference.accumulate(a, levels), scale, bias)
    assert 0 < (np.abs(y.astype(int)) >= 127).mean() < 0.3
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(("device", "says"), [("cuda", "there is no NVIDIA GPU here"), ("cpu", "do not run on 'cpu'")])
def test_without_a_gpu_it_says_so(device: str, says: str) -> None:
    command = [sys.executable, "-m", "benches.gpu_kernels", "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr

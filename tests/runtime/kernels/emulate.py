"""The CUDA kernels on a CPU: csrc/*.cu compiled with g++ and emulator.h in the place of primitives.cuh."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from runtime.kernels.build import SOURCES
from runtime.kernels.packing import pack_int4, pack_int8
from runtime.kernels.tiles import Bits, Output, Tile, kernel_name

HERE = Path(__file__).parent
NEEDS_GXX = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to compile the emulator with")
DTYPES = {"i32": np.int32, "f16": np.float16, "f16_gelu": np.float16, "i8": np.int8, "i8_gelu": np.int8}
BORDER = 64  # bytes before and behind an output that must stay as they are


@cache
def library(unit: str) -> ctypes.CDLL:
    """A source file for this processor. -ffp-contract=off: one rounding an operation, as the intrinsics have it."""
    out = Path(mkdtemp()) / f"{unit}.so"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    source = ["-include", str(HERE / "emulator.h"), "-x", "c++", str(SOURCES / f"{unit}.cu")]
    subprocess.run(["g++", *options, *source, "-o", str(out)], check=True, timeout=110)
    return ctypes.CDLL(str(out))


class Output16:
    """Memory aligned to 16 bytes, with borders that nobody may write; or a copy of an array in such memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.raw = np.full(size + 2 * BORDER + 16, 0xA5, np.uint8)
        self.start = BORDER + -(self.raw.ctypes.data + BORDER) % 16
        self.size = size
        self.array = self.raw[self.start : self.start + size].view(dtype).reshape(shape)

    @property
    def address(self) -> int:
        return self.raw.ctypes.data + self.start

    def untouched(self) -> bool:
        around = np.concatenate([self.raw[: self.start], self.raw[self.start + self.size :]])
        return bool((around == 0xA5).all())


def aligned(array: np.ndarray) -> Output16:
    held = Output16(array.shape, array.dtype)
    held.array[...] = array
    return held


def launch(
    unit: str, name: str, arguments: list[Any], grid: tuple[int, int], threads: int, shared: int, eager: bool
) -> int:
    """Run a kernel; arrays are passed as pointers. Returns the number of bank conflicts. Copies read the first two."""
    code = library(unit)
    values = [value.address if isinstance(value, Output16) else int(value) for value in arguments]
    words = (ctypes.c_uint64 * 9)(*values)
    ranges = [value for value in arguments if isinstance(value, Output16)][:2]
    ends = [end for held in ranges for end in (held.address, held.address + held.size)]
    code.emulate.restype = ctypes.c_long
    pointer = ctypes.cast(getattr(code, name), ctypes.c_void_p)
    return int(code.emulate(pointer, words, *grid, threads, shared, int(eager), (ctypes.c_uint64 * 4)(*ends)))


def linear(
    bits: Bits,
    output: Output,
    tile: Tile,
    a: np.ndarray,
    levels: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    step: float = 1.0,
    eager: bool = False,
) -> np.ndarray:
    """A linear layer on the emulated kernel; fails on a bank conflict or a write outside the output."""
    (m, k), n = a.shape, len(levels)
    y = Output16((m, n), DTYPES[output])
    packed = pack_int4(levels) if bits == 4 else pack_int8(levels)
    arguments: list[Any] = [aligned(a), aligned(packed)]
    if output != "i32":
        arguments += [aligned(scale), aligned(bias)]
    if output.startswith("i8"):
        arguments.append(aligned(np.array([step], np.float32)))
    arguments += [m, n, k, y]
    name = kernel_name(bits, output, tile)
    conflicts = launch(f"w{bits}a8", name, arguments, tile.grid(m, n), tile.threads, tile.shared_bytes(bits), eager)
    assert conflicts == 0
    assert y.untouched()
    return y.array.copy()

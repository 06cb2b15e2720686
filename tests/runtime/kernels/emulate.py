"""The CUDA kernels on a CPU: csrc/*.cu compiled with g++ and emulator.h in the place of primitives.cuh."""

from __future__ import annotations

import ctypes
import re
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
DTYPES = {"i32": np.int32, "f16": np.float16, "i8": np.int8}
BORDER = 64  # bytes before and behind an output that must stay as they are


@cache
def library(unit: str, tile: str = "", change: tuple[str, str] | None = None) -> ctypes.CDLL:
    """A source file for this processor: the kernels of one tile, or the one for sums with a text of it changed.

    -ffp-contract=off: one rounding an operation, as the intrinsics have it.
    """
    folder = Path(mkdtemp())
    for source in SOURCES.iterdir():
        text = source.read_text("utf-8")
        if source.name == "linear.cuh":
            text = re.sub(rf"^    INTVIT_KERNELS\(PREFIX, INT4, (?!{tile},).*?(\\?)$", r"\1", text, flags=re.MULTILINE)
        if source.name == "linear.cuh" and change is not None:
            assert change[0] in text
            text = re.sub(r"^    INTVIT_(HALF|INT8)\(.*?(\\?)$", r"\2", text.replace(*change), flags=re.MULTILINE)
        (folder / source.name).write_text(text, "utf-8")
    out = folder / f"{unit}.so"
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    source = ["-include", str(HERE / "emulator.h"), "-x", "c++", str(folder / f"{unit}.cu")]
    subprocess.run(["g++", *options, *source, "-o", str(out)], check=True, timeout=110)
    return ctypes.CDLL(str(out))


class WrongKernel(AssertionError):
    """What the emulator found wrong."""


class Output16:
    """Memory aligned to 16 bytes, with borders that nobody may write."""

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
    """A copy of an array in such memory."""
    held = Output16(array.shape, array.dtype)
    held.array[...] = array
    return held


def launch(
    code: ctypes.CDLL,
    name: str,
    arguments: list[Any],
    grid: tuple[int, int],
    threads: int,
    shared: int,
    eager: bool,
) -> None:
    """Run a kernel; arrays are passed as pointers, and the first two are what copies may read.

    Raises:
        WrongKernel: it did what a GPU would not say: see emulator.h.
    """
    values = [value.address if isinstance(value, Output16) else int(value) for value in arguments]
    words = (ctypes.c_uint64 * 10)(*values)
    ranges = [value for value in arguments if isinstance(value, Output16)][:2]
    ends = [end for held in ranges for end in (held.address, held.address + held.size)]
    code.emulate.restype = ctypes.c_char_p
    pointer = ctypes.cast(getattr(code, name), ctypes.c_void_p)
    failure = code.emulate(pointer, words, *grid, threads, shared, int(eager), (ctypes.c_uint64 * 4)(*ends))
    if failure:
        raise WrongKernel(failure.decode())
    written = [value for value in arguments if isinstance(value, Output16)]
    if not all(value.untouched() for value in written):
        raise WrongKernel("a write outside an output")


def linear(
    bits: Bits,
    output: Output,
    tile: Tile,
    a: np.ndarray,
    levels: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    factor: np.ndarray,
    quantizer: np.ndarray,
    eager: bool = False,
    change: tuple[str, str] | None = None,
) -> np.ndarray:
    """A linear layer on the emulated kernel."""
    (m, k), n = a.shape, len(levels)
    y = Output16((m, n), DTYPES[output.split("_")[0]])
    packed = pack_int4(levels) if bits == 4 else pack_int8(levels)
    arguments: list[Any] = [aligned(a), aligned(packed)]
    if output != "i32":
        arguments += [aligned(scale), aligned(bias)]
    if output.startswith("i8"):
        arguments += [aligned(factor), aligned(quantizer)]
    arguments += [m, n, k, y]
    name = kernel_name(bits, output, tile)
    shared = tile.shared_bytes(bits)
    code = library(f"w{bits}a8", tile.name, change)
    launch(code, name, arguments, tile.grid(m, n), tile.threads, shared, eager)
    return y.array.copy()

"""The kernels by name, what a launch of each needs, and which one suits a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from runtime.errors import IntvitError
from runtime.kernels.packing import STEP

Bits = Literal[4, 8]
Output = Literal["i32", "f16", "f16_gelu", "i8", "i8_gelu", "i8_gelu_affine"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
WIDTHS: tuple[Bits, ...] = (4, 8)
TOKEN_KERNELS = ("intvit_layernorm_i8", "intvit_quantize_i8")

# What a launch may use without asking for more: CUDA C++ programming guide, "Compute capabilities".
DEFAULT_SHARED = 48 * 1024
# Shared memory in bytes a block may have, by compute capability: the same guide. Other chips count as the smallest.
SHARED_OF_SM = {"80": 163 << 10, "86": 99 << 10, "87": 163 << 10, "89": 99 << 10, "90": 227 << 10, "120": 99 << 10}
SMS = tuple(SHARED_OF_SM)


@dataclass(frozen=True)
class Tile:
    """A tile shape of csrc/linear.cuh.

    Attributes:
        rows, columns: of the output a block computes. threads: of a block.
        stages: of its pipeline. blocks: how many of them registers let a multiprocessor hold.
    """

    rows: int
    columns: int
    threads: int
    stages: int
    blocks: int

    @property
    def name(self) -> str:
        """As in a kernel's name."""
        return f"{self.rows}x{self.columns}"

    def shared_bytes(self, bits: Bits) -> int:
        """The dynamic shared memory of a block."""
        return self.stages * STEP * (self.rows + self.columns * bits // 8)

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Blocks along n and along m: neighbours in launch order share rows of the activations."""
        return -(-n // self.columns), -(-m // self.rows)


# INTVIT_TILES of csrc/linear.cuh.
TILES = (Tile(256, 128, 256, 3, 1), Tile(128, 128, 128, 3, 2), Tile(64, 128, 128, 4, 3), Tile(64, 64, 128, 4, 4))


def kernel_name(bits: Bits, output: Output, tile: Tile) -> str:
    """The ``extern "C"`` name."""
    return f"intvit_w{bits}a8_{output}_{tile.name}"


def output_name(plain: Literal["f16", "i8"], *, gelu: bool, affine: bool) -> Output:
    """The output that has these.

    Raises:
        IntvitError: no kernel has: factor and shift stand between GELU and int8.
    """
    name = plain + "_gelu" * gelu + "_affine" * affine
    if name not in OUTPUTS:
        why = f"{name} is none of {', '.join(OUTPUTS)}"
        raise IntvitError("no kernel has such an output", why=why, next="factor and shift go with GELU and int8")
    return name


def every_kernel() -> tuple[str, ...]:
    """The names of all kernels of the three source files."""
    names = [kernel_name(bits, output, tile) for bits in WIDTHS for tile in TILES for output in OUTPUTS]
    return (*names, *TOKEN_KERNELS)


def choose(m: int, n: int, k: int, bits: Bits, sm: str, processors: int, *, within: int | None = None) -> Tile:
    """The tile with the least estimated time.

    Every multiprocessor works on its share of the blocks; a block's work counts as its products, with a charge for
    filling the pipeline and writing the tile worth about 6 steps of k. Small tiles read more operands for each product:
    the area counts with 32 times the half perimeter added. An estimate to start from, not measured on any chip yet:
    benches/gpu_kernels.py times every tile and keeps this choice beside the fastest.

    Args:
        m, n, k: the layer's. bits: of the weights. sm: compute capability, "90". processors: how many the chip has.
        within: a limit on a block's shared memory in bytes; the chip's own by default.
    """
    per_block = SHARED_OF_SM.get(sm, min(SHARED_OF_SM.values()))
    limit = per_block if within is None else min(within, per_block)

    def cost(tile: Tile) -> float:
        across, down = tile.grid(m, n)
        share = -(-across * down // processors)
        area = tile.rows * tile.columns + 32 * (tile.rows + tile.columns)
        return share * area * (-(-k // STEP) + 6)

    fitting = [tile for tile in TILES if tile.shared_bytes(bits) <= limit]
    if not fitting:
        raise IntvitError("no tile fits", why=f"the smallest needs more than {limit} bytes of shared memory")
    return min(fitting, key=cost)

"""The Triton twin in Triton's interpreter against numpy: ``python -m tests.toolchain.twin_sweep ROWS SHAPE...``

A process of its own: TRITON_INTERPRET counts only before Triton is imported, and other tests import it too. ROWS 0
means every token of an image. A SHAPE is tokens,k,n. Prints a line a comparison that fails, then how many were made.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from runtime.kernels import reference
from runtime.kernels.packing import pack_int4, pack_int8, pack_quantizer
from runtime.kernels.tiles import OUTPUTS, Output
from toolchain.triton_twin import linear

QUANTIZER = pack_quantizer(0.07, 0.21, (-120, 127))


def mismatches(bits: int, m: int, k: int, n: int, output: Output) -> int:
    """Elements that differ from numpy's, in any bit."""
    generator = np.random.default_rng(m * 7919 + n * 31 + k + bits)
    top = 7 if bits == 4 else 127
    a = generator.integers(-128, 128, (m, k)).astype(np.int8)
    levels = generator.integers(-top, top + 1, (n, k)).astype(np.int8)
    scale = (4 / (74 * top * 0.58 * np.sqrt(k)) * generator.uniform(0.3, 2, n)).astype(np.float32)
    bias = generator.standard_normal(n).astype(np.float32)
    packed = pack_int4(levels) if bits == 4 else pack_int8(levels)
    factor = generator.uniform(0.3, 2, n).astype(np.float32) if output.endswith("affine") else None
    plain, gelu = output.split("_")[0], "gelu" in output
    tensors = [torch.from_numpy(array) for array in (a, packed, scale, bias)]
    y = linear(
        *tensors[:2],
        plain,
        *tensors[2:],
        gelu=gelu,
        factor=None if factor is None else torch.from_numpy(factor),
        quantizer=torch.from_numpy(QUANTIZER),
        tile=(128, 128) if m > 128 else (64, 64),
    )
    if output == "i32":
        wanted: np.ndarray = reference.accumulate(a, levels)
    else:
        quantizer = QUANTIZER if plain == "i8" else None
        wanted = reference.linear(a, levels, scale, bias, with_gelu=gelu, factor=factor, quantizer=quantizer)
    bytes_of = wanted.dtype.itemsize
    return int((y.numpy().view(f"i{bytes_of}") != wanted.view(f"i{bytes_of}")).sum())


def main() -> None:
    rows = int(sys.argv[1])
    made = 0
    for turn, text in enumerate(sys.argv[2:]):
        tokens, k, n = map(int, text.split(","))
        for bits in (4, 8):
            # The sums of every layer; of the outputs made from them, one after the other.
            for output in (OUTPUTS[0], OUTPUTS[1 + (turn + bits // 8) % (len(OUTPUTS) - 1)]):
                made += 1
                wrong = mismatches(bits, rows or tokens, k, n, output)
                if wrong:
                    print(f"w{bits}a8 {output} {text}: {wrong} differ")
    print(f"{made} compared")


if __name__ == "__main__":
    main()

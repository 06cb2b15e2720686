"""The linear kernels of ``runtime/kernels/csrc`` again, in Triton: what to read to see what they compute.

The same nibbles, the same exact sums, the same float32 operations in the same order, so the same bits. What the CUDA
sources do by hand, stages in shared memory, fragments, 16-byte stores, is the compiler's here. Triton's interpreter
runs it on a CPU (TRITON_INTERPRET=1, set before this module is imported), and a GPU runs it compiled; ``benches`` times
both.

In this package and not in ``runtime``, because Triton and the tensors it takes come with torch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from runtime.errors import IntvitError
from runtime.kernels import reference
from runtime.kernels.packing import padded

_DTYPES = {"i32": torch.int32, "f16": torch.float16, "i8": torch.int8}
_EDGE = tl.constexpr(reference.PHI_EDGE)
_A0, _A1, _A2, _A3, _A4 = (tl.constexpr(value) for value in reference.PHI_ABOVE)
_B0, _B1, _B2, _B3, _B4, _B5 = (tl.constexpr(value) for value in reference.PHI_BELOW)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small number to an integer, to nearest even


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    from_edge = tl.maximum(x, -_EDGE)
    t = tl.minimum(from_edge, _EDGE)
    z = t * t
    above = (((_A4 * z + _A3) * z + _A2) * z + _A1) * z + _A0
    below = ((((_B5 * z + _B4) * z + _B3) * z + _B2) * z + _B1) * z + _B0
    return from_edge * (0.5 + tl.div_rn(t * above, below))


@triton.jit
def linear_kernel(  # type: ignore[no-untyped-def]
    a_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    factor_ptr,
    quantizer_ptr,
    y_ptr,
    m,
    n,
    k,
    pitch,
    INT4: tl.constexpr,
    OUTPUT: tl.constexpr,
    GELU: tl.constexpr,
    AFFINE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """One tile, ROWS x COLUMNS, of y = epilogue(a w^T); ``pitch`` is the bytes of a row of w, STEP those of a step."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    bytes_of_step = tl.arange(0, STEP)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for first in range(0, pitch, STEP):
        at = first + bytes_of_step
        w = tl.load(w_ptr + columns[None, :] * pitch + at[:, None], mask=columns[None, :] < n, other=0)
        if INT4:
            # 16 bytes hold 32 channels: byte i channel i in its low half, channel i + 16 in its high half. A nibble
            # moved to, or left in, the high half is 16 times its value.
            channels = at // 16 * 32 + at % 16
            low = (w << 4).to(tl.int8, bitcast=True)
            high = (w & 0xF0).to(tl.int8, bitcast=True)
            inside = (rows[:, None] < m) & (channels[None, :] < k)
            a = tl.load(a_ptr + rows[:, None] * k + channels[None, :], mask=inside, other=0)
            sums = tl.dot(a, low, sums, out_dtype=tl.int32)
            inside = (rows[:, None] < m) & (channels[None, :] + 16 < k)
            a = tl.load(a_ptr + rows[:, None] * k + channels[None, :] + 16, mask=inside, other=0)
            sums = tl.dot(a, high, sums, out_dtype=tl.int32)
        else:
            inside = (rows[:, None] < m) & (at[None, :] < k)
            a = tl.load(a_ptr + rows[:, None] * k + at[None, :], mask=inside, other=0)
            sums = tl.dot(a, w, sums, out_dtype=tl.int32)
    y_at = y_ptr + rows[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if OUTPUT == "i32":
        tl.store(y_at, sums >> 4 if INT4 else sums, mask=inside)
    else:
        scale = tl.load(scale_ptr + columns, mask=columns < n, other=0.0)
        bias = tl.load(bias_ptr + columns, mask=columns < n, other=0.0)
        if INT4:
            scale = scale * 0.0625
        value = sums.to(tl.float32) * scale[None, :] + bias[None, :]
        if GELU:
            value = _gelu(value)
        if OUTPUT == "f16":
            tl.store(y_at, value.to(tl.float16), mask=inside)
        else:
            if AFFINE:
                factor = tl.load(factor_ptr + columns, mask=columns < n, other=0.0)
                value = value * factor[None, :] - tl.load(quantizer_ptr + 1)
            value = tl.div_rn(value, tl.load(quantizer_ptr) + tl.zeros_like(value))
            value = tl.minimum(tl.maximum(value, tl.load(quantizer_ptr + 2)), tl.load(quantizer_ptr + 3))
            rounded = (value + _ROUNDER) - _ROUNDER
            tl.store(y_at, rounded.to(tl.int8), mask=inside)


def linear(
    a: torch.Tensor,
    weights: torch.Tensor,
    output: str,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    gelu: bool = False,
    factor: torch.Tensor | None = None,
    quantizer: torch.Tensor | None = None,
    tile: tuple[int, int] = (64, 64),
    **options: Any,
) -> torch.Tensor:
    """A linear layer, on the device the tensors are on.

    Args:
        a: int8 (m, k), any k. weights: uint8 (n, k' / 2) from ``pack_int4`` or int8 (n, k') from ``pack_int8``.
        output: "i32", "f16" or "i8". scale, bias: float32 (n,), but for "i32". gelu: before the output is rounded.
        factor: float32 (n,), for "i8" after GELU. quantizer: float32 (4,) from ``pack_quantizer``, for "i8".
        tile: rows and columns a program computes. options: Triton's, such as num_warps.

    Returns:
        (m, n) of the output's type.

    Raises:
        IntvitError: the weights do not belong to such an a.
    """
    (m, k), n = a.shape, len(weights)
    int4 = weights.dtype == torch.uint8
    if weights.shape[1] != padded(k) // (2 if int4 else 1):
        raise IntvitError("the weights do not fit a", why=f"a is {tuple(a.shape)}, weights {tuple(weights.shape)}")
    y = torch.empty((m, n), dtype=_DTYPES[output], device=a.device)
    nothing = torch.zeros(1, device=a.device)
    grid = (triton.cdiv(n, tile[1]), triton.cdiv(m, tile[0]))
    linear_kernel[grid](
        a,
        weights,
        nothing if scale is None else scale,
        nothing if bias is None else bias,
        nothing if factor is None else factor,
        nothing if quantizer is None else quantizer,
        y,
        m,
        n,
        k,
        weights.shape[1],
        INT4=int4,
        OUTPUT=output,
        GELU=gelu,
        AFFINE=factor is not None,
        ROWS=tile[0],
        COLUMNS=tile[1],
        STEP=32 if int4 else 64,
        enable_fp_fusion=False,  # one rounding an operation
        **options,
    )
    return y

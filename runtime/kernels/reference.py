"""What the kernels compute, in numpy: the same float32 operations in the same order, so the results are the same bits.

Shapes: a (m, k) int8, weights' levels (n, k) int8, scale (n,) float32, the product of the activations' and the weights'
scales, bias and factor (n,) float32, quantizer (4,) as ``packing.pack_quantizer`` makes it, sums (m, n) int32, outputs
(m, n).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

# The normal distribution function as 0.5 + t above(t^2) / below(t^2) with t = x clipped to +-5.3: our own fit, a
# weighted least-squares iteration in float64 towards the smallest largest error, then rounded to float32. GELU made
# from it is within 1.3e-6 of the exact one on [-8, 8] (tests/runtime/kernels/test_reference.py), about a rounding of
# float32 there. Polynomials and one division, not erf: each operation gives the same bits in numpy, Triton and CUDA.
PHI_EDGE = 5.3
PHI_ABOVE = (0.3989418, 0.052058145, 0.005698531, 0.00034147417, 6.261923e-06)
PHI_BELOW = (1.0, 0.29714978, 0.038822424, 0.002862678, 0.00012247516, 5.2959797e-07)


def accumulate(a: Int8, levels: Int8) -> Int32:
    """The exact sums ``a @ levels.T``, int32 (m, n). Formed in float64, which is exact far beyond int32."""
    sums: Int32 = (a.astype(np.float64) @ levels.astype(np.float64).T).astype(np.int32)
    return sums


def _horner(coefficients: tuple[float, ...], z: Float32) -> Float32:
    value = np.full_like(z, np.float32(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        value = value * z + np.float32(coefficient)
    return value


def gelu(x: Float32) -> Float32:
    """x times the normal distribution function of x, float32, any shape."""
    edge = np.float32(PHI_EDGE)
    from_edge = np.maximum(x, -edge)  # further left x times the function is smaller than 1e-6
    t = np.minimum(from_edge, edge)
    z = t * t
    phi = np.float32(0.5) + t * _horner(PHI_ABOVE, z) / _horner(PHI_BELOW, z)
    product: Float32 = from_edge * phi
    return product


def quantize(x: Float32, step: float, low: float = -128, high: float = 127) -> Int8:
    """clamp(round(x / step), low, high): float32 division, half to even. ``step`` is taken as float32."""
    levels: Int8 = np.clip(np.rint(x / np.float32(step)), low, high).astype(np.int8)
    return levels


def requantize(x: Float32, quantizer: Float32, factor: Float32 | None = None) -> Int8:
    """The next layer's levels of float32 (m, n). With a factor ``x * factor - shift`` is quantized, two roundings."""
    step, shift, low, high = quantizer
    return quantize(x if factor is None else x * factor - shift, step, low, high)


def dequantize(sums: Int32, scale: Float32, bias: Float32, *, with_gelu: bool = False) -> Float32:
    """``sums * scale + bias``, one rounding for each of the three, then GELU if asked: float32 (m, n)."""
    y: Float32 = sums.astype(np.float32) * scale + bias
    return gelu(y) if with_gelu else y


def linear(
    a: Int8,
    levels: Int8,
    scale: Float32,
    bias: Float32,
    *,
    with_gelu: bool = False,
    factor: Float32 | None = None,
    quantizer: Float32 | None = None,
) -> Float16 | Int8:
    """A whole layer: float16 without ``quantizer``, int8 with it."""
    y = dequantize(accumulate(a, levels), scale, bias, with_gelu=with_gelu)
    return y.astype(np.float16) if quantizer is None else requantize(y, quantizer, factor)


def _over_warp(x: Float32) -> Float32:
    """The sum of each row of float32 (m, k) as a warp forms it: lane l takes channels 8 l .. 8 l + 7 of every 256."""
    m, k = x.shape
    whole = np.zeros((m, -(-k // 256) * 256), np.float32)  # adding a zero changes nothing
    whole[:, :k] = x
    parts = whole.reshape(m, -1, 32, 8)
    lanes = np.zeros((m, 32), np.float32)
    for turn in range(parts.shape[1]):
        for i in range(8):
            lanes = lanes + parts[:, turn, :, i]
    for mask in (16, 8, 4, 2, 1):
        lanes = lanes + lanes[:, np.arange(32) ^ mask]
    return lanes[:, 0]


def layernorm(
    x: Float16, branch: Float16 | None, gamma: Float32, beta: Float32, epsilon: float, step: float
) -> tuple[Float16, Int8]:
    """The residual sum and the LayerNorm of it, quantized.

    Args:
        x: float16 (m, k), k a multiple of 8. branch: what is added to it first, the same shape.
        gamma, beta: float32 (k,). epsilon, step: of the norm and of the output.

    Returns:
        ``x + branch`` in float16, and int8 (m, k).
    """
    total = x if branch is None else (x.astype(np.float32) + branch.astype(np.float32)).astype(np.float16)
    values, k = total.astype(np.float32), np.float32(x.shape[1])
    apart = values - (_over_warp(values) / k)[:, None]
    variance = _over_warp(apart * apart) / k
    inverse = np.float32(1) / np.sqrt(variance + np.float32(epsilon))
    return total, quantize(apart * inverse[:, None] * gamma + beta, step)

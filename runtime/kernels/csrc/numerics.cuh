// What happens to a sum after the integers: docs/numerics.md and runtime/kernels/reference.py, operation by operation.
#ifndef INTVIT_NUMERICS_CUH
#define INTVIT_NUMERICS_CUH

#include "primitives.cuh"

// a / b, rounded once to nearest even: Newton's iteration for the reciprocal, then twice the quotient's own remainder
// (P. Markstein, Computation of elementary functions on the IBM RISC System/6000 processor, 1990). Without the branches
// of the compiler's division, which are there for operands that do not occur here: b is between 2^-100 and 2^100, the
// quotient finite. Quotients below 2^-100 may be off in their last place.
__device__ __forceinline__ float divide(float a, float b) {
    const float start = about_reciprocal(b);
    const float reciprocal = fused(fused(-b, start, 1.0f), start, start);
    const float about = multiply(a, reciprocal);
    const float close = fused(fused(-b, about, a), reciprocal, about);
    return fused(fused(-b, close, a), reciprocal, close);
}

// One step of Horner's rule.
__device__ __forceinline__ float horner(float value, float z, float next) { return add(multiply(value, z), next); }

// x times the normal distribution function of x, as a rational function; runtime/kernels/reference.py says where the
// coefficients come from and what the error is.
__device__ __forceinline__ float gelu(float x) {
    const float above_edge = maximum(x, -5.3f);
    const float t = minimum(above_edge, 5.3f);
    const float z = multiply(t, t);
    float above = horner(6.261923e-06f, z, 0.00034147417f);
    above = horner(above, z, 0.005698531f);
    above = horner(above, z, 0.052058145f);
    above = horner(above, z, 0.3989418f);
    float below = horner(5.2959797e-07f, z, 0.00012247516f);
    below = horner(below, z, 0.002862678f);
    below = horner(below, z, 0.038822424f);
    below = horner(below, z, 0.29714978f);
    below = horner(below, z, 1.0f);
    return multiply(above_edge, add(0.5f, divide(multiply(t, above), below)));
}

// clamp(round(x / step), low, high) in the low byte; the bounds are whole numbers of int8. Adding 1.5 * 2^23 rounds to
// an integer, to nearest even.
__device__ __forceinline__ int quantize(float x, float step, float low = -128.0f, float high = 127.0f) {
    const float limit = multiply(step, 129.0f);  // so that the quotient is finite
    const float value = divide(minimum(maximum(x, -limit), limit), step);
    return bits_of(add(minimum(maximum(value, low), high), 12582912.0f)) & 255;
}

#endif

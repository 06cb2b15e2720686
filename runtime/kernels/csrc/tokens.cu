// What stands between the linear layers of a block, from float16 to the int8 the next one reads: a warp a row, eight
// channels at a time, k a multiple of 8.
#include "numerics.cuh"

// Adds over the 32 lanes; every lane gets the same sum.
__device__ __forceinline__ float over_warp(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = add(value, of_lane_xor(value, mask));
    return value;
}

__device__ __forceinline__ void unpack(const uint4 packed, float (&to)[8]) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = half_value(words[i / 2] >> (i % 2 * 16) & 0xFFFFu);
}

__device__ __forceinline__ void store_int8(signed char* to, const int (&values)[8]) {
    unsigned words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int* v = values + 4 * i;
        words[i] = static_cast<unsigned>(v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24);
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}

// q = quantize(layer_norm(x + branch)), sum = x + branch in float16; without a branch x alone, and no sum is written.
// constants: the step of q, then epsilon.
extern "C" __global__ void __launch_bounds__(128) intvit_layernorm_i8(
    const unsigned short* x, const unsigned short* branch, const float* gamma, const float* beta,
    const float* constants, int m, int k, unsigned short* sum, signed char* q) {
    const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
    if (row >= m) return;
    const long long start = static_cast<long long>(row) * k;
    float total = 0.0f;
    for (int c = lane * 8; c < k; c += 256) {
        float v[8];
        unpack(*reinterpret_cast<const uint4*>(x + start + c), v);
        if (branch != nullptr) {
            float b[8];
            unsigned bits[8];
            unpack(*reinterpret_cast<const uint4*>(branch + start + c), b);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                bits[i] = half_bits(add(v[i], b[i]));
                v[i] = half_value(bits[i]);
            }
            *reinterpret_cast<uint4*>(sum + start + c) = make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16,
                                                                    bits[4] | bits[5] << 16, bits[6] | bits[7] << 16);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) total = add(total, v[i]);
    }
    const unsigned short* rows = branch != nullptr ? sum : x;  // each lane reads again what it wrote itself
    const float mean = divide(over_warp(total), to_float(k));
    float squares = 0.0f;
    for (int c = lane * 8; c < k; c += 256) {
        float v[8];
        unpack(*reinterpret_cast<const uint4*>(rows + start + c), v);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float d = add(v[i], -mean);
            squares = add(squares, multiply(d, d));
        }
    }
    const float variance = divide(over_warp(squares), to_float(k));
    const float inverse = divide(1.0f, square_root(add(variance, constants[1])));
    for (int c = lane * 8; c < k; c += 256) {
        float v[8];
        int out[8];
        unpack(*reinterpret_cast<const uint4*>(rows + start + c), v);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float normal = multiply(add(v[i], -mean), inverse);
            out[i] = quantize(add(multiply(normal, gamma[c + i]), beta[c + i]), constants[0]);
        }
        store_int8(q + start + c, out);
    }
}

// q = quantize(x), eight values a thread; count is a multiple of 8.
extern "C" __global__ void __launch_bounds__(128) intvit_quantize_i8(const unsigned short* x, const float* step,
                                                                     int count, signed char* q) {
    const int at = (blockIdx.x * 128 + threadIdx.x) * 8;
    if (at >= count) return;
    float v[8];
    int out[8];
    unpack(*reinterpret_cast<const uint4*>(x + at), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = quantize(v[i], *step);
    store_int8(q + at, out);
}

// The few instructions the kernels are made of, one function each, as PTX ISA 7.0 and SM 8.0 have them. Everything else
// is plain C++: tests/runtime/kernels/emulator.h puts the same functions in the processor's place and runs the very
// sources of the kernels thread by thread.
#ifndef INTVIT_PRIMITIVES_CUH
#define INTVIT_PRIMITIVES_CUH

// The block's dynamic shared memory as an address of the shared state space; 128-byte aligned.
__device__ __forceinline__ unsigned shared_base() {
    extern __shared__ __align__(128) unsigned char intvit_shared[];
    return static_cast<unsigned>(__cvta_generic_to_shared(intvit_shared));
}

// Copies 16 bytes from global to shared memory in the background; writes zeros, and reads nothing, where not `valid`.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Closes the group of the copies issued since the last call.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most kPending of this thread's groups are still on their way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void block_sync() { __syncthreads(); }

// Four 8 x 16-byte matrices: lane l gives the address of row l % 8 of matrix l / 8 and gets bytes 4 (l % 4) .. + 3 of
// row l / 4 of each.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// c += a b on the integer tensor cores: a is 16 x 32, b 32 x 8, both int8; c 16 x 8 int32, wrapping.
__device__ __forceinline__ void mma(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The value of lane (own ^ mask) of the warp.
__device__ __forceinline__ float of_lane_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// float32 operations that round once, to nearest even; the compiler never merges two of them.
__device__ __forceinline__ float to_float(int value) { return __int2float_rn(value); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float square_root(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ float minimum(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ int bits_of(float a) { return __float_as_int(a); }

// 1 / a within one unit in the last place.
__device__ __forceinline__ float about_reciprocal(float a) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(a));
    return value;
}

// float16 as its 16 bits.
__device__ __forceinline__ unsigned half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ float half_value(unsigned bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(bits)));
    return value;
}

#endif

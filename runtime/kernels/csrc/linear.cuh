// y = epilogue(a w^T): a int8 (m, k), w int4 or int8 (n, k) as runtime/kernels/packing.py writes it, sums in int32.
//
// A block computes a tile of y, kRows x kColumns; a warp kRows / kWarpsM rows and 64 columns of it. Steps of 64 along k
// arrive in shared memory kStages - 1 steps ahead. k is a multiple of 16; activations beyond m or k and weights beyond n
// are read as zeros, weights beyond k are zeros in memory.
//
// The trick for INT4: a nibble in the high half of a byte is 16 times its value as int8, so one AND, or one shift and one
// AND, turns eight weights into the operands of a product that is exactly 16 times too large; 2^-4 goes into the scale.
//
// Columns are dealt to the tensor core so that a thread ends up with 16 neighbours of a row: column i of the product's
// n-tile j is column 16 (i / 2) + 2 j + i % 2 of the warp's 64. The epilogue then reads and writes 16 bytes at a time
// without going through shared memory. Rows of w are therefore read with a stride, and the swizzle is made for that.
#ifndef INTVIT_LINEAR_CUH
#define INTVIT_LINEAR_CUH

#include "numerics.cuh"

enum Output { kInt32, kHalf, kInt8 };

constexpr int kStep = 64;          // of k in one stage
constexpr int kWarpColumns = 64;   // of y a warp computes
constexpr int kOwn = 16;           // neighbouring columns of y a thread ends up with

// Shared memory, 16-byte chunks: where chunk c of row r of a stage is. Eight lanes of one ldmatrix read eight rows of
// the same chunk; the eight land in different banks. Rows of a: consecutive. Rows of w: {0, 1, 16, 17, 32, 33, 48, 49}.
__device__ __forceinline__ int a_place(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }
__device__ __forceinline__ int w8_place(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 4) & 3)) << 4); }
__device__ __forceinline__ int w4_place(int row, int chunk) {
    const int group = (row >> 4) & 3;
    const int slot = (((row & 3) << 1) | chunk) ^ ((group & 1) | ((group >> 1) << 2));
    return (row >> 2) * 128 + (slot << 4);
}

template <int kRowsOf, int kColumnsOf, int kWarpsMOf, int kWarpsNOf, int kStagesOf>
struct Tile {
    static constexpr int kRows = kRowsOf, kColumns = kColumnsOf, kStages = kStagesOf;
    static constexpr int kWarpsM = kWarpsMOf, kWarpsN = kWarpsNOf, kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kProducts = kRows / kWarpsM / 16;  // products of 16 rows a warp does for each n-tile
    static_assert(kColumns == kWarpsN * kWarpColumns, "a warp computes 64 columns");
    static_assert(kRows == kWarpsM * kProducts * 16, "a warp computes whole products");
    static_assert(kRows * 4 % kThreads == 0 && kColumns * 2 % kThreads == 0, "every thread copies the same number of chunks");
};

// Copies step `step` of both operands into the stage at `stage`.
template <class T, bool kInt4>
__device__ __forceinline__ void fetch(unsigned stage, const signed char* a, const unsigned char* w, int m, int n, int k,
                                      int step) {
    const int thread = threadIdx.x;
    const int row0 = blockIdx.y * T::kRows, column0 = blockIdx.x * T::kColumns;
    const int at = step * kStep + (thread & 3) * 16;
#pragma unroll
    for (int i = 0; i < T::kRows * 4 / T::kThreads; ++i) {
        const int row = thread / 4 + i * (T::kThreads / 4);
        const bool valid = row0 + row < m && at < k;
        const signed char* from = valid ? a + static_cast<long long>(row0 + row) * k + at : a;
        copy_async(stage + a_place(row, thread & 3), from, valid);
    }
    constexpr int kChunks = kInt4 ? 2 : 4;  // 16-byte chunks in a step of a row of w
    const int pitch = (k + kStep - 1) / kStep * kChunks * 16;
    const unsigned w_stage = stage + T::kRows * kStep;
#pragma unroll
    for (int i = 0; i < T::kColumns * kChunks / T::kThreads; ++i) {
        const int row = thread / kChunks + i * (T::kThreads / kChunks), chunk = thread % kChunks;
        const bool valid = column0 + row < n;
        const long long offset = static_cast<long long>(column0 + row) * pitch + (step * kChunks + chunk) * 16;
        copy_async(w_stage + (kInt4 ? w4_place(row, chunk) : w8_place(row, chunk)), valid ? w + offset : w, valid);
    }
}

// Multiplies the stage at `stage` into the warp's sums.
template <class T, bool kInt4>
__device__ __forceinline__ void multiply_stage(int (&sums)[T::kProducts][8][4], unsigned stage) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int warp_row = warp % T::kWarpsM * (T::kProducts * 16), warp_column = warp / T::kWarpsM * kWarpColumns;
    const int i = lane & 7, tile = kInt4 ? lane >> 3 : lane >> 4;  // which column of which n-tile this lane addresses
    const int w_row = warp_column + (i >> 1) * 16 + tile * 2 + (i & 1);
    const unsigned a_at = stage + a_place(warp_row + (lane & 15), lane >> 4);
    const unsigned w_stage = stage + T::kRows * kStep;
    const unsigned w_at = w_stage + (kInt4 ? w4_place(w_row, 0) : w8_place(w_row, (lane >> 3) & 1));
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 32 of the step's 64: two chunks of a row of int8, one of int4
        unsigned a[T::kProducts][4];
#pragma unroll
        for (int p = 0; p < T::kProducts; ++p) load_matrices(a[p], (a_at ^ (half * 32)) + p * 16 * kStep);
#pragma unroll
        for (int j = 0; j < 8; j += kInt4 ? 4 : 2) {
            unsigned raw[4];
            load_matrices(raw, (w_at ^ (half * (kInt4 ? 16 : 32))) + j * (kInt4 ? 64 : 128));
#pragma unroll
            for (int t = 0; t < (kInt4 ? 4 : 2); ++t) {
                const unsigned low = kInt4 ? (raw[t] << 4) & 0xF0F0F0F0u : raw[2 * t % 4];
                const unsigned high = kInt4 ? raw[t] & 0xF0F0F0F0u : raw[(2 * t + 1) % 4];
#pragma unroll
                for (int p = 0; p < T::kProducts; ++p) mma(sums[p][j + t], a[p], low, high);
            }
        }
    }
}

// What follows the sums, in global memory: scale, bias and factor, one a column; of the quantizer step, shift, and the
// lowest and the highest level. What a kernel has no use for it does not read.
struct Epilogue {
    const float *scale, *bias, *factor, *quantizer;
};

// One row's 16 columns from sums to memory: `y` points at the first of them, `valid` of them exist.
template <bool kInt4, Output kOutput, bool kGelu, bool kAffine>
__device__ __forceinline__ void write_columns(const int (&sums)[8][4], int half, const float (&scale)[kOwn],
                                              const float (&bias)[kOwn], const float (&factor)[kOwn],
                                              const float (&quantizer)[4], void* y, int valid, bool aligned) {
    int values[kOwn];
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
        const int sum = sums[c >> 1][2 * half + (c & 1)];
        if constexpr (kOutput == kInt32) {
            values[c] = kInt4 ? sum >> 4 : sum;
        } else {
            float value = add(multiply(to_float(sum), scale[c]), bias[c]);
            if constexpr (kGelu) value = gelu(value);
            if constexpr (kAffine) value = add(multiply(value, factor[c]), -quantizer[1]);
            values[c] = kOutput == kHalf ? static_cast<int>(half_bits(value))
                                         : quantize(value, quantizer[0], quantizer[2], quantizer[3]);
        }
    }
    constexpr int kBytes = kOutput == kInt32 ? 4 : kOutput == kHalf ? 2 : 1;
    if (aligned && valid >= kOwn) {
#pragma unroll
        for (int q = 0; q < kBytes; ++q) {
            unsigned word[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int first = (4 * q + i) * 4 / kBytes;
                if constexpr (kOutput == kInt32) {
                    word[i] = static_cast<unsigned>(values[first]);
                } else if constexpr (kOutput == kHalf) {
                    word[i] = static_cast<unsigned>(values[first] | values[first + 1] << 16);
                } else {
                    word[i] = static_cast<unsigned>(values[first] | values[first + 1] << 8 | values[first + 2] << 16 |
                                                    values[first + 3] << 24);
                }
            }
            static_cast<uint4*>(y)[q] = make_uint4(word[0], word[1], word[2], word[3]);
        }
        return;
    }
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
        if (c >= valid) break;
        if constexpr (kOutput == kInt32) static_cast<int*>(y)[c] = values[c];
        if constexpr (kOutput == kHalf) static_cast<unsigned short*>(y)[c] = static_cast<unsigned short>(values[c]);
        if constexpr (kOutput == kInt8) static_cast<signed char*>(y)[c] = static_cast<signed char>(values[c]);
    }
}

template <class T, bool kInt4, Output kOutput, bool kGelu, bool kAffine>
__device__ __forceinline__ void write_tile(const int (&sums)[T::kProducts][8][4], const Epilogue& after, int m, int n,
                                           void* y) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int row0 = blockIdx.y * T::kRows + warp % T::kWarpsM * (T::kProducts * 16) + (lane >> 2);
    const int column = blockIdx.x * T::kColumns + warp / T::kWarpsM * kWarpColumns + (lane & 3) * kOwn;
    const int valid = n - column;
    if (valid <= 0) return;
    float own_scale[kOwn] = {}, own_bias[kOwn] = {}, own_factor[kOwn] = {}, quantizer[4] = {};
    if constexpr (kOutput != kInt32) {
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
            if (c < valid) {
                own_scale[c] = kInt4 ? multiply(after.scale[column + c], 0.0625f) : after.scale[column + c];
                own_bias[c] = after.bias[column + c];
                if constexpr (kAffine) own_factor[c] = after.factor[column + c];
            }
        }
    }
    if constexpr (kOutput == kInt8) {
#pragma unroll
        for (int i = 0; i < 4; ++i) quantizer[i] = after.quantizer[i];
    }
    constexpr int kBytes = kOutput == kInt32 ? 4 : kOutput == kHalf ? 2 : 1;
#pragma unroll
    for (int p = 0; p < T::kProducts; ++p) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = row0 + p * 16 + half * 8;
            if (row < m) {
                void* to = static_cast<char*>(y) + (static_cast<long long>(row) * n + column) * kBytes;
                write_columns<kInt4, kOutput, kGelu, kAffine>(sums[p], half, own_scale, own_bias, own_factor,
                                                              quantizer, to, valid, n % kOwn == 0);
            }
        }
    }
}

template <class T, bool kInt4, Output kOutput, bool kGelu, bool kAffine>
__device__ __forceinline__ void linear(const signed char* a, const unsigned char* w, const Epilogue& after, int m, int n,
                                       int k, void* y) {
    constexpr unsigned kStageBytes = T::kRows * kStep + T::kColumns * kStep / (kInt4 ? 2 : 1);
    const unsigned base = shared_base();
    const int steps = (k + kStep - 1) / kStep;
    int sums[T::kProducts][8][4] = {};
    int next = 0;  // the step that is fetched next, and the stage it goes to
    unsigned into = base, from = base;
    const unsigned end = base + T::kStages * kStageBytes;
    for (; next < T::kStages - 1; ++next, into += kStageBytes) {
        if (next < steps) fetch<T, kInt4>(into, a, w, m, n, k, next);
        copy_commit();
    }
#pragma unroll 1
    for (int step_k = 0; step_k < steps; ++step_k, ++next) {
        copy_wait<T::kStages - 2>();
        block_sync();  // this step has arrived for every thread, and everyone is done with the stage fetched into below
        if (next < steps) fetch<T, kInt4>(into, a, w, m, n, k, next);
        copy_commit();
        multiply_stage<T, kInt4>(sums, from);
        into = into + kStageBytes == end ? base : into + kStageBytes;
        from = from + kStageBytes == end ? base : from + kStageBytes;
    }
    write_tile<T, kInt4, kOutput, kGelu, kAffine>(sums, after, m, n, y);
}

// The six kernels of a tile: raw sums; float16; float16 after GELU; int8; int8 after GELU; int8 after GELU, factor and
// shift. Inputs, sizes, output: the order a TensorRT ahead-of-time plugin passes them in, the same for all of int8.
#define INTVIT_KERNELS(PREFIX, INT4, NAME, BLOCKS, ...)                                                                \
    using PREFIX##NAME = Tile<__VA_ARGS__>;                                                                            \
    extern "C" __global__ void __launch_bounds__(PREFIX##NAME::kThreads, BLOCKS) PREFIX##_i32_##NAME(                  \
        const signed char* a, const unsigned char* w, int m, int n, int k, int* y) {                                   \
        linear<PREFIX##NAME, INT4, kInt32, false, false>(a, w, {}, m, n, k, y);                                        \
    }                                                                                                                  \
    INTVIT_HALF(PREFIX, INT4, NAME, BLOCKS, f16, false)                                                                \
    INTVIT_HALF(PREFIX, INT4, NAME, BLOCKS, f16_gelu, true)                                                            \
    INTVIT_INT8(PREFIX, INT4, NAME, BLOCKS, i8, false, false)                                                          \
    INTVIT_INT8(PREFIX, INT4, NAME, BLOCKS, i8_gelu, true, false)                                                      \
    INTVIT_INT8(PREFIX, INT4, NAME, BLOCKS, i8_gelu_affine, true, true)

#define INTVIT_HALF(PREFIX, INT4, NAME, BLOCKS, OUTPUT, GELU)                                                          \
    extern "C" __global__ void __launch_bounds__(PREFIX##NAME::kThreads, BLOCKS) PREFIX##_##OUTPUT##_##NAME(           \
        const signed char* a, const unsigned char* w, const float* scale, const float* bias, int m, int n, int k,      \
        unsigned short* y) {                                                                                           \
        linear<PREFIX##NAME, INT4, kHalf, GELU, false>(a, w, {scale, bias, nullptr, nullptr}, m, n, k, y);             \
    }

#define INTVIT_INT8(PREFIX, INT4, NAME, BLOCKS, OUTPUT, GELU, AFFINE)                                                  \
    extern "C" __global__ void __launch_bounds__(PREFIX##NAME::kThreads, BLOCKS) PREFIX##_##OUTPUT##_##NAME(           \
        const signed char* a, const unsigned char* w, const float* scale, const float* bias, const float* factor,      \
        const float* quantizer, int m, int n, int k, signed char* y) {                                                 \
        linear<PREFIX##NAME, INT4, kInt8, GELU, AFFINE>(a, w, {scale, bias, factor, quantizer}, m, n, k, y);           \
    }

// Rows, columns, warps along each, stages; before them the blocks a multiprocessor should hold. All but the largest stay
// within the 48 KiB every launch may use; tiles.py has the same table.
#define INTVIT_TILES(PREFIX, INT4)                            \
    INTVIT_KERNELS(PREFIX, INT4, 256x128, 1, 256, 128, 4, 2, 3) \
    INTVIT_KERNELS(PREFIX, INT4, 128x128, 2, 128, 128, 2, 2, 3) \
    INTVIT_KERNELS(PREFIX, INT4, 64x128, 3, 64, 128, 2, 2, 4)   \
    INTVIT_KERNELS(PREFIX, INT4, 64x64, 4, 64, 64, 4, 1, 4)

#endif

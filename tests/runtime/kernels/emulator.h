// Runs the CUDA sources of runtime/kernels/csrc on a CPU: every thread of a block is a fibre with its own stack, every
// function of primitives.cuh is here as PTX ISA defines it. It checks what a GPU would not say: copies outside the
// operands, matrix addresses outside shared memory, bank conflicts, and stages that are read before they are waited for
// (copies land as late as they may) or written before everyone has read them (eager: as soon as they are issued).
#ifndef INTVIT_PRIMITIVES_CUH
#define INTVIT_PRIMITIVES_CUH

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

struct Index { int x, y; };
struct Copy { unsigned to; const void* from; bool valid; };
struct Barrier { int arrived = 0, generation = 0, size = 0; };
struct Warp {
    Barrier barrier;
    struct Slot { unsigned address[32], a[32][4], b[32][2]; float value[32]; } slots[2];  // a lane is one call ahead at most
};
struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    int calls = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> closed;
};

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Warp> warps;
inline Barrier block;
inline ucontext_t scheduler;
inline Index thread_index, block_index;
inline std::vector<unsigned char> shared;
inline bool eager = false;
inline const char* readable[2][2];  // the two operands copies may read: begin, end
using Word = uint64_t;
using Kernel = void (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);
inline Kernel kernel;
inline const uint64_t* arguments;

inline Thread& own() { return *threads[thread_index.x]; }
inline Warp& own_warp() { return warps[thread_index.x / 32]; }
inline const char* failure = nullptr;
inline bool must(bool holds, const char* text) {
    if (!holds && failure == nullptr) failure = text;
    return holds;
}
inline void yield() {
    const int self = thread_index.x;
    swapcontext(&threads[self]->context, &scheduler);
}
inline void meet(Barrier& barrier) {
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
    } else {
        while (barrier.generation == generation) yield();
    }
}
inline void perform(const Copy& copy) {
    if (!must(copy.to % 16 == 0 && copy.to + 16 <= shared.size(), "a copy to outside shared memory")) return;
    if (!copy.valid) {
        std::memset(&shared[copy.to], 0, 16);
        return;
    }
    const char* from = static_cast<const char*>(copy.from);
    bool inside = false;
    for (auto& range : readable) inside |= from >= range[0] && from + 16 <= range[1];
    inside &= reinterpret_cast<uintptr_t>(from) % 16 == 0;
    if (must(inside, "a copy from outside the operands")) std::memcpy(&shared[copy.to], from, 16);
}
inline void enter() {
    const uint64_t* a = arguments;
    kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
    own().done = true;
    yield();
}
inline signed char byte_of(unsigned word, int index) { return static_cast<signed char>(word >> (8 * index)); }

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index

inline unsigned shared_base() { return 0; }

inline void copy_async(unsigned to, const void* from, bool valid) {
    if (emulator::eager) {
        emulator::perform({to, from, valid});
    } else {
        emulator::own().open.push_back({to, from, valid});
    }
}
inline void copy_commit() {
    auto& thread = emulator::own();
    thread.closed.push_back(std::move(thread.open));
    thread.open.clear();
}
template <int kPending>
void copy_wait() {
    auto& groups = emulator::own().closed;
    for (; static_cast<int>(groups.size()) > kPending; groups.pop_front()) {
        for (auto& copy : groups.front()) emulator::perform(copy);
    }
}
inline void block_sync() { emulator::meet(emulator::block); }

// The warp's slot for this call; every lane has put its part in when it returns.
template <class Put>
emulator::Warp::Slot& exchange(Put put) {
    auto& thread = emulator::own();
    auto& warp = emulator::own_warp();
    auto& slot = warp.slots[thread.calls++ & 1];
    put(slot, emulator::thread_index.x & 31);
    emulator::meet(warp.barrier);
    return slot;
}

inline void load_matrices(unsigned (&to)[4], unsigned address) {
    const bool inside = address % 16 == 0 && address + 16 <= emulator::shared.size();
    if (!emulator::must(inside, "a matrix row outside shared memory")) address = 0;
    auto& slot = exchange([&](auto& s, int lane) { s.address[lane] = address; });
    const int lane = emulator::thread_index.x & 31;
    if (lane % 8 == 0) {
        int banks = 0;
        for (int i = 0; i < 8; ++i) banks |= 1 << (slot.address[lane + i] / 16 % 8);
        emulator::must(banks == 255, "a bank conflict");
    }
    for (int i = 0; i < 4; ++i) {
        std::memcpy(&to[i], &emulator::shared[slot.address[8 * i + lane / 4] + 4 * (lane % 4)], 4);
    }
}

// PTX ISA, "Matrix fragments for mma.m16n8k32": a's register r holds row g + 8 (r % 2), channels 16 (r / 2) + 4 t ..; b's
// register r channels 16 r + 4 t .. of column g; c's register r row g + 8 (r / 2), column 2 t + r % 2; g = lane / 4,
// t = lane % 4.
inline void mma(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto& slot = exchange([&](auto& s, int lane) {
        std::copy(a, a + 4, s.a[lane]);
        s.b[lane][0] = b0;
        s.b[lane][1] = b1;
    });
    const int lane = emulator::thread_index.x & 31;
    for (int r = 0; r < 4; ++r) {
        const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
        int sum = c[r];
        for (int word = 0; word < 8; ++word) {
            const unsigned x = slot.a[row % 8 * 4 + word % 4][row / 8 + 2 * (word / 4)];
            const unsigned y = slot.b[column * 4 + word % 4][word / 4];
            for (int i = 0; i < 4; ++i) sum += emulator::byte_of(x, i) * emulator::byte_of(y, i);
        }
        c[r] = sum;
    }
}

inline float of_lane_xor(float value, int mask) {
    auto& slot = exchange([&](auto& s, int lane) { s.value[lane] = value; });
    return slot.value[(emulator::thread_index.x & 31) ^ mask];
}

inline float to_float(int value) { return static_cast<float>(value); }
inline float multiply(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float fused(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float square_root(float a) { return std::sqrt(a); }
inline float minimum(float a, float b) { return std::fmin(a, b); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline int bits_of(float a) {
    int bits;
    std::memcpy(&bits, &a, 4);
    return bits;
}
// A hardware reciprocal may be one unit off: below, exact or above, by the operand's bits.
inline float about_reciprocal(float a) {
    const float value = 1.0f / a;
    const int turn = bits_of(a) % 3;
    return turn == 0 ? value : std::nextafter(value, turn == 1 ? 0.0f : INFINITY);
}
inline unsigned half_bits(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline float half_value(unsigned bits) {
    const unsigned short narrow = static_cast<unsigned short>(bits);
    _Float16 half;
    std::memcpy(&half, &narrow, 2);
    return static_cast<float>(half);
}

// numerics.cuh's, for a test of it alone.
inline float divide(float a, float b);
extern "C" void quotients(const float* a, const float* b, float* q, int count) {
    for (int i = 0; i < count; ++i) q[i] = divide(a[i], b[i]);
}

// Launches a kernel; arguments are pointers and integers, ten at most. Returns the first thing that was wrong, or null.
extern "C" const char* emulate(emulator::Kernel kernel, const uint64_t* arguments, int grid_x, int grid_y, int block,
                        int shared_bytes, int eager, const char* const* readable) {
    using namespace emulator;
    emulator::kernel = kernel;
    emulator::arguments = arguments;
    emulator::eager = eager != 0;
    std::copy(readable, readable + 4, &emulator::readable[0][0]);
    failure = nullptr;
    for (block_index.y = 0; block_index.y < grid_y; ++block_index.y) {
        for (block_index.x = 0; block_index.x < grid_x; ++block_index.x) {
            shared.assign(shared_bytes, 0x5A);
            warps.assign(block / 32, Warp{});
            for (auto& warp : warps) warp.barrier.size = 32;
            emulator::block = Barrier{0, 0, block};
            threads.clear();
            for (int i = 0; i < block; ++i) {
                threads.push_back(std::make_unique<Thread>());
                auto& thread = *threads.back();
                thread.stack.resize(1 << 15);
                getcontext(&thread.context);
                thread.context.uc_stack = {thread.stack.data(), 0, thread.stack.size()};
                makecontext(&thread.context, enter, 0);
            }
            for (bool running = true; running;) {
                running = false;
                for (int i = 0; i < block; ++i) {
                    if (threads[i]->done) continue;
                    thread_index.x = i;
                    swapcontext(&scheduler, &threads[i]->context);
                    running = true;
                }
            }
        }
    }
    return failure;
}

#endif

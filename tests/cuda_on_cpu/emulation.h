// CUDA C++ on a CPU, as far as src/kernels/cuda/*.cu use it: included in place of CUDA's headers.
//
// A block's threads are fibers that run one after another between barriers, in an order drawn anew each
// time: a missing barrier gives wrong numbers. A barrier that not all threads reach aborts.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>

using std::isfinite;
using std::max;
using std::min;
using std::signbit;

#define __global__
#define __launch_bounds__(...)
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define EMULATED_CUDA
#define __align__(bytes) alignas(bytes)
// In a section of their own, so that each block finds NaN in them.
#define __shared__ static __attribute__((section("emulated_shared")))

struct Index {
    uint32_t x, y, z;
};

namespace emulation {
struct Thread {
    void *stack_pointer;
    Index index;
    uint32_t number;
    enum { RUNNING, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE } state;
};
extern Thread *current;
extern Index block, block_size, grid_size;
extern char *dynamic_shared;
extern float exchanged[1024];

void wait_for_warp();
void wait_for_block();

inline bool is_first_of_warp() { return current->number % 32 == 0; }

inline void check(bool is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "emulated CUDA: %s\n", what);
    abort();
}
} // namespace emulation

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
#define shared_memory (emulation::dynamic_shared)

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp() { emulation::wait_for_warp(); }

inline float __shfl_xor_sync(uint32_t, float value, int other) {
    uint32_t me = emulation::current->number;
    emulation::exchanged[me] = value;
    emulation::wait_for_warp();
    float theirs = emulation::exchanged[me ^ other];
    emulation::wait_for_warp();
    return theirs;
}

// Compiled without contraction.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Instructions of tensor cores and copies to shared memory: see tensor_cores.cuh.
typedef float Sum[4];
typedef uint32_t Left[4];

namespace emulation {
// What each thread of a block gives to an instruction of its warp.
struct Given {
    uint32_t a[4], b[2];
    const __nv_bfloat16 *row;
};
extern Given given[1024];

inline float half_of(uint32_t pair, int side) {
    return __bfloat162float({(uint16_t)(side ? pair >> 16 : pair)});
}

inline void load_matrices(uint32_t (&to)[4], const __nv_bfloat16 *row, bool is_transposed) {
    check((uintptr_t)row % 16 == 0, "a row of a matrix must lie at a multiple of 16 bytes");
    uint32_t me = current->number, lane = me % 32, first = me - lane;
    given[me].row = row;
    wait_for_warp();
    for (uint32_t matrix = 0; matrix < 4; matrix++) {
        const Given *rows = given + first + 8 * matrix;
        uint32_t i = lane / 4, j = 2 * (lane % 4);
        uint16_t low = is_transposed ? rows[j].row[i].bits : rows[i].row[j].bits;
        uint16_t high = is_transposed ? rows[j + 1].row[i].bits : rows[i].row[j + 1].bits;
        to[matrix] = low | (uint32_t)high << 16;
    }
    wait_for_warp();
}

// Copies that a thread has started arrive when it waits for them; until then there is NaN.
void begin_copy(void *to, const void *from, size_t bytes, bool is_there);
void end_copies();
void end_group();
void end_groups_before(size_t last);
} // namespace emulation

inline void multiply_add(Sum &sum, const Left &a, uint32_t b0, uint32_t b1) {
    using namespace emulation;
    uint32_t me = current->number, lane = me % 32, first = me - lane;
    for (int i = 0; i < 4; i++) given[me].a[i] = a[i];
    given[me].b[0] = b0, given[me].b[1] = b1;
    wait_for_warp();
    for (int at = 0; at < 4; at++)
        for (uint32_t k = 0; k < 16; k++) {
            // Row lane / 4 (+ 8) of a, column 2 (lane % 4) (+ 1) of b.
            const Given &left = given[first + lane / 4 * 4 + k % 8 / 2];
            const Given &right = given[first + (2 * (lane % 4) + at % 2) * 4 + k % 8 / 2];
            sum[at] += half_of(left.a[at / 2 + k / 8 * 2], k % 2) * half_of(right.b[k / 8], k % 2);
        }
    wait_for_warp();
}

inline void load_matrices(uint32_t (&to)[4], const __nv_bfloat16 *row) { emulation::load_matrices(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    emulation::load_matrices(to, row, true);
}
inline void start_copy(__nv_bfloat16 *to, const __nv_bfloat16 *from, bool is_there) {
    emulation::begin_copy(to, from, 16, is_there);
}
inline void start_copy(float *to, const float *from, bool is_there) { emulation::begin_copy(to, from, 4, is_there); }
inline void finish_copies() { emulation::end_copies(); }
inline void end_group_of_copies() { emulation::end_group(); }
template <int LAST> inline void finish_copies_before() { emulation::end_groups_before(LAST); }
inline float power_of_2(float x) { return exp2f(x); }
inline uint32_t narrowed(float low, float high) {
    return __float2bfloat16(low).bits | (uint32_t)__float2bfloat16(high).bits << 16;
}

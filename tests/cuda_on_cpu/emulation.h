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

inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Of a warp, the first thread holds all of a fragment and works alone.
namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Order = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "the shapes that are used");
    float at[16][16];
};

template <typename T> void check_alignment(const T *from, unsigned stride) {
    emulation::check((uintptr_t)from % 32 == 0, "a fragment must lie at a multiple of 32 bytes");
    emulation::check(stride * sizeof(T) % 16 == 0, "a fragment's rows must be multiples of 16 bytes apart");
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major> &to, const T *from, unsigned stride) {
    check_alignment(from, stride);
    if (!emulation::is_first_of_warp()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to.at[i][j] = __bfloat162float(from[i * stride + j]);
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major> &to, const T *from, unsigned stride) {
    check_alignment(from, stride);
    if (!emulation::is_first_of_warp()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to.at[i][j] = __bfloat162float(from[j * stride + i]);
}

inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float> &to, const float *from, unsigned stride,
                             layout_t) {
    check_alignment(from, stride);
    if (!emulation::is_first_of_warp()) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to.at[i][j] = from[i * stride + j];
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float> &to, float value) {
    for (auto &row : to.at)
        for (float &x : row) x = value;
}

template <typename T, typename OA, typename OB>
void mma_sync(fragment<accumulator, 16, 16, 16, float> &d, const fragment<matrix_a, 16, 16, 16, T, OA> &a,
              const fragment<matrix_b, 16, 16, 16, T, OB> &b, const fragment<accumulator, 16, 16, 16, float> &c) {
    if (!emulation::is_first_of_warp()) return;
    fragment<accumulator, 16, 16, 16, float> sum = c;
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 16; j++) sum.at[i][j] += a.at[i][k] * b.at[k][j];
    d = sum;
}

inline void store_matrix_sync(float *to, const fragment<accumulator, 16, 16, 16, float> &from, unsigned stride,
                              layout_t) {
    check_alignment(to, stride);
    emulation::wait_for_warp();
    if (emulation::is_first_of_warp())
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) to[i * stride + j] = from.at[i][j];
    emulation::wait_for_warp();
}
} // namespace wmma
} // namespace nvcuda

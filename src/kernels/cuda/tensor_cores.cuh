// Matrix products of bf16 in registers, a warp together: the instructions of compute capability 8.0.
//
// Fragments are laid out as PTX has them. Of a sum (16 × 8), lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4)
// and the next; two sums side by side, narrowed, are the left factor (16 × 16) of a further product.
#pragma once

#include "common.cuh"

typedef float Sum[4];
typedef uint32_t Left[4];

// In the emulation they come from emulation.h.
#ifndef EMULATED_CUDA

__device__ __forceinline__ uint32_t shared_address(const void *at) { return (uint32_t)__cvta_generic_to_shared(at); }

// sum += a · b; b: 16 × 8, two registers.
__device__ __forceinline__ void multiply_add(Sum &sum, const Left &a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 × 8 from shared memory: lane l gives where row l % 8 of matrix l / 8 starts.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy 16 bytes to shared memory, or to clear them.
__device__ __forceinline__ void start_copy(bf16 *to, const bf16 *from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}

// The same of one number.
__device__ __forceinline__ void start_copy(float *to, const float *from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(is_there ? 4 : 0)
                 : "memory");
}

// Waits for all that this thread has started; others see it behind a barrier.
__device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Makes a group of what this thread has started since the last group.
__device__ __forceinline__ void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the last few.
template <int LAST> __device__ __forceinline__ void finish_copies_before() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LAST) : "memory");
}

// 2 to the power of x, to 22 bits.
__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t narrowed(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}

#endif

// c (16 × N) += a (16 × K) · bᵀ, for N rows of b, K wide; `stride`: from row to row in shared memory.
template <int N, int K>
__device__ __forceinline__ void add_product_of_rows(Sum (&c)[N / 8], const bf16 *a, const bf16 *b, int stride) {
    int lane = threadIdx.x % WARP;
    a += lane % 16 * stride + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        Left x;
        load_matrices(x, a + k);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            uint32_t y[4];
            load_matrices(y, b + n * stride + k);
            multiply_add(c[n / 8], x, y[0], y[1]);
            multiply_add(c[n / 8 + 1], x, y[2], y[3]);
        }
    }
}

// c (16 × N) += a (16 × K) · b, for K rows of b, N wide; a is a sum, narrowed here.
template <int N, int K>
__device__ __forceinline__ void add_product_of_sums(Sum (&c)[N / 8], const Sum (&a)[K / 8], const bf16 *b, int stride) {
    int lane = threadIdx.x % WARP;
    b += lane % 16 * stride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        const Sum &left = a[k / 8], &right = a[k / 8 + 1];
        Left x = {narrowed(left[0], left[1]), narrowed(left[2], left[3]), narrowed(right[0], right[1]),
                  narrowed(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            uint32_t y[4];
            load_matrices_transposed(y, b + k * stride + n);
            multiply_add(c[n / 8], x, y[0], y[1]);
            multiply_add(c[n / 8 + 1], x, y[2], y[3]);
        }
    }
}

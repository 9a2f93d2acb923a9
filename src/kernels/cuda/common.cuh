// What the kernels share: the two types of activations, 16-byte accesses, sums over warps, Philox.
//
// Every kernel exists for f32 and for bf16 activations and computes in f32. Nothing here depends on
// the order in which blocks run: no atomics.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

const int WARP = 32;

// As many bytes as a launch asks for.
#ifndef EMULATED_CUDA
extern __shared__ __align__(128) char shared_memory[];
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }

// 16 bytes, loaded and stored as one.
template <typename T> struct alignas(16) Pack {
    static const int WIDTH = 16 / sizeof(T);
    T at[16 / sizeof(T)];
};

template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T *from) {
    return *reinterpret_cast<const Pack<T> *>(from);
}

template <typename T> __device__ __forceinline__ void store_pack(T *to, const Pack<T> &pack) {
    *reinterpret_cast<Pack<T> *>(to) = pack;
}

__device__ __forceinline__ size_t global_thread() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t global_threads() { return (size_t)gridDim.x * blockDim.x; }

// out[e] = f(in[0][e], in[1][e], …), or += that, for all e < n. Pointers are 16-byte aligned.
template <typename T, int K, typename F>
__device__ void map(T *out, const T *const (&in)[K], size_t n, bool accumulate, F f) {
    const int W = Pack<T>::WIDTH;
    for (size_t p = global_thread(); p < n / W; p += global_threads()) {
        Pack<T> inputs[K], result;
        if (accumulate) result = load_pack(out + p * W);
        for (int k = 0; k < K; k++) inputs[k] = load_pack(in[k] + p * W);
#pragma unroll
        for (int w = 0; w < W; w++) {
            float x[K];
            for (int k = 0; k < K; k++) x[k] = to_float(inputs[k].at[w]);
            float y = f(x);
            result.at[w] = from_float<T>(accumulate ? to_float(result.at[w]) + y : y);
        }
        store_pack(out + p * W, result);
    }
    for (size_t e = n / W * W + global_thread(); e < n; e += global_threads()) {
        float x[K];
        for (int k = 0; k < K; k++) x[k] = to_float(in[k][e]);
        float y = f(x);
        out[e] = from_float<T>(accumulate ? to_float(out[e]) + y : y);
    }
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int other = WARP / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, other));
    return x;
}

// A stream of random numbers, as in rng.rs: the key, and the upper half of the counter.
struct Stream {
    uint32_t seed, site, step, purpose;
};

// Philox4x32-10 (Salmon et al., 2011): the numbers of elements 4·block to 4·block + 3.
__device__ __forceinline__ void philox(const Stream &stream, uint64_t block, uint32_t (&out)[4]) {
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = stream.step, c3 = stream.purpose;
    uint32_t k0 = stream.seed, k1 = stream.site;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// What an element counts for under dropout: 0, or `scale`.
__device__ __forceinline__ float kept(const Stream &stream, uint64_t element, uint32_t threshold, float scale) {
    uint32_t numbers[4];
    philox(stream, element / 4, numbers);
    return numbers[element % 4] >= threshold ? scale : 0.0f;
}

// Declares a kernel for both types: name_f32 and name_bf16. Blocks have 256 threads, and registers are to
// suffice for two blocks on a multiprocessor.
#define KERNEL(name, T_PARAMS, ARGS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_f32 T_PARAMS(float) { name<float> ARGS; }              \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_bf16 T_PARAMS(bf16) { name<bf16> ARGS; }

// Widens NF4 weights (see nf4.rs) to the type of activations.

#include "common.cuh"

// Eight weights: four bytes of codes, of one block of 64.
template <typename T>
__device__ __forceinline__ void store_weights(T *out, uint32_t packed, float scale, const float *levels) {
    alignas(16) T values[8];
#pragma unroll
    for (int byte = 0; byte < 4; byte++) {
        uint32_t pair = packed >> (8 * byte);
        values[2 * byte] = from_float<T>(scale * levels[pair >> 4 & 15]);
        values[2 * byte + 1] = from_float<T>(scale * levels[pair & 15]);
    }
#pragma unroll
    for (int w = 0; w < 8; w += Pack<T>::WIDTH)
        store_pack(out + w, *reinterpret_cast<const Pack<T> *>(values + w));
}

// A thread has twice eight weights at a time, and reads what they need before it waits for the tables. `codes` is
// 4-byte aligned. A block has 256 threads.
template <typename T>
__device__ void dequantize_nf4(T *out, const uint8_t *codes, const uint8_t *absmax, const float *nested_map,
                               const float *nested_absmax, const float *level_values, float offset, size_t n) {
    const int AT_ONCE = 2;
    __shared__ float levels[16], map[256];
    uint32_t packed[AT_ONCE];
    uint8_t code[AT_ONCE];
    float nested[AT_ONCE];
    size_t first = global_thread();
    auto part_of = [&](int turn) { return first + turn * global_threads(); };
    auto read = [&] {
#pragma unroll
        for (int turn = 0; turn < AT_ONCE; turn++) {
            size_t part = part_of(turn);
            bool is_there = 8 * part < n;
            packed[turn] = 8 * part + 8 <= n ? *reinterpret_cast<const uint32_t *>(codes + 4 * part) : 0;
            code[turn] = is_there ? absmax[part / 8] : 0;
            nested[turn] = is_there ? nested_absmax[part / 8 / 256] : 0.0f;
        }
    };
    read();
    map[threadIdx.x] = nested_map[threadIdx.x];
    if (threadIdx.x < 16) levels[threadIdx.x] = level_values[threadIdx.x];
    __syncthreads();
    while (8 * first < n) {
#pragma unroll
        for (int turn = 0; turn < AT_ONCE; turn++) {
            size_t part = part_of(turn);
            // Rounded before the offset is added, as on the CPU and in bitsandbytes.
            float scale = __fadd_rn(__fmul_rn(map[code[turn]], nested[turn]), offset);
            if (8 * part + 8 <= n) {
                store_weights(out + 8 * part, packed[turn], scale, levels);
                continue;
            }
            for (size_t e = 8 * part; e < n; e++) {
                uint8_t pair = codes[e / 2];
                out[e] = from_float<T>(scale * levels[e % 2 ? pair & 15 : pair >> 4]);
            }
        }
        first += AT_ONCE * global_threads();
        read();
    }
}
#define PARAMS(T)                                                                                                      \
    (T * out, const uint8_t *codes, const uint8_t *absmax, const float *nested_map, const float *nested_absmax,        \
     const float *level_values, float offset, size_t n)
KERNEL(dequantize_nf4, PARAMS, (out, codes, absmax, nested_map, nested_absmax, level_values, offset, n))
#undef PARAMS

// Widens NF4 weights (see nf4.rs) to the type of activations.

#include "common.cuh"

// Eight weights a thread: four bytes of codes, of one block of 64. `codes` is 4-byte aligned.
template <typename T>
__device__ void dequantize_nf4(T *out, const uint8_t *codes, const uint8_t *absmax, const float *nested_map,
                               const float *nested_absmax, const float *level_values, float offset, size_t n) {
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = level_values[threadIdx.x];
    __syncthreads();
    for (size_t part = global_thread(); part < (n + 7) / 8; part += global_threads()) {
        size_t block = part / 8;
        // Rounded before the offset is added, as on the CPU and in bitsandbytes.
        float scale = __fadd_rn(__fmul_rn(nested_map[absmax[block]], nested_absmax[block / 256]), offset);
        if (8 * part + 8 <= n) {
            uint32_t packed = *reinterpret_cast<const uint32_t *>(codes + 4 * part);
            alignas(16) T values[8];
#pragma unroll
            for (int byte = 0; byte < 4; byte++) {
                uint32_t pair = packed >> (8 * byte);
                values[2 * byte] = from_float<T>(scale * levels[pair >> 4 & 15]);
                values[2 * byte + 1] = from_float<T>(scale * levels[pair & 15]);
            }
#pragma unroll
            for (int w = 0; w < 8; w += Pack<T>::WIDTH)
                store_pack(out + 8 * part + w, *reinterpret_cast<const Pack<T> *>(values + w));
        } else {
            for (size_t e = 8 * part; e < n; e++) {
                uint8_t pair = codes[e / 2];
                out[e] = from_float<T>(scale * levels[e % 2 ? pair & 15 : pair >> 4]);
            }
        }
    }
}
#define PARAMS(T)                                                                                                      \
    (T * out, const uint8_t *codes, const uint8_t *absmax, const float *nested_map, const float *nested_absmax,        \
     const float *level_values, float offset, size_t n)
KERNEL(dequantize_nf4, PARAMS, (out, codes, absmax, nested_map, nested_absmax, level_values, offset, n))
#undef PARAMS

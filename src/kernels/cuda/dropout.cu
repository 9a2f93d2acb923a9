// Dropout.

#include "common.cuh"

// out = mask(x) · scale, or += that.
template <typename T>
__device__ void dropout(T *out, const T *x, size_t n, Stream stream, uint32_t threshold, float scale, int accumulate) {
    const int W = Pack<T>::WIDTH;
    for (size_t p = global_thread(); p < n / W; p += global_threads()) {
        Pack<T> input = load_pack(x + p * W), result;
        if (accumulate) result = load_pack(out + p * W);
#pragma unroll
        for (int quad = 0; quad < W / 4; quad++) {
            uint32_t numbers[4];
            philox(stream, p * (W / 4) + quad, numbers);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int w = 4 * quad + i;
                float y = numbers[i] >= threshold ? scale * to_float(input.at[w]) : 0.0f;
                result.at[w] = from_float<T>(accumulate ? to_float(result.at[w]) + y : y);
            }
        }
        store_pack(out + p * W, result);
    }
    for (size_t e = n / W * W + global_thread(); e < n; e += global_threads()) {
        float y = to_float(x[e]) * kept(stream, e, threshold, scale);
        out[e] = from_float<T>(accumulate ? to_float(out[e]) + y : y);
    }
}
#define PARAMS(T) (T * out, const T *x, size_t n, Stream stream, uint32_t threshold, float scale, int accumulate)
KERNEL(dropout, PARAMS, (out, x, n, stream, threshold, scale, accumulate))
#undef PARAMS

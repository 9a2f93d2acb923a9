// Root-mean-square and layer normalisation: a warp for each row.

#include "common.cuh"

__device__ __forceinline__ size_t row_of_warp() { return global_thread() / WARP; }
__device__ __forceinline__ uint32_t lane() { return threadIdx.x % WARP; }

// Σ f(x[column], column) over a row, in every lane of its warp.
template <typename T, typename F> __device__ float row_sum(const T *row, uint32_t width, F f) {
    const int W = Pack<T>::WIDTH;
    float sum = 0.0f;
    if (width % W == 0) {
        for (uint32_t column = W * lane(); column < width; column += W * WARP) {
            Pack<T> pack = load_pack(row + column);
#pragma unroll
            for (int w = 0; w < W; w++) sum += f(to_float(pack.at[w]), column + w);
        }
    } else {
        for (uint32_t column = lane(); column < width; column += WARP) sum += f(to_float(row[column]), column);
    }
    return warp_sum(sum);
}

// out[column] = f(x[column], column) over a row, or += that.
template <typename T, typename F>
__device__ void row_map(T *out, const T *row, uint32_t width, bool accumulate, F f) {
    const int W = Pack<T>::WIDTH;
    if (width % W == 0) {
        for (uint32_t column = W * lane(); column < width; column += W * WARP) {
            Pack<T> pack = load_pack(row + column), result;
            if (accumulate) result = load_pack(out + column);
#pragma unroll
            for (int w = 0; w < W; w++) {
                float y = f(to_float(pack.at[w]), column + w);
                result.at[w] = from_float<T>(accumulate ? to_float(result.at[w]) + y : y);
            }
            store_pack(out + column, result);
        }
    } else {
        for (uint32_t column = lane(); column < width; column += WARP) {
            float y = f(to_float(row[column]), column);
            out[column] = from_float<T>(accumulate ? to_float(out[column]) + y : y);
        }
    }
}

// y = w · x / √(mean(x²) + ε); keeps 1 / √(…) of each row.
template <typename T>
__device__ void rms_norm(T *out, float *inverse, const T *x, const float *weight, uint32_t rows, uint32_t width,
                         float epsilon) {
    size_t row = row_of_warp();
    if (row >= rows) return;
    x += row * width;
    float scale = 1.0f / sqrtf(row_sum(x, width, [](float x, uint32_t) { return x * x; }) / width + epsilon);
    if (lane() == 0) inverse[row] = scale;
    row_map(out + row * width, x, width, false, [&](float x, uint32_t column) { return x * scale * weight[column]; });
}
#define PARAMS(T)                                                                                                      \
    (T * out, float *inverse, const T *x, const float *weight, uint32_t rows, uint32_t width, float epsilon)
KERNEL(rms_norm, PARAMS, (out, inverse, x, weight, rows, width, epsilon))
#undef PARAMS

// With s = 1 / √(mean(x²) + ε): ∂L/∂x = s · (g ∘ w) − x · s³/D · Σ g ∘ w ∘ x.
template <typename T>
__device__ void rms_norm_backward(T *gradient, const T *g, const T *x, const float *weight, const float *inverse,
                                  uint32_t rows, uint32_t width, int accumulate) {
    size_t row = row_of_warp();
    if (row >= rows) return;
    g += row * width;
    x += row * width;
    float scale = inverse[row];
    float sum = row_sum(g, width, [&](float g, uint32_t c) { return g * weight[c] * to_float(x[c]); });
    float pull = sum * scale * scale * scale / width;
    row_map(gradient + row * width, g, width, accumulate,
            [&](float g, uint32_t c) { return scale * g * weight[c] - pull * to_float(x[c]); });
}
#define PARAMS(T)                                                                                                      \
    (T * gradient, const T *g, const T *x, const float *weight, const float *inverse, uint32_t rows, uint32_t width,   \
     int accumulate)
KERNEL(rms_norm_backward, PARAMS, (gradient, g, x, weight, inverse, rows, width, accumulate))
#undef PARAMS

// y = w · (x − mean(x)) / √(var(x) + ε) + b; keeps the mean and 1 / √(…) of each row.
template <typename T>
__device__ void layer_norm(T *out, float *means, float *inverse, const T *x, const float *weight, const float *bias,
                           uint32_t rows, uint32_t width, float epsilon) {
    size_t row = row_of_warp();
    if (row >= rows) return;
    x += row * width;
    float mean = row_sum(x, width, [](float x, uint32_t) { return x; }) / width;
    float variance = row_sum(x, width, [&](float x, uint32_t) { return (x - mean) * (x - mean); }) / width;
    float scale = 1.0f / sqrtf(variance + epsilon);
    if (lane() == 0) {
        means[row] = mean;
        inverse[row] = scale;
    }
    row_map(out + row * width, x, width, false, [&](float x, uint32_t column) {
        return (x - mean) * scale * weight[column] + (bias ? bias[column] : 0.0f);
    });
}
#define PARAMS(T)                                                                                                      \
    (T * out, float *means, float *inverse, const T *x, const float *weight, const float *bias, uint32_t rows,         \
     uint32_t width, float epsilon)
KERNEL(layer_norm, PARAMS, (out, means, inverse, x, weight, bias, rows, width, epsilon))
#undef PARAMS

// With x̂ the normalised row and h = g ∘ w: ∂L/∂x = s · (h − mean(h) − x̂ · mean(h ∘ x̂)).
template <typename T>
__device__ void layer_norm_backward(T *gradient, const T *g, const T *x, const float *weight, const float *means,
                                    const float *inverse, uint32_t rows, uint32_t width, int accumulate) {
    size_t row = row_of_warp();
    if (row >= rows) return;
    g += row * width;
    x += row * width;
    float mean = means[row], scale = inverse[row];
    auto normal = [&](uint32_t c) { return (to_float(x[c]) - mean) * scale; };
    float middle = row_sum(g, width, [&](float g, uint32_t c) { return g * weight[c]; }) / width;
    float pull = row_sum(g, width, [&](float g, uint32_t c) { return g * weight[c] * normal(c); }) / width;
    row_map(gradient + row * width, g, width, accumulate,
            [&](float g, uint32_t c) { return scale * (g * weight[c] - middle - normal(c) * pull); });
}
#define PARAMS(T)                                                                                                      \
    (T * gradient, const T *g, const T *x, const float *weight, const float *means, const float *inverse,              \
     uint32_t rows, uint32_t width, int accumulate)
KERNEL(layer_norm_backward, PARAMS, (gradient, g, x, weight, means, inverse, rows, width, accumulate))
#undef PARAMS

// Rows: their biases, and those that move.

#include "common.cuh"

// x += bias, row by row.
template <typename T> __device__ void add_bias(T *x, const float *bias, size_t n, uint32_t width) {
    for (size_t e = global_thread(); e < n; e += global_threads())
        x[e] = from_float<T>(to_float(x[e]) + bias[e % width]);
}
#define PARAMS(T) (T * x, const float *bias, size_t n, uint32_t width)
KERNEL(add_bias, PARAMS, (x, bias, n, width))
#undef PARAMS

// out[i] = x[indices[i]], rows of `width`.
template <typename T> __device__ void gather(T *out, const T *x, const uint32_t *indices, size_t n, uint32_t width) {
    for (size_t e = global_thread(); e < n; e += global_threads())
        out[e] = x[(size_t)indices[e / width] * width + e % width];
}
#define PARAMS(T) (T * out, const T *x, const uint32_t *indices, size_t n, uint32_t width)
KERNEL(gather, PARAMS, (out, x, indices, n, width))
#undef PARAMS

// out[indices[i]] += x[i]; the indices are distinct.
template <typename T> __device__ void scatter(T *out, const T *x, const uint32_t *indices, size_t n, uint32_t width) {
    for (size_t e = global_thread(); e < n; e += global_threads()) {
        T *to = out + (size_t)indices[e / width] * width + e % width;
        *to = from_float<T>(to_float(*to) + to_float(x[e]));
    }
}
#define PARAMS(T) (T * out, const T *x, const uint32_t *indices, size_t n, uint32_t width)
KERNEL(scatter, PARAMS, (out, x, indices, n, width))
#undef PARAMS

// Columns first .. first + count of rows of `width`.
template <typename T>
__device__ void columns(T *out, const T *x, size_t n, uint32_t width, uint32_t first, uint32_t count) {
    for (size_t e = global_thread(); e < n; e += global_threads())
        out[e] = x[e / count * width + first + e % count];
}
#define PARAMS(T) (T * out, const T *x, size_t n, uint32_t width, uint32_t first, uint32_t count)
KERNEL(columns, PARAMS, (out, x, n, width, first, count))
#undef PARAMS

// The gradient of the rows: zero beside those columns. `n` counts all elements of `gradient`.
template <typename T>
__device__ void columns_backward(T *gradient, const T *g, size_t n, uint32_t width, uint32_t first, uint32_t count,
                                 int accumulate) {
    for (size_t e = global_thread(); e < n; e += global_threads()) {
        uint32_t column = e % width;
        bool is_inside = column >= first && column < first + count;
        float y = is_inside ? to_float(g[e / width * count + column - first]) : 0.0f;
        gradient[e] = from_float<T>(accumulate ? to_float(gradient[e]) + y : y);
    }
}
#define PARAMS(T)                                                                                                      \
    (T * gradient, const T *g, size_t n, uint32_t width, uint32_t first, uint32_t count, int accumulate)
KERNEL(columns_backward, PARAMS, (gradient, g, n, width, first, count, accumulate))
#undef PARAMS

// Sums and conversions.

#include "common.cuh"

template <typename T> __device__ void add(T *out, const T *a, const T *b, size_t n) {
    const T *const in[2] = {a, b};
    map(out, in, n, false, [](const float (&x)[2]) { return x[0] + x[1]; });
}
#define PARAMS(T) (T * out, const T *a, const T *b, size_t n)
KERNEL(add, PARAMS, (out, a, b, n))
#undef PARAMS

template <typename T> __device__ void scale(T *out, const T *x, size_t n, int accumulate, float factor) {
    const T *const in[1] = {x};
    map(out, in, n, accumulate, [factor](const float (&x)[1]) { return factor * x[0]; });
}
#define PARAMS(T) (T * out, const T *x, size_t n, int accumulate, float factor)
KERNEL(scale, PARAMS, (out, x, n, accumulate, factor))
#undef PARAMS

// f32 to the type of activations, of two tensors.
template <typename T>
__device__ void narrow(T *first, const float *first_x, size_t first_n, T *second, const float *second_x,
                       size_t second_n) {
    for (size_t e = global_thread(); e < first_n + second_n; e += global_threads()) {
        if (e < first_n) first[e] = from_float<T>(first_x[e]);
        else second[e - first_n] = from_float<T>(second_x[e - first_n]);
    }
}
#define PARAMS(T)                                                                                                      \
    (T * first, const float *first_x, size_t first_n, T *second, const float *second_x, size_t second_n)
KERNEL(narrow, PARAMS, (first, first_x, first_n, second, second_x, second_n))
#undef PARAMS

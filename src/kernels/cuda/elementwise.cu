// Sums, activations, dropout, conversions, and rows and columns that move.

#include "common.cuh"

template <typename T> __device__ void add(T *out, const T *a, const T *b, size_t n) {
    const T *const in[2] = {a, b};
    map(out, in, n, false, [](const float (&x)[2]) { return x[0] + x[1]; });
}
#define PARAMS(T) (T * out, const T *a, const T *b, size_t n)
KERNEL(add, PARAMS, (out, a, b, n))
#undef PARAMS

// x += bias, row by row.
template <typename T> __device__ void add_bias(T *x, const float *bias, size_t n, uint32_t width) {
    for (size_t e = global_thread(); e < n; e += global_threads())
        x[e] = from_float<T>(to_float(x[e]) + bias[e % width]);
}
#define PARAMS(T) (T * x, const float *bias, size_t n, uint32_t width)
KERNEL(add_bias, PARAMS, (x, bias, n, width))
#undef PARAMS

// f32 to the type of activations.
template <typename T> __device__ void narrow(T *out, const float *x, size_t n) {
    for (size_t e = global_thread(); e < n; e += global_threads()) out[e] = from_float<T>(x[e]);
}
#define PARAMS(T) (T * out, const float *x, size_t n)
KERNEL(narrow, PARAMS, (out, x, n))
#undef PARAMS

// The order of `Activation` in activation.rs.
enum Activation { SILU, GELU, GELU_TANH, RELU, TANH };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// f(x), and f′(x) in `slope`.
__device__ __forceinline__ float activation(int kind, float x, float &slope) {
    switch (kind) {
    case SILU: {
        float s = sigmoid(x);
        slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    case GELU: {
        float probability = 0.5f + 0.5f * erff(x * 0.70710678f);
        slope = probability + x * 0.3989423f * expf(-0.5f * x * x);
        return x * probability;
    }
    case GELU_TANH: {
        float t = tanhf(0.7978846f * (x + 0.044715f * x * x * x));
        float probability = 0.5f + 0.5f * t;
        slope = probability + x * 0.5f * (1.0f - t * t) * 0.7978846f * (1.0f + 3.0f * 0.044715f * x * x);
        return x * probability;
    }
    case RELU:
        slope = x > 0.0f ? 1.0f : 0.0f;
        return x > 0.0f ? x : 0.0f;
    default: {
        float t = tanhf(x);
        slope = 1.0f - t * t;
        return t;
    }
    }
}

// f(x), or f(x) ∘ up if there is one.
template <typename T> __device__ void activate(T *out, const T *x, const T *up, size_t n, int kind) {
    float slope;
    if (up) {
        const T *const in[2] = {x, up};
        map(out, in, n, false, [&](const float (&v)[2]) { return activation(kind, v[0], slope) * v[1]; });
    } else {
        const T *const in[1] = {x};
        map(out, in, n, false, [&](const float (&v)[1]) { return activation(kind, v[0], slope); });
    }
}
#define PARAMS(T) (T * out, const T *x, const T *up, size_t n, int kind)
KERNEL(activate, PARAMS, (out, x, up, n, kind))
#undef PARAMS

// The gradient of x.
template <typename T>
__device__ void activate_backward(T *gradient, const T *g, const T *x, const T *up, size_t n, int kind,
                                  int accumulate) {
    float slope;
    if (up) {
        const T *const in[3] = {g, x, up};
        map(gradient, in, n, accumulate, [&](const float (&v)[3]) {
            activation(kind, v[1], slope);
            return v[0] * v[2] * slope;
        });
    } else {
        const T *const in[2] = {g, x};
        map(gradient, in, n, accumulate, [&](const float (&v)[2]) {
            activation(kind, v[1], slope);
            return v[0] * slope;
        });
    }
}
#define PARAMS(T) (T * gradient, const T *g, const T *x, const T *up, size_t n, int kind, int accumulate)
KERNEL(activate_backward, PARAMS, (gradient, g, x, up, n, kind, accumulate))
#undef PARAMS

// The gradient of up: g ∘ f(gate).
template <typename T>
__device__ void gate_backward(T *gradient, const T *g, const T *gate, size_t n, int kind, int accumulate) {
    float slope;
    const T *const in[2] = {g, gate};
    map(gradient, in, n, accumulate, [&](const float (&v)[2]) { return v[0] * activation(kind, v[1], slope); });
}
#define PARAMS(T) (T * gradient, const T *g, const T *gate, size_t n, int kind, int accumulate)
KERNEL(gate_backward, PARAMS, (gradient, g, gate, n, kind, accumulate))
#undef PARAMS

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
#define PARAMS(T)                                                                                                      \
    (T * out, const T *x, size_t n, uint32_t seed, uint32_t site, uint32_t step, uint32_t purpose,                     \
     uint32_t threshold, float scale, int accumulate)
KERNEL(dropout, PARAMS, (out, x, n, Stream{seed, site, step, purpose}, threshold, scale, accumulate))
#undef PARAMS

// Rotates each head of the rows of x in place, by `sign` times the angles of their positions.
template <typename T>
__device__ void rope(T *x, const float *cos, const float *sin, const uint32_t *positions, uint32_t rows, uint32_t width,
                     uint32_t head_size, uint32_t half, float sign) {
    uint32_t heads = width / head_size;
    size_t pairs = (size_t)rows * heads * half;
    for (size_t p = global_thread(); p < pairs; p += global_threads()) {
        uint32_t i = p % half, head = p / half % heads, row = p / half / heads;
        size_t angle = (size_t)positions[row] * half + i;
        T *a = x + (size_t)row * width + head * head_size + i, *b = a + half;
        float c = cos[angle], s = sign * sin[angle], u = to_float(*a), v = to_float(*b);
        *a = from_float<T>(u * c - v * s);
        *b = from_float<T>(v * c + u * s);
    }
}
#define PARAMS(T)                                                                                                      \
    (T * x, const float *cos, const float *sin, const uint32_t *positions, uint32_t rows, uint32_t width,              \
     uint32_t head_size, uint32_t half, float sign)
KERNEL(rope, PARAMS, (x, cos, sin, positions, rows, width, head_size, half, sign))
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

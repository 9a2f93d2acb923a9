// Activations, alone and gated.

#include "common.cuh"

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

// The gradients of gate and of up in f(gate) ∘ up.
template <typename T>
__device__ void gated_backward(T *of_gate, T *of_up, const T *g, const T *gate, const T *up, size_t n, int kind) {
    const int W = Pack<T>::WIDTH;
    auto both = [&](float g, float gate, float up, T &to_gate, T &to_up) {
        float slope, value = activation(kind, gate, slope);
        to_gate = from_float<T>(g * up * slope);
        to_up = from_float<T>(g * value);
    };
    for (size_t p = global_thread(); p < n / W; p += global_threads()) {
        Pack<T> gs = load_pack(g + p * W), gates = load_pack(gate + p * W), ups = load_pack(up + p * W), first, second;
#pragma unroll
        for (int w = 0; w < W; w++)
            both(to_float(gs.at[w]), to_float(gates.at[w]), to_float(ups.at[w]), first.at[w], second.at[w]);
        store_pack(of_gate + p * W, first);
        store_pack(of_up + p * W, second);
    }
    for (size_t e = n / W * W + global_thread(); e < n; e += global_threads())
        both(to_float(g[e]), to_float(gate[e]), to_float(up[e]), of_gate[e], of_up[e]);
}
#define PARAMS(T) (T * of_gate, T *of_up, const T *g, const T *gate, const T *up, size_t n, int kind)
KERNEL(gated_backward, PARAMS, (of_gate, of_up, g, gate, up, n, kind))
#undef PARAMS

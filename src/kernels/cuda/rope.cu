// Rotary positions.

#include "common.cuh"

// Rotates each head of the rows of x in place, by `sign` times the angles of their positions. A thread: some pairs
// side by side, as many as fit 16 bytes if all do.
template <typename T>
__device__ void rope(T *x, const float *cos, const float *sin, const uint32_t *positions, uint32_t rows, uint32_t width,
                     uint32_t head_size, uint32_t half, float sign) {
    const uint32_t W = Pack<T>::WIDTH;
    auto turn = [&](T &a, T &b, size_t angle) {
        float c = cos[angle], s = sign * sin[angle], u = to_float(a), v = to_float(b);
        a = from_float<T>(u * c - v * s);
        b = from_float<T>(v * c + u * s);
    };
    bool is_wide = half % W == 0 && head_size % W == 0;
    uint32_t together = is_wide ? W : 1, parts = half / together, in_row = width / head_size * parts;
    for (size_t p = global_thread(); p < (size_t)rows * in_row; p += global_threads()) {
        uint32_t row = (uint32_t)(p / in_row), part = (uint32_t)(p - (size_t)row * in_row);
        uint32_t head = part / parts, i = (part - head * parts) * together;
        size_t angle = (size_t)positions[row] * half + i;
        T *a = x + (size_t)row * width + head * head_size + i, *b = a + half;
        if (!is_wide) {
            turn(*a, *b, angle);
            continue;
        }
        Pack<T> left = load_pack(a), right = load_pack(b);
#pragma unroll
        for (uint32_t w = 0; w < W; w++) turn(left.at[w], right.at[w], angle + w);
        store_pack(a, left);
        store_pack(b, right);
    }
}
#define PARAMS(T)                                                                                                      \
    (T * x, const float *cos, const float *sin, const uint32_t *positions, uint32_t rows, uint32_t width,              \
     uint32_t head_size, uint32_t half, float sign)
KERNEL(rope, PARAMS, (x, cos, sin, positions, rows, width, head_size, half, sign))
#undef PARAMS

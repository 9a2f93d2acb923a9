// Rotary positions.

#include "common.cuh"

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

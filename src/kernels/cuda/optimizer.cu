// AdamW, and the norm of gradients, of all tensors in one launch: blockIdx.y is the tensor. Everything here is f32.

#include "common.cuh"

// The numbers of `StepNumbers` in optimizer.rs.
struct Step {
    float learning_rate, gradient_scale, beta1, beta2, epsilon, correction1, correction2, decay;
};

// A parameter and its moments: those of `Update`, `BlockwiseUpdate` and `Numbers` in optimizer.rs.
struct Update {
    float *values, *first, *second;
    const float *gradient;
    size_t n;
    Step step;
};

struct BlockwiseUpdate {
    float *values;
    uint8_t *first, *second;
    float *first_scales, *second_scales;
    const float *first_map, *second_map, *gradient;
    size_t n;
    Step step;
};

struct Numbers {
    const float *x;
    size_t n;
};

extern "C" __global__ void adamw(const Update *updates) {
    const Update update = updates[blockIdx.y];
    float *values = update.values, *first = update.first, *second = update.second;
    const float *gradient = update.gradient;
    size_t n = update.n;
    const Step &step = update.step;
    float step_size = step.learning_rate / step.correction1;
    for (size_t e = global_thread(); e < n; e += global_threads()) {
        float g = gradient[e] * step.gradient_scale, m = first[e], v = second[e];
        m += (1.0f - step.beta1) * (g - m);
        v = step.beta2 * v + (1.0f - step.beta2) * g * g;
        first[e] = m;
        second[e] = v;
        values[e] = values[e] * step.decay - step_size * m / (sqrtf(v) / step.correction2 + step.epsilon);
    }
}

// The code whose value is nearest to x; of two equally near, the lower. `map` is ascending.
__device__ uint8_t nearest(const float *map, float x) {
    uint32_t below = 0;
    for (uint32_t half = 128; half > 0; half /= 2)
        if (map[below + half] <= x) below += half;
    uint32_t above = min(below + 1, 255u);
    return x - map[below] > map[above] - x ? above : below;
}

// The largest x of a block of 256 threads, in all of them.
__device__ float block_max(float x) {
    __shared__ float largest[8];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) largest[threadIdx.x / WARP] = x;
    __syncthreads();
    x = largest[0];
    for (int warp = 1; warp < 8; warp++) x = fmaxf(x, largest[warp]);
    return x;
}

// With moments in 8 bits (see blockwise.rs): a block of 256 threads takes blocks of 256 moments, one after another.
extern "C" __global__ void adamw_8bit(const BlockwiseUpdate *updates) {
    __shared__ float signed_map[256], unsigned_map[256];
    const BlockwiseUpdate update = updates[blockIdx.y];
    float *values = update.values, *first_scales = update.first_scales, *second_scales = update.second_scales;
    uint8_t *first = update.first, *second = update.second;
    const float *gradient = update.gradient;
    size_t n = update.n;
    const Step &step = update.step;
    signed_map[threadIdx.x] = update.first_map[threadIdx.x];
    unsigned_map[threadIdx.x] = update.second_map[threadIdx.x];
    __syncthreads();
    for (size_t block = blockIdx.x; block * 256 < n; block += gridDim.x) {
        size_t e = block * 256 + threadIdx.x;
        float m = 0.0f, v = 0.0f;
        if (e < n) {
            float g = gradient[e] * step.gradient_scale;
            if (isfinite(g)) {
                m = step.beta1 * (signed_map[first[e]] * first_scales[block]) + (1.0f - step.beta1) * g;
                v = step.beta2 * (unsigned_map[second[e]] * second_scales[block]) + (1.0f - step.beta2) * g * g;
                float value = values[e] - step.learning_rate * step.correction2 / step.correction1 * m /
                                              (sqrtf(v) + step.correction2 * step.epsilon);
                values[e] = value * step.decay;
            }
        }
        // Barriers in here let every thread read its block's scales before one of them writes new ones.
        float first_scale = block_max(fabsf(m)), second_scale = block_max(fabsf(v));
        if (e < n) {
            uint8_t code = nearest(signed_map, first_scale > 0.0f ? m * (1.0f / first_scale) : 0.0f);
            // A code of the other sign would push the parameter the wrong way.
            if (signbit(signed_map[code]) != signbit(m)) {
                if (m > 0.0f) code = code < 255 ? code + 1 : 255;
                else code = code > 0 ? code - 1 : 0;
            }
            first[e] = code;
            second[e] = nearest(unsigned_map, second_scale > 0.0f ? v * (1.0f / second_scale) : 0.0f);
        }
        if (threadIdx.x == 0) {
            first_scales[block] = first_scale;
            second_scales[block] = second_scale;
        }
    }
}

// out[tensor][block] = Σ x² over the elements of this block of 256 threads.
extern "C" __global__ void sum_of_squares(double *out, const Numbers *tensors) {
    __shared__ double sums[256];
    const float *x = tensors[blockIdx.y].x;
    size_t n = tensors[blockIdx.y].n;
    double sum = 0.0;
    for (size_t e = global_thread(); e < n; e += global_threads()) sum += (double)x[e] * x[e];
    sums[threadIdx.x] = sum;
    for (uint32_t half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.y * gridDim.x + blockIdx.x] = sums[0];
}

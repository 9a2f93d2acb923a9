// Attention of bf16 on tensor cores (Dao, 2023, "FlashAttention-2"): four warps, each with 16 rows of a tile of 64,
// whose scores, probabilities and sums stay in registers. Tiles of what they go over are copied to shared memory while
// the last ones are computed with.
//
// D: the head's width, rounded up to 64, 128 or 256; what is beyond it is zero.
#pragma once

#include "attention.cuh"
#include "tensor_cores.cuh"

const uint32_t ROWS = 64;
const uint32_t BF16_THREADS = ROWS / 16 * WARP;
const float LOG2_E = 1.4426950408889634f;

// From row to row in shared memory: eight rows lie in different banks.
template <int D> struct Rows { static const int STRIDE = D + 8; };
// Tiles in shared memory of each matrix that a block goes over.
template <int D> struct Stages { static const uint32_t COUNT = D <= 128 ? 2 : 1; };

// Starts to copy N rows, of which `count` are there, of a head to shared memory.
template <int D, uint32_t N>
__device__ __forceinline__ void start_rows(bf16 *to, const bf16 *from, size_t first, uint32_t count, uint32_t width,
                                           uint32_t column, uint32_t columns) {
    from += first * width + column;
    if (columns % 8 == 0) {
#pragma unroll
        for (uint32_t e = threadIdx.x; e < N * (D / 8); e += BF16_THREADS) {
            uint32_t row = e / (D / 8), at = e % (D / 8) * 8;
            bool is_there = row < count && at < columns;
            start_copy(to + row * Rows<D>::STRIDE + at, is_there ? from + (size_t)row * width + at : from, is_there);
        }
    } else {
        for (uint32_t e = threadIdx.x; e < N * D; e += BF16_THREADS) {
            uint32_t row = e / D, at = e % D;
            bool is_there = row < count && at < columns;
            to[row * Rows<D>::STRIDE + at] = is_there ? from[(size_t)row * width + at] : from_float<bf16>(0.0f);
        }
    }
}

// Stores a warp's 16 rows of N columns, each row times its factor.
template <int N>
__device__ __forceinline__ void store_sums(bf16 *to, const Sum (&from)[N / 8], size_t first, uint32_t row,
                                           uint32_t count, uint32_t width, uint32_t column, uint32_t columns,
                                           const float (&factors)[2]) {
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t at_row = row + lane / 4 + 8 * half;
        if (at_row >= count) continue;
        bf16 *at = to + (first + at_row) * width + column;
#pragma unroll
        for (int part = 0; part < N / 8; part++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                uint32_t to_column = 8 * part + 2 * (lane % 4) + side;
                if (to_column < columns) at[to_column] = from_float<bf16>(factors[half] * from[part][2 * half + side]);
            }
    }
}

__device__ __noinline__ float bent_score(const Shape &shape, float product, const Pair &pair, float &slope) {
    return score_of(shape, product, pair, slope);
}

__device__ __noinline__ float drawn_factor(const Shape &shape, uint32_t query, uint32_t head, uint32_t key) {
    return factor(shape, query, head, key);
}

// A tile of queries and one of keys: the rows of their first, and the positions of these in their sequence.
struct Corner {
    uint32_t head;
    size_t query, key;
    uint32_t query_position, key_position;

    // What of a product counts: the score. `slope`: its derivative.
    __device__ __forceinline__ float score(const Shape &shape, bool is_plain, float product, uint32_t row, uint32_t at,
                                           float &slope) const {
        slope = 1.0f;
        if (is_plain) return shape.scale * product;
        Pair pair = {head, query + row, key + at, query_position + row, key_position + at};
        return bent_score(shape, product, pair, slope);
    }
    __device__ __forceinline__ float factor(const Shape &shape, uint32_t row, uint32_t at) const {
        return shape.kept_scale == 0.0f ? 1.0f : drawn_factor(shape, query + row, head, key + at);
    }
    __device__ __forceinline__ bool sees(const Shape &shape, uint32_t row, uint32_t at) const {
        return ::sees(shape, query_position + row, key_position + at);
    }
    // All of `rows` queries see all of `keys` keys.
    __device__ __forceinline__ bool sees_all(const Shape &shape, uint32_t rows, uint32_t keys) const {
        return sees(shape, 0, keys - 1) && sees(shape, rows - 1, 0);
    }
};

// What a tile's elements need: nothing, or a look at who sees whom, or scores that are bent or dropped besides.
template <int M> struct Mode { static const int VALUE = M; };
typedef Mode<0> All;
typedef Mode<1> Some;
typedef Mode<2> Bent;

template <typename F> __device__ __forceinline__ void in_mode(bool is_bent, bool is_whole, F f) {
    if (is_bent) f(Bent());
    else if (is_whole) f(All());
    else f(Some());
}

__device__ __forceinline__ bool is_plain(const Shape &shape) { return !shape.rows && shape.cap == 0.0f; }

__device__ __forceinline__ bool is_bent(const Shape &shape) {
    return !is_plain(shape) || shape.kept_scale != 0.0f || shape.slopes;
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// A block: (head, tile of queries).
template <int D>
__device__ void attention_of(bf16 *out, float *log_sums, const bf16 *q, const bf16 *k, const bf16 *v,
                             const Sequence *sequences, const uint32_t *tiles, const Shape &shape) {
    const uint32_t KEYS = 64, STAGES = Stages<D>::COUNT, SIZE = ROWS * Rows<D>::STRIDE;
    const int STRIDE = Rows<D>::STRIDE;
    uint32_t head = blockIdx.x, key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t offset = tiles[2 * blockIdx.y + 1], rows = min(ROWS, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;
    uint32_t lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    bool plain = is_plain(shape), bent = is_bent(shape);
    float scale = LOG2_E * shape.scale;

    bf16 *qs = reinterpret_cast<bf16 *>(shared_memory), *ks = qs + SIZE, *vs = ks + STAGES * SIZE;
    uint32_t start, end;
    keys_of(shape, sequence, position, position + rows - 1, start, end);
    auto start_tile = [&](uint32_t at, uint32_t stage) {
        size_t key = (size_t)sequence.key + at;
        uint32_t keys = min(KEYS, end - at);
        start_rows<D, KEYS>(ks + stage * SIZE, k, key, keys, key_width, key_head * d, d);
        start_rows<D, KEYS>(vs + stage * SIZE, v, key, keys, key_width, key_head * d, d);
    };
    start_rows<D, ROWS>(qs, q, query, rows, query_width, head * d, d);
    start_tile(start, 0);

    Sum sums[D / 8] = {};
    float maxima[2] = {-INFINITY, -INFINITY}, totals[2] = {};
    for (uint32_t stage = 0; start < end; start += KEYS) {
        finish_copies();
        __syncthreads();
        const bf16 *keys_at = ks + stage * SIZE, *values_at = vs + stage * SIZE;
        if (STAGES > 1 && start + KEYS < end) start_tile(start + KEYS, stage ^ 1);
        Sum scores[KEYS / 8] = {};
        add_product_of_rows<KEYS, D>(scores, qs + first_row * STRIDE, keys_at, STRIDE);

        Corner corner = {head, query, (size_t)sequence.key + start, position, start};
        bool is_whole = start + KEYS <= end && corner.sees_all(shape, ROWS, KEYS);
        in_mode(bent, is_whole, [&](auto mode) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t row = first_row + lane / 4 + 8 * half;
                float largest = -INFINITY, slope;
#pragma unroll
                for (uint32_t part = 0; part < KEYS / 8; part++)
#pragma unroll
                    for (int side = 0; side < 2; side++) {
                        uint32_t at = 8 * part + 2 * (lane % 4) + side;
                        float &score = scores[part][2 * half + side];
                        bool is_seen = mode.VALUE == 0 || (start + at < end && corner.sees(shape, row, at));
                        if (mode.VALUE == 2)
                            score = is_seen && row < rows ? LOG2_E * corner.score(shape, plain, score, row, at, slope)
                                                          : -INFINITY;
                        else
                            score = is_seen ? scale * score : -INFINITY;
                        largest = fmaxf(largest, score);
                    }
                float before = maxima[half], maximum = fmaxf(before, quad_max(largest)), total = 0.0f;
                // A row that has seen nothing yet keeps its zeros.
                float base = maximum == -INFINITY ? 0.0f : maximum, rescale = power_of_2(before - base);
#pragma unroll
                for (uint32_t part = 0; part < KEYS / 8; part++)
#pragma unroll
                    for (int side = 0; side < 2; side++) {
                        float &score = scores[part][2 * half + side];
                        score = power_of_2(score - base);
                        total += score;
                        if (mode.VALUE == 2)
                            score *= corner.factor(shape, row, 8 * part + 2 * (lane % 4) + side);
                    }
                maxima[half] = maximum;
                totals[half] = totals[half] * rescale + quad_sum(total);
#pragma unroll
                for (int part = 0; part < D / 8; part++) {
                    sums[part][2 * half] *= rescale;
                    sums[part][2 * half + 1] *= rescale;
                }
            }
        });
        add_product_of_sums<D, KEYS>(sums, scores, values_at, STRIDE);
        if (STAGES > 1) {
            stage ^= 1;
        } else if (start + KEYS < end) {
            __syncthreads();
            start_tile(start + KEYS, 0);
        }
    }
    float factors[2] = {1.0f / totals[0], 1.0f / totals[1]};
    store_sums<D>(out, sums, query, first_row, rows, query_width, head * d, d, factors);
    for (int half = 0; half < 2; half++) {
        uint32_t row = first_row + lane / 4 + 8 * half;
        if (lane % 4 == 0 && row < rows)
            log_sums[(query + row) * shape.heads + head] = (maxima[half] + log2f(totals[half])) / LOG2_E;
    }
}

// Columns whose sums a block of the backward holds; where a head has more, several blocks share it.
template <int D> struct Part { static const int COLUMNS = D <= 128 ? D : 128; };

// The gradient of q. A block: (head and part, tile of queries).
template <int D>
__device__ void attention_backward_q_of(bf16 *gq, const bf16 *g, const bf16 *q, const bf16 *k, const bf16 *v,
                                        const float *log_sums, const float *deltas, const Sequence *sequences,
                                        const uint32_t *tiles, const Shape &shape) {
    const uint32_t KEYS = D <= 64 ? 64 : D <= 128 ? 32 : 16, STAGES = Stages<D>::COUNT, PARTS = D / Part<D>::COLUMNS;
    const uint32_t SIZE = ROWS * Rows<D>::STRIDE, KEY_SIZE = KEYS * Rows<D>::STRIDE;
    const int STRIDE = Rows<D>::STRIDE, N = Part<D>::COLUMNS;
    uint32_t head = blockIdx.x / PARTS, column = blockIdx.x % PARTS * N;
    uint32_t key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t offset = tiles[2 * blockIdx.y + 1], rows = min(ROWS, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;
    uint32_t lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    bool plain = is_plain(shape), bent = is_bent(shape);
    float scale = LOG2_E * shape.scale;

    bf16 *qs = reinterpret_cast<bf16 *>(shared_memory), *gs = qs + SIZE, *ks = gs + SIZE, *vs = ks + STAGES * KEY_SIZE;
    uint32_t start, end;
    keys_of(shape, sequence, position, position + rows - 1, start, end);
    auto start_tile = [&](uint32_t at, uint32_t stage) {
        size_t key = (size_t)sequence.key + at;
        uint32_t keys = min(KEYS, end - at);
        start_rows<D, KEYS>(ks + stage * KEY_SIZE, k, key, keys, key_width, key_head * d, d);
        start_rows<D, KEYS>(vs + stage * KEY_SIZE, v, key, keys, key_width, key_head * d, d);
    };
    start_rows<D, ROWS>(qs, q, query, rows, query_width, head * d, d);
    start_rows<D, ROWS>(gs, g, query, rows, query_width, head * d, d);
    start_tile(start, 0);
    float bases[2] = {}, pulls[2] = {};
    for (int half = 0; half < 2; half++) {
        uint32_t row = first_row + lane / 4 + 8 * half;
        if (row >= rows) continue;
        bases[half] = LOG2_E * log_sums[(query + row) * shape.heads + head];
        pulls[half] = deltas[(query + row) * shape.heads + head];
    }

    Sum sums[N / 8] = {};
    for (uint32_t stage = 0; start < end; start += KEYS) {
        finish_copies();
        __syncthreads();
        const bf16 *keys_at = ks + stage * KEY_SIZE, *values_at = vs + stage * KEY_SIZE;
        if (STAGES > 1 && start + KEYS < end) start_tile(start + KEYS, stage ^ 1);
        Sum scores[KEYS / 8] = {}, products[KEYS / 8] = {};
        add_product_of_rows<KEYS, D>(scores, qs + first_row * STRIDE, keys_at, STRIDE);
        add_product_of_rows<KEYS, D>(products, gs + first_row * STRIDE, values_at, STRIDE);

        Corner corner = {head, query, (size_t)sequence.key + start, position, start};
        bool is_whole = start + KEYS <= end && corner.sees_all(shape, ROWS, KEYS);
        in_mode(bent, is_whole, [&](auto mode) {
#pragma unroll
            for (uint32_t part = 0; part < KEYS / 8; part++)
#pragma unroll
                for (int at_sum = 0; at_sum < 4; at_sum++) {
                    int half = at_sum / 2;
                    uint32_t row = first_row + lane / 4 + 8 * half, at = 8 * part + 2 * (lane % 4) + at_sum % 2;
                    float &score = scores[part][at_sum], product = products[part][at_sum];
                    bool is_seen = mode.VALUE == 0 || (start + at < end && corner.sees(shape, row, at));
                    if (mode.VALUE == 2) {
                        float bend, slope = 0.0f;
                        if (is_seen && row < rows) {
                            score = LOG2_E * corner.score(shape, plain, score, row, at, bend);
                            product *= corner.factor(shape, row, at);
                            slope = power_of_2(score - bases[half]) * (product - pulls[half]) * bend;
                        }
                        score = slope;
                        if (shape.slopes && column == 0 && row < rows && start + at < end)
                            slopes_of(shape, query + row, head)[start + at] = slope;
                    } else {
                        float probability = power_of_2(scale * score - bases[half]);
                        score = is_seen ? probability * (product - pulls[half]) : 0.0f;
                    }
                }
        });
        add_product_of_sums<N, KEYS>(sums, scores, keys_at + column, STRIDE);
        if (STAGES > 1) {
            stage ^= 1;
        } else if (start + KEYS < end) {
            __syncthreads();
            start_tile(start + KEYS, 0);
        }
    }
    if (column >= d) return;
    float factors[2] = {shape.scale, shape.scale};
    store_sums<N>(gq, sums, query, first_row, rows, query_width, head * d + column, d - column, factors);
}

// The gradients of k and v, summed over the heads that share them. A block: (key head and part, tile of keys).
template <int D>
__device__ void attention_backward_kv_of(bf16 *gk, bf16 *gv, const bf16 *g, const bf16 *q, const bf16 *k, const bf16 *v,
                                         const float *log_sums, const float *deltas, const Sequence *sequences,
                                         const uint32_t *tiles, const Shape &shape) {
    const uint32_t QUERIES = D <= 64 ? 64 : D <= 128 ? 32 : 16, STAGES = Stages<D>::COUNT, PARTS = D / Part<D>::COLUMNS;
    const uint32_t SIZE = ROWS * Rows<D>::STRIDE, QUERY_SIZE = QUERIES * Rows<D>::STRIDE;
    const int STRIDE = Rows<D>::STRIDE, N = Part<D>::COLUMNS;
    uint32_t key_head = blockIdx.x / PARTS, column = blockIdx.x % PARTS * N;
    uint32_t group = shape.heads / shape.key_heads, d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t start = tiles[2 * blockIdx.y + 1], keys = min(ROWS, sequence.length - start);
    size_t key = (size_t)sequence.key + start;
    uint32_t lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    bool plain = is_plain(shape), bent = is_bent(shape);
    float scale = LOG2_E * shape.scale;

    bf16 *ks = reinterpret_cast<bf16 *>(shared_memory), *vs = ks + SIZE, *qs = vs + SIZE, *gs = qs + STAGES * QUERY_SIZE;
    float *log_sums_at = reinterpret_cast<float *>(gs + STAGES * QUERY_SIZE), *deltas_at = log_sums_at + STAGES * QUERIES;
    // Queries from the first to the last position that can see any of these keys.
    uint32_t first = shape.is_causal ? start : 0, last = sequence.position + sequence.queries;
    if (shape.window) {
        if (!shape.is_causal && start + 1 > shape.window) first = start + 1 - shape.window;
        last = min(last, start + keys - 1 + shape.window);
    }
    first = max(first, sequence.position);
    uint32_t tiles_of_head = first < last ? (last - first + QUERIES - 1) / QUERIES : 0, count = group * tiles_of_head;
    auto start_tile = [&](uint32_t tile, uint32_t stage) {
        uint32_t head = key_head * group + tile / tiles_of_head, position = first + tile % tiles_of_head * QUERIES;
        size_t query = sequence.query + position - sequence.position;
        uint32_t rows = min(QUERIES, last - position);
        start_rows<D, QUERIES>(qs + stage * QUERY_SIZE, q, query, rows, query_width, head * d, d);
        start_rows<D, QUERIES>(gs + stage * QUERY_SIZE, g, query, rows, query_width, head * d, d);
        // Two numbers of each query.
        for (uint32_t e = threadIdx.x; e < 2 * QUERIES; e += BF16_THREADS) {
            uint32_t row = e % QUERIES;
            size_t at = (query + min(row, rows - 1)) * shape.heads + head;
            if (e < QUERIES) start_copy(log_sums_at + stage * QUERIES + row, log_sums + at, row < rows);
            else start_copy(deltas_at + stage * QUERIES + row, deltas + at, row < rows);
        }
    };
    start_rows<D, ROWS>(ks, k, key, keys, key_width, key_head * d, d);
    start_rows<D, ROWS>(vs, v, key, keys, key_width, key_head * d, d);
    if (count) start_tile(0, 0);

    Sum key_sums[N / 8] = {}, value_sums[N / 8] = {};
    for (uint32_t tile = 0, stage = 0; tile < count; tile++) {
        uint32_t head = key_head * group + tile / tiles_of_head, position = first + tile % tiles_of_head * QUERIES;
        size_t query = sequence.query + position - sequence.position;
        uint32_t rows = min(QUERIES, last - position);
        finish_copies();
        __syncthreads();
        const bf16 *queries_at = qs + stage * QUERY_SIZE, *gradients_at = gs + stage * QUERY_SIZE;
        if (STAGES > 1 && tile + 1 < count) start_tile(tile + 1, stage ^ 1);
        // Keys by queries: the transposes of scores and of ∂L/∂o vᵀ.
        Sum scores[QUERIES / 8] = {}, products[QUERIES / 8] = {};
        add_product_of_rows<QUERIES, D>(scores, ks + first_row * STRIDE, queries_at, STRIDE);
        add_product_of_rows<QUERIES, D>(products, vs + first_row * STRIDE, gradients_at, STRIDE);

        Corner corner = {head, query, key, position, start};
        bool is_whole = rows == QUERIES && corner.sees_all(shape, QUERIES, ROWS);
        const float *bases = log_sums_at + stage * QUERIES, *pulls = deltas_at + stage * QUERIES;
        in_mode(bent, is_whole, [&](auto mode) {
#pragma unroll
            for (uint32_t part = 0; part < QUERIES / 8; part++)
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    uint32_t row = 8 * part + 2 * (lane % 4) + side;
                    float base = LOG2_E * bases[row], pull = pulls[row];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        uint32_t at = first_row + lane / 4 + 8 * half;
                        float &score = scores[part][2 * half + side], &product = products[part][2 * half + side];
                        bool is_seen = mode.VALUE == 0 || (row < rows && corner.sees(shape, row, at));
                        float probability = 0.0f, slope = 0.0f;
                        if (mode.VALUE == 2) {
                            if (is_seen && at < keys) {
                                float bend, count = corner.factor(shape, row, at);
                                float bent_score = LOG2_E * corner.score(shape, plain, score, row, at, bend);
                                probability = power_of_2(bent_score - base);
                                slope = probability * (count * product - pull) * bend;
                                probability *= count;
                            }
                        } else {
                            probability = is_seen ? power_of_2(scale * score - base) : 0.0f;
                            slope = probability * (product - pull);
                        }
                        score = probability;
                        product = slope;
                    }
                }
        });
        add_product_of_sums<N, QUERIES>(value_sums, scores, gradients_at + column, STRIDE);
        add_product_of_sums<N, QUERIES>(key_sums, products, queries_at + column, STRIDE);
        if (STAGES > 1) {
            stage ^= 1;
        } else if (tile + 1 < count) {
            __syncthreads();
            start_tile(tile + 1, 0);
        }
    }
    finish_copies();
    if (column >= d) return;
    float scales[2] = {shape.scale, shape.scale}, ones[2] = {1.0f, 1.0f};
    store_sums<N>(gk, key_sums, key, first_row, keys, key_width, key_head * d + column, d - column, scales);
    store_sums<N>(gv, value_sums, key, first_row, keys, key_width, key_head * d + column, d - column, ones);
}

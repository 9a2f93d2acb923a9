// What the kernels of attention share: its shape, and the score of a query and a key.
#pragma once

#include "common.cuh"

// A sequence: its first row of q and how many, the position of that first query, its first row of k
// and v and how many.
struct Sequence {
    uint32_t query, queries, position, key, length;
};

// What all tiles share: `Shape` in attention.rs.
struct Shape {
    uint32_t heads, key_heads, head_size, tokens, tile;
    // 0: no window, no cap.
    uint32_t is_causal, window;
    float scale, cap;
    // Dropout of probabilities; a scale of 0: off.
    Stream stream;
    uint32_t threshold;
    float kept_scale;
    // Scores by distance; without rows there are none. Rows of the distances −longest ..= longest.
    uint32_t longest;
    const uint32_t *rows;
    // Rows of the tables. Products with them, (queries, heads, table) and (keys, heads, table), and (table, heads).
    size_t table;
    const float *of_queries, *of_keys, *bias;
    // ∂L/∂S, (queries, heads, longest + 1), where the gradient of the tables is wanted.
    float *slopes;
};

// A query and a key: their rows, and their positions in their sequence.
struct Pair {
    uint32_t head;
    size_t query, key;
    uint32_t query_position, key_position;
};

// The score of a product q·k, bent if the model does that; `slope` is its derivative by the product's
// scaled value.
__device__ __forceinline__ float score_of(const Shape &shape, float product, const Pair &pair, float &slope) {
    float bias = 0.0f;
    if (shape.rows) {
        size_t row = shape.rows[shape.longest + pair.query_position - pair.key_position];
        if (shape.of_queries) product += shape.of_queries[(pair.query * shape.heads + pair.head) * shape.table + row];
        if (shape.of_keys) product += shape.of_keys[(pair.key * shape.heads + pair.head) * shape.table + row];
        if (shape.bias) bias = shape.bias[row * shape.heads + pair.head];
    }
    float score = shape.scale * product + bias;
    slope = 1.0f;
    if (shape.cap > 0.0f) {
        float t = tanhf(score / shape.cap);
        slope = 1.0f - t * t;
        score = shape.cap * t;
    }
    return score;
}

__device__ __forceinline__ float *slopes_of(const Shape &shape, size_t query, uint32_t head) {
    return shape.slopes + (query * shape.heads + head) * (shape.longest + 1);
}

// Whether the query at position `query` of its sequence sees the key at position `key`.
__device__ __forceinline__ bool sees(const Shape &shape, uint32_t query, uint32_t key) {
    if (shape.is_causal && key > query) return false;
    return !shape.window || (key + shape.window > query && (shape.is_causal || query + shape.window > key));
}

// What the probability of a query's row for a key's row counts for under dropout.
__device__ __forceinline__ float factor(const Shape &shape, uint32_t query, uint32_t head, uint32_t key) {
    if (shape.kept_scale == 0.0f) return 1.0f;
    uint64_t element = ((uint64_t)query * shape.heads + head) * shape.tokens + key;
    return kept(shape.stream, element, shape.threshold, shape.kept_scale);
}

// The positions of keys that queries at positions first ..= last see lie in [start, end).
__device__ __forceinline__ void keys_of(const Shape &shape, const Sequence &sequence, uint32_t first, uint32_t last,
                                        uint32_t &start, uint32_t &end) {
    start = shape.window && first + 1 > shape.window ? first + 1 - shape.window : 0;
    end = sequence.length;
    if (shape.is_causal) end = min(end, last + 1);
    else if (shape.window) end = min(end, last + shape.window);
}

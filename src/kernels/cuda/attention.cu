// Grouped-query attention over unpadded sequences (Dao, 2023, "FlashAttention-2"): a block for each
// tile of queries and head. The forward saves the log of the sum of a row's exponentials, the backward
// computes the scores again from it: once for the queries' gradient, once for the keys' and values', so
// that every sum has a fixed order.
//
// Here in f32, to compare with: scores of a tile lie in shared memory. attention_bf16.cuh is what training
// usually runs.

#include "attention_bf16.cuh"

// A matrix in shared memory. `stride` leaves room after each row, against conflicts between banks.
struct Tile {
    float *at;
    uint32_t stride;
    __device__ float *row(uint32_t r) const { return at + (size_t)r * stride; }
};

// Hands out shared memory. attention.rs counts the same.
struct Arena {
    float *next;
    __device__ Tile tile(uint32_t rows, uint32_t columns) {
        Tile tile = {next, columns + 4};
        next += (size_t)rows * tile.stride;
        return tile;
    }
};

// Rows first .. first + count of a head of a matrix whose rows have `width` elements; zero up to `tile` rows.
__device__ void load_rows(Tile to, const float *from, size_t first, uint32_t count, uint32_t width, uint32_t column,
                          uint32_t columns, uint32_t tile) {
    from += first * width + column;
    for (uint32_t e = threadIdx.x; e < tile * columns; e += blockDim.x) {
        uint32_t row = e / columns, at = e % columns;
        to.row(row)[at] = row < count ? from[(size_t)row * width + at] : 0.0f;
    }
}

__device__ void store_rows(float *to, Tile from, size_t first, uint32_t count, uint32_t width, uint32_t column,
                           uint32_t columns, float scale) {
    to += first * width + column;
    for (uint32_t e = threadIdx.x; e < count * columns; e += blockDim.x) {
        uint32_t row = e / columns, at = e % columns;
        to[(size_t)row * width + at] = scale * from.row(row)[at];
    }
}

__device__ void clear(Tile tile, uint32_t rows, uint32_t columns) {
    for (uint32_t e = threadIdx.x; e < rows * columns; e += blockDim.x) tile.row(e / columns)[e % columns] = 0.0f;
}

// c (m × n) = a (m × k) · b (k × n), or += that. TA: a is stored (k × m). TB: b is stored (n × k).
// Blocks of threads do it together; callers synchronize.
template <bool TA, bool TB>
__device__ void multiply(Tile c, Tile a, Tile b, uint32_t m, uint32_t n, uint32_t k,
                         bool accumulate) {
    for (uint32_t e = threadIdx.x; e < m * n; e += blockDim.x) {
        uint32_t i = e / n, j = e % n;
        float sum = accumulate ? c.row(i)[j] : 0.0f;
        for (uint32_t l = 0; l < k; l++) {
            float x = TA ? a.row(l)[i] : a.row(i)[l];
            float y = TB ? b.row(j)[l] : b.row(l)[j];
            sum += x * y;
        }
        c.row(i)[j] = sum;
    }
}

// Declares a kernel: name_f32, and for bf16 one for each width of heads. Registers are to suffice for as many blocks
// of the narrowest on a multiprocessor as made it fastest (H100).
#define ATTENTION_KERNEL(name, T_PARAMS, ARGS, BLOCKS)                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_f32 T_PARAMS(float) { name ARGS; }                     \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) name##_bf16_64 T_PARAMS(bf16) { name##_of<64> ARGS; }    \
    extern "C" __global__ void __launch_bounds__(128, 2) name##_bf16_128 T_PARAMS(bf16) { name##_of<128> ARGS; }       \
    extern "C" __global__ void __launch_bounds__(128, 2) name##_bf16_256 T_PARAMS(bf16) { name##_of<256> ARGS; }

// tiles: pairs (sequence, its first query). A block: (head, tile).
__device__ void attention(float *out, float *log_sums, const float *q, const float *k, const float *v,
                          const Sequence *sequences, const uint32_t *tiles, const Shape &shape) {
    uint32_t head = blockIdx.x, key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t offset = tiles[2 * blockIdx.y + 1], B = shape.tile;
    uint32_t rows = min(B, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;
    uint32_t warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;

    Arena arena = {reinterpret_cast<float *>(shared_memory)};
    Tile qs = arena.tile(B, d), ks = arena.tile(B, d), vs = arena.tile(B, d), p = arena.tile(B, B);
    Tile scores = arena.tile(B, B), sums = arena.tile(B, d);
    float *maxima = arena.tile(1, 2 * B).at, *totals = maxima + B;

    load_rows(qs, q, query, rows, query_width, head * d, d, B);
    clear(sums, B, d);
    for (uint32_t row = threadIdx.x; row < B; row += blockDim.x) {
        maxima[row] = -INFINITY;
        totals[row] = 0.0f;
    }
    uint32_t start, end;
    keys_of(shape, sequence, position, position + rows - 1, start, end);
    for (; start < end; start += B) {
        uint32_t keys = min(B, end - start);
        __syncthreads();
        load_rows(ks, k, (size_t)sequence.key + start, keys, key_width, key_head * d, d, B);
        load_rows(vs, v, (size_t)sequence.key + start, keys, key_width, key_head * d, d, B);
        __syncthreads();
        multiply<false, true>(scores, qs, ks, B, B, d, false);
        __syncthreads();
        for (uint32_t row = warp; row < B; row += warps) {
            float *s = scores.row(row), largest = -INFINITY, slope;
            for (uint32_t key = lane; key < B; key += WARP) {
                bool is_seen = row < rows && key < keys && sees(shape, position + row, start + key);
                Pair pair = {head, query + row, (size_t)sequence.key + start + key, position + row, start + key};
                s[key] = is_seen ? score_of(shape, s[key], pair, slope) : -INFINITY;
                largest = fmaxf(largest, s[key]);
            }
            float before = maxima[row], maximum = fmaxf(before, warp_max(largest)), total = 0.0f;
            // A row that has seen nothing yet keeps its zeros.
            float rescale = before == -INFINITY ? 0.0f : expf(before - maximum);
            for (uint32_t key = lane; key < B; key += WARP) {
                float e = s[key] == -INFINITY ? 0.0f : expf(s[key] - maximum);
                total += e;
                if (e > 0.0f) e *= factor(shape, query + row, head, sequence.key + start + key);
                p.row(row)[key] = (e);
            }
            total = warp_sum(total);
            __syncwarp();
            if (lane == 0) {
                maxima[row] = maximum;
                totals[row] = totals[row] * rescale + total;
            }
            for (uint32_t column = lane; column < d; column += WARP) sums.row(row)[column] *= rescale;
        }
        __syncthreads();
        multiply<false, false>(sums, p, vs, B, d, B, true);
    }
    __syncthreads();
    for (uint32_t row = warp; row < rows; row += warps) {
        for (uint32_t column = lane; column < d; column += WARP) sums.row(row)[column] /= totals[row];
        if (lane == 0) log_sums[(query + row) * shape.heads + head] = maxima[row] + logf(totals[row]);
    }
    __syncthreads();
    store_rows(out, sums, query, rows, query_width, head * d, d, 1.0f);
}
#define PARAMS(T)                                                                                                      \
    (T * out, float *log_sums, const T *q, const T *k, const T *v, const Sequence *sequences, const uint32_t *tiles,   \
     const __grid_constant__ Shape shape)
ATTENTION_KERNEL(attention, PARAMS, (out, log_sums, q, k, v, sequences, tiles, shape), 3)
#undef PARAMS

// δ = Σ ∂L/∂o · o of each query and head: a warp each.
template <typename T>
__device__ void attention_deltas(float *deltas, const T *g, const T *out, size_t n, uint32_t head_size) {
    size_t at = global_thread() / WARP;
    if (at >= n) return;
    float sum = 0.0f;
    for (uint32_t c = threadIdx.x % WARP; c < head_size; c += WARP)
        sum += to_float(g[at * head_size + c]) * to_float(out[at * head_size + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) deltas[at] = sum;
}
#define PARAMS(T) (float *deltas, const T *g, const T *out, size_t n, uint32_t head_size)
KERNEL(attention_deltas, PARAMS, (deltas, g, out, n, head_size))
#undef PARAMS

// What both backward kernels hold of a tile.
struct Backward {
    Tile qs, gs, ks, vs, slopes;
    Tile scores, products;
};

__device__ Backward backward_tiles(Arena &arena, uint32_t B, uint32_t d) {
    Backward tiles;
    tiles.qs = arena.tile(B, d);
    tiles.gs = arena.tile(B, d);
    tiles.ks = arena.tile(B, d);
    tiles.vs = arena.tile(B, d);
    tiles.slopes = arena.tile(B, B);
    tiles.scores = arena.tile(B, B);
    tiles.products = arena.tile(B, B);
    return tiles;
}

// Scores of a tile, and from them ∂L/∂S = P ∘ (∂L/∂o vᵀ − δ) in `slopes`, and the probabilities as v was
// multiplied by them in `p`, if it is wanted. Rows `rows` and keys `keys` are real.
__device__ void score_slopes(const Backward &tiles, float *p, uint32_t p_stride, const Shape &shape,
                             const float *log_sums, const float *deltas, uint32_t head, size_t query, uint32_t position,
                             uint32_t rows, size_t key_row, uint32_t key_position, uint32_t keys) {
    uint32_t B = shape.tile, d = shape.head_size;
    multiply<false, true>(tiles.scores, tiles.qs, tiles.ks, B, B, d, false);
    multiply<false, true>(tiles.products, tiles.gs, tiles.vs, B, B, d, false);
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < B * B; e += blockDim.x) {
        uint32_t row = e / B, key = e % B;
        float probability = 0.0f, slope = 0.0f;
        if (row < rows && key < keys && sees(shape, position + row, key_position + key)) {
            size_t at = (query + row) * shape.heads + head;
            Pair pair = {head, query + row, key_row + key, position + row, key_position + key};
            float bend, score = score_of(shape, tiles.scores.row(row)[key], pair, bend);
            float count = factor(shape, query + row, head, key_row + key);
            probability = expf(score - log_sums[at]);
            slope = probability * (count * tiles.products.row(row)[key] - deltas[at]) * bend;
            probability *= count;
        }
        tiles.slopes.row(row)[key] = slope;
        if (p) p[row * p_stride + key] = probability;
    }
    __syncthreads();
}

// The gradient of q. A block: (head, tile of queries).
__device__ void attention_backward_q(float *gq, const float *g, const float *q, const float *k, const float *v,
                                     const float *log_sums, const float *deltas, const Sequence *sequences,
                                     const uint32_t *tiles, const Shape &shape) {
    uint32_t head = blockIdx.x, key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t offset = tiles[2 * blockIdx.y + 1], B = shape.tile;
    uint32_t rows = min(B, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;

    Arena arena = {reinterpret_cast<float *>(shared_memory)};
    Backward tile = backward_tiles(arena, B, d);
    Tile sums = arena.tile(B, d);

    clear(sums, B, d);
    load_rows(tile.qs, q, query, rows, query_width, head * d, d, B);
    load_rows(tile.gs, g, query, rows, query_width, head * d, d, B);
    uint32_t start, end;
    keys_of(shape, sequence, position, position + rows - 1, start, end);
    for (; start < end; start += B) {
        uint32_t keys = min(B, end - start);
        size_t key = (size_t)sequence.key + start;
        __syncthreads();
        load_rows(tile.ks, k, key, keys, key_width, key_head * d, d, B);
        load_rows(tile.vs, v, key, keys, key_width, key_head * d, d, B);
        __syncthreads();
        score_slopes(tile, nullptr, 0, shape, log_sums, deltas, head, query, position, rows, key, start, keys);
        if (shape.slopes)
            for (uint32_t e = threadIdx.x; e < rows * keys; e += blockDim.x) {
                uint32_t row = e / keys, at = e % keys;
                slopes_of(shape, query + row, head)[start + at] = tile.slopes.row(row)[at];
            }
        multiply<false, false>(sums, tile.slopes, tile.ks, B, d, B, true);
    }
    __syncthreads();
    store_rows(gq, sums, query, rows, query_width, head * d, d, shape.scale);
}
#define BACKWARD_PARAMS(T)                                                                                             \
    const T *g, const T *q, const T *k, const T *v, const float *log_sums, const float *deltas,                        \
        const Sequence *sequences, const uint32_t *tiles, const __grid_constant__ Shape shape
#define PARAMS(T) (T * gq, BACKWARD_PARAMS(T))
ATTENTION_KERNEL(attention_backward_q, PARAMS, (gq, g, q, k, v, log_sums, deltas, sequences, tiles, shape), 3)
#undef PARAMS

// The gradients of k and v, summed over the heads that share them. tiles: pairs (sequence, its first key).
// A block: (key head, tile of keys).
__device__ void attention_backward_kv(float *gk, float *gv, const float *g, const float *q, const float *k,
                                      const float *v, const float *log_sums, const float *deltas,
                                      const Sequence *sequences, const uint32_t *tiles, const Shape &shape) {
    uint32_t key_head = blockIdx.x, group = shape.heads / shape.key_heads, d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.y]];
    uint32_t start = tiles[2 * blockIdx.y + 1], B = shape.tile;
    uint32_t keys = min(B, sequence.length - start);
    size_t key = (size_t)sequence.key + start;

    Arena arena = {reinterpret_cast<float *>(shared_memory)};
    Backward tile = backward_tiles(arena, B, d);
    Tile p = arena.tile(B, B);
    Tile key_sums = arena.tile(B, d), value_sums = arena.tile(B, d);

    clear(key_sums, B, d);
    clear(value_sums, B, d);
    load_rows(tile.ks, k, key, keys, key_width, key_head * d, d, B);
    load_rows(tile.vs, v, key, keys, key_width, key_head * d, d, B);
    // Queries from the first to the last position that can see any of these keys.
    uint32_t first = shape.is_causal ? start : 0, last = sequence.position + sequence.queries;
    if (shape.window) {
        if (!shape.is_causal && start + 1 > shape.window) first = start + 1 - shape.window;
        last = min(last, start + keys - 1 + shape.window);
    }
    first = max(first, sequence.position);
    for (uint32_t member = 0; member < group; member++) {
        uint32_t head = key_head * group + member;
        for (uint32_t position = first; position < last; position += B) {
            uint32_t rows = min(B, last - position);
            size_t query = sequence.query + position - sequence.position;
            __syncthreads();
            load_rows(tile.qs, q, query, rows, query_width, head * d, d, B);
            load_rows(tile.gs, g, query, rows, query_width, head * d, d, B);
            __syncthreads();
            score_slopes(tile, p.at, p.stride, shape, log_sums, deltas, head, query, position, rows, key, start,
                            keys);
            multiply<true, false>(value_sums, p, tile.gs, B, d, B, true);
            multiply<true, false>(key_sums, tile.slopes, tile.qs, B, d, B, true);
        }
    }
    __syncthreads();
    store_rows(gk, key_sums, key, keys, key_width, key_head * d, d, shape.scale);
    store_rows(gv, value_sums, key, keys, key_width, key_head * d, d, 1.0f);
}
#define PARAMS(T) (T * gk, T *gv, BACKWARD_PARAMS(T))
ATTENTION_KERNEL(attention_backward_kv, PARAMS, (gk, gv, g, q, k, v, log_sums, deltas, sequences, tiles, shape), 2)
#undef PARAMS

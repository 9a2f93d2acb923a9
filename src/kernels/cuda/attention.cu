// Grouped-query attention over unpadded sequences (Dao, 2023, "FlashAttention-2"): a block for each
// tile of queries and head; scores of a tile exist in shared memory only. The forward saves the log of
// the sum of a row's exponentials, the backward computes the scores again from it: once for the
// queries' gradient, once for the keys' and values', so that every sum has a fixed order.

#include "attention.cuh"

using namespace nvcuda;

__device__ __forceinline__ uint32_t ceil16(uint32_t x) { return (x + 15) / 16 * 16; }

// Whether the query at position `query` of its sequence sees the key at position `key`.
__device__ __forceinline__ bool sees(const Shape &shape, uint32_t query, uint32_t key) {
    if (shape.is_causal && key > query) return false;
    return !shape.window || (key + shape.window > query && (shape.is_causal || query + shape.window > key));
}

// A matrix in shared memory. `stride` leaves room after each row, against conflicts between banks.
template <typename T> struct Tile {
    T *at;
    uint32_t stride;
    __device__ T *row(uint32_t r) const { return at + (size_t)r * stride; }
};

// Hands out shared memory, 32 bytes aligned, as wmma wants it. attention.rs counts the same.
struct Arena {
    char *next;
    template <typename T> __device__ Tile<T> tile(uint32_t rows, uint32_t columns) {
        Tile<T> tile = {reinterpret_cast<T *>(next), columns + 16 / (uint32_t)sizeof(T)};
        next += (size_t)rows * tile.stride * sizeof(T);
        return tile;
    }
};

// Rows first .. first + count of a head of a matrix whose rows have `width` elements; zero up to `tile`
// rows and to a multiple of 16 columns.
template <typename T>
__device__ void load_rows(Tile<T> to, const T *from, size_t first, uint32_t count, uint32_t width, uint32_t column,
                          uint32_t columns, uint32_t tile) {
    const uint32_t W = Pack<T>::WIDTH;
    from += first * width + column;
    if (columns % 16 == 0) {
        uint32_t packs = columns / W;
        for (uint32_t e = threadIdx.x; e < tile * packs; e += blockDim.x) {
            uint32_t row = e / packs, at = e % packs * W;
            Pack<T> pack;
            if (row < count) {
                pack = load_pack(from + (size_t)row * width + at);
            } else {
                for (uint32_t w = 0; w < W; w++) pack.at[w] = from_float<T>(0.0f);
            }
            store_pack(to.row(row) + at, pack);
        }
    } else {
        uint32_t padded = ceil16(columns);
        for (uint32_t e = threadIdx.x; e < tile * padded; e += blockDim.x) {
            uint32_t row = e / padded, at = e % padded;
            bool is_inside = row < count && at < columns;
            to.row(row)[at] = is_inside ? from[(size_t)row * width + at] : from_float<T>(0.0f);
        }
    }
}

template <typename T>
__device__ void store_rows(T *to, Tile<float> from, size_t first, uint32_t count, uint32_t width, uint32_t column,
                           uint32_t columns, float scale) {
    to += first * width + column;
    for (uint32_t e = threadIdx.x; e < count * columns; e += blockDim.x) {
        uint32_t row = e / columns, at = e % columns;
        to[(size_t)row * width + at] = from_float<T>(scale * from.row(row)[at]);
    }
}

__device__ void clear(Tile<float> tile, uint32_t rows, uint32_t columns) {
    for (uint32_t e = threadIdx.x; e < rows * columns; e += blockDim.x) tile.row(e / columns)[e % columns] = 0.0f;
}

// c (m × n) = a (m × k) · b (k × n), or += that. TA: a is stored (k × m). TB: b is stored (n × k). Sizes are
// multiples of 16. Blocks of threads do it together; callers synchronize.
template <bool TA, bool TB>
__device__ void multiply(Tile<float> c, Tile<float> a, Tile<float> b, uint32_t m, uint32_t n, uint32_t k,
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

template <bool IS_TRANSPOSED> struct Layout { typedef wmma::row_major Kind; };
template <> struct Layout<true> { typedef wmma::col_major Kind; };

typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> Fragment;

// sum += the 16 × 16 numbers of a · b from row i and column j on; a warp does it together.
template <bool TA, bool TB>
__device__ __forceinline__ void add_product(Fragment &sum, Tile<bf16> a, Tile<bf16> b, uint32_t i, uint32_t j,
                                            uint32_t k) {
    for (uint32_t l = 0; l < k; l += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, bf16, typename Layout<TA>::Kind> x;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, bf16, typename Layout<TB>::Kind> y;
        wmma::load_matrix_sync(x, TA ? a.row(l) + i : a.row(i) + l, a.stride);
        wmma::load_matrix_sync(y, TB ? b.row(j) + l : b.row(l) + j, b.stride);
        wmma::mma_sync(sum, x, y, sum);
    }
}

template <bool TA, bool TB>
__device__ void multiply(Tile<float> c, Tile<bf16> a, Tile<bf16> b, uint32_t m, uint32_t n, uint32_t k,
                         bool accumulate) {
    uint32_t warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (uint32_t part = warp; part < m / 16 * (n / 16); part += warps) {
        uint32_t i = part / (n / 16) * 16, j = part % (n / 16) * 16;
        Fragment sum;
        if (accumulate) {
            wmma::load_matrix_sync(sum, c.row(i) + j, c.stride, wmma::mem_row_major);
        } else {
            wmma::fill_fragment(sum, 0.0f);
        }
        add_product<TA, TB>(sum, a, b, i, j, k);
        wmma::store_matrix_sync(c.row(i) + j, sum, c.stride, wmma::mem_row_major);
    }
}

// A sum of products, rows × columns, over a loop: in shared memory for f32, in registers for bf16.
template <typename T> struct Sums;

template <> struct Sums<float> {
    Tile<float> tile;
    uint32_t rows, columns;

    __device__ Sums(Arena &arena, uint32_t rows, uint32_t columns)
        : tile(arena.tile<float>(rows, columns)), rows(rows), columns(columns) {
        clear(tile, rows, columns);
    }
    // += a · b, or aᵀ · b; k: what is summed over.
    template <bool TA> __device__ void add(Tile<float> a, Tile<float> b, uint32_t k) {
        multiply<TA, false>(tile, a, b, rows, columns, k, true);
    }
    // The sum in shared memory, for bf16 in what starts at `free`. Callers synchronize before and after.
    __device__ Tile<float> finish(char *) const { return tile; }
};

template <> struct Sums<bf16> {
    // Fragments of a warp; attention.rs chooses tiles whose sums have no more.
    static const uint32_t MOST = 4;
    Fragment parts[MOST];
    uint32_t rows, columns;

    __device__ Sums(Arena &, uint32_t rows, uint32_t columns) : rows(rows), columns(columns) {
#pragma unroll
        for (uint32_t index = 0; index < MOST; index++) wmma::fill_fragment(parts[index], 0.0f);
    }
    // f(fragment, its first row, its first column) for those of this warp.
    template <typename F> __device__ __forceinline__ void each(F f) {
        uint32_t warp = threadIdx.x / WARP, warps = blockDim.x / WARP, across = columns / 16;
#pragma unroll
        for (uint32_t index = 0; index < MOST; index++) {
            uint32_t part = warp + index * warps;
            if (part < rows / 16 * across) f(parts[index], part / across * 16, part % across * 16);
        }
    }
    template <bool TA> __device__ void add(Tile<bf16> a, Tile<bf16> b, uint32_t k) {
        each([&](Fragment &sum, uint32_t i, uint32_t j) { add_product<TA, false>(sum, a, b, i, j, k); });
    }
    __device__ Tile<float> finish(char *free) {
        Arena arena = {free};
        Tile<float> tile = arena.tile<float>(rows, columns);
        each([&](Fragment &sum, uint32_t i, uint32_t j) {
            wmma::store_matrix_sync(tile.row(i) + j, sum, tile.stride, wmma::mem_row_major);
        });
        return tile;
    }
};

// What the probability of a query's row for a key's row counts for under dropout.
__device__ __forceinline__ float factor(const Shape &shape, uint32_t query, uint32_t head, uint32_t key) {
    if (shape.kept_scale == 0.0f) return 1.0f;
    uint64_t element = ((uint64_t)query * shape.heads + head) * shape.tokens + key;
    return kept(shape.stream, element, shape.threshold, shape.kept_scale);
}

extern __shared__ __align__(128) char shared_memory[];

// The positions of keys that queries at positions first ..= last see lie in [start, end).
__device__ __forceinline__ void keys_of(const Shape &shape, const Sequence &sequence, uint32_t first, uint32_t last,
                                        uint32_t &start, uint32_t &end) {
    start = shape.window && first + 1 > shape.window ? first + 1 - shape.window : 0;
    end = sequence.length;
    if (shape.is_causal) end = min(end, last + 1);
    else if (shape.window) end = min(end, last + shape.window);
}

// tiles: pairs (sequence, its first query). A block: (tile, head).
template <typename T>
__device__ void attention(T *out, float *log_sums, const T *q, const T *k, const T *v, const Sequence *sequences,
                          const uint32_t *tiles, const Shape &shape) {
    uint32_t head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.x]];
    uint32_t offset = tiles[2 * blockIdx.x + 1], B = shape.tile, D = ceil16(d);
    uint32_t rows = min(B, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;
    uint32_t warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;

    Arena arena = {shared_memory};
    Tile<T> qs = arena.tile<T>(B, D), ks = arena.tile<T>(B, D), vs = arena.tile<T>(B, D), p = arena.tile<T>(B, B);
    Tile<float> scores = arena.tile<float>(B, B), sums = arena.tile<float>(B, D);
    float *maxima = arena.tile<float>(1, 2 * B).at, *totals = maxima + B;

    load_rows(qs, q, query, rows, query_width, head * d, d, B);
    clear(sums, B, D);
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
        multiply<false, true>(scores, qs, ks, B, B, D, false);
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
                p.row(row)[key] = from_float<T>(e);
            }
            total = warp_sum(total);
            __syncwarp();
            if (lane == 0) {
                maxima[row] = maximum;
                totals[row] = totals[row] * rescale + total;
            }
            for (uint32_t column = lane; column < D; column += WARP) sums.row(row)[column] *= rescale;
        }
        __syncthreads();
        multiply<false, false>(sums, p, vs, B, D, B, true);
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
     Shape shape)
KERNEL(attention, PARAMS, (out, log_sums, q, k, v, sequences, tiles, shape))
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
template <typename T> struct Backward {
    Tile<T> qs, gs, ks, vs, slopes;
    Tile<float> scores, products;
};

template <typename T> __device__ Backward<T> backward_tiles(Arena &arena, uint32_t B, uint32_t D) {
    Backward<T> tiles;
    tiles.qs = arena.tile<T>(B, D);
    tiles.gs = arena.tile<T>(B, D);
    tiles.ks = arena.tile<T>(B, D);
    tiles.vs = arena.tile<T>(B, D);
    tiles.slopes = arena.tile<T>(B, B);
    tiles.scores = arena.tile<float>(B, B);
    tiles.products = arena.tile<float>(B, B);
    return tiles;
}

// Scores of a tile, and from them ∂L/∂S = P ∘ (∂L/∂o vᵀ − δ) in `slopes`, and the probabilities as v was
// multiplied by them in `p`, if it is wanted. Rows `rows` and keys `keys` are real.
template <typename T>
__device__ void score_slopes(const Backward<T> &tiles, T *p, uint32_t p_stride, const Shape &shape,
                             const float *log_sums, const float *deltas, uint32_t head, size_t query, uint32_t position,
                             uint32_t rows, size_t key_row, uint32_t key_position, uint32_t keys) {
    uint32_t B = shape.tile, D = ceil16(shape.head_size);
    multiply<false, true>(tiles.scores, tiles.qs, tiles.ks, B, B, D, false);
    multiply<false, true>(tiles.products, tiles.gs, tiles.vs, B, B, D, false);
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
        tiles.slopes.row(row)[key] = from_float<T>(slope);
        if (p) p[row * p_stride + key] = from_float<T>(probability);
    }
    __syncthreads();
}

// The gradient of q. A block: (tile of queries, head).
template <typename T>
__device__ void attention_backward_q(T *gq, const T *g, const T *q, const T *k, const T *v, const float *log_sums,
                                     const float *deltas, const Sequence *sequences, const uint32_t *tiles,
                                     const Shape &shape) {
    uint32_t head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads), d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.x]];
    uint32_t offset = tiles[2 * blockIdx.x + 1], B = shape.tile, D = ceil16(d);
    uint32_t rows = min(B, sequence.queries - offset);
    size_t query = sequence.query + offset;
    uint32_t position = sequence.position + offset;

    Arena arena = {shared_memory};
    Backward<T> tile = backward_tiles<T>(arena, B, D);
    Sums<T> sums(arena, B, D);

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
        score_slopes<T>(tile, nullptr, 0, shape, log_sums, deltas, head, query, position, rows, key, start, keys);
        if (shape.slopes)
            for (uint32_t e = threadIdx.x; e < rows * keys; e += blockDim.x) {
                uint32_t row = e / keys, at = e % keys;
                slopes_of(shape, query + row, head)[start + at] = to_float(tile.slopes.row(row)[at]);
            }
        sums.template add<false>(tile.slopes, tile.ks, B);
    }
    __syncthreads();
    Tile<float> done = sums.finish(shared_memory);
    __syncthreads();
    store_rows(gq, done, query, rows, query_width, head * d, d, shape.scale);
}
#define BACKWARD_PARAMS(T)                                                                                             \
    const T *g, const T *q, const T *k, const T *v, const float *log_sums, const float *deltas,                        \
        const Sequence *sequences, const uint32_t *tiles, Shape shape
#define PARAMS(T) (T * gq, BACKWARD_PARAMS(T))
KERNEL(attention_backward_q, PARAMS, (gq, g, q, k, v, log_sums, deltas, sequences, tiles, shape))
#undef PARAMS

// The gradients of k and v, summed over the heads that share them. tiles: pairs (sequence, its first key).
// A block: (tile of keys, key head).
template <typename T>
__device__ void attention_backward_kv(T *gk, T *gv, const T *g, const T *q, const T *k, const T *v,
                                      const float *log_sums, const float *deltas, const Sequence *sequences,
                                      const uint32_t *tiles, const Shape &shape) {
    uint32_t key_head = blockIdx.y, group = shape.heads / shape.key_heads, d = shape.head_size;
    uint32_t query_width = shape.heads * d, key_width = shape.key_heads * d;
    Sequence sequence = sequences[tiles[2 * blockIdx.x]];
    uint32_t start = tiles[2 * blockIdx.x + 1], B = shape.tile, D = ceil16(d);
    uint32_t keys = min(B, sequence.length - start);
    size_t key = (size_t)sequence.key + start;

    Arena arena = {shared_memory};
    Backward<T> tile = backward_tiles<T>(arena, B, D);
    Tile<T> p = arena.tile<T>(B, B);
    Sums<T> key_sums(arena, B, D), value_sums(arena, B, D);

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
            score_slopes<T>(tile, p.at, p.stride, shape, log_sums, deltas, head, query, position, rows, key, start,
                            keys);
            value_sums.template add<true>(p, tile.gs, B);
            key_sums.template add<true>(tile.slopes, tile.qs, B);
        }
    }
    __syncthreads();
    Tile<float> done = key_sums.finish(shared_memory);
    __syncthreads();
    store_rows(gk, done, key, keys, key_width, key_head * d, d, shape.scale);
    __syncthreads();
    done = value_sums.finish(shared_memory);
    __syncthreads();
    store_rows(gv, done, key, keys, key_width, key_head * d, d, 1.0f);
}
#define PARAMS(T) (T * gk, T *gv, BACKWARD_PARAMS(T))
KERNEL(attention_backward_kv, PARAMS, (gk, gv, g, q, k, v, log_sums, deltas, sequences, tiles, shape))
#undef PARAMS

// The gradient of attention's scores summed by the distance of query and key: a thread for each query, or key, and
// head, which goes along the others in their order. Rows of distances ascend, so each row is written once, or left zero.

#include "attention.cuh"

// out: (queries, heads, table), cleared. tiles: pairs (sequence, its first query). A block: (tile, head).
template <typename T>
__device__ void slopes_by_query(T *out, const Sequence *sequences, const uint32_t *tiles, const Shape &shape) {
    uint32_t head = blockIdx.y, offset = tiles[2 * blockIdx.x + 1] + threadIdx.x;
    Sequence sequence = sequences[tiles[2 * blockIdx.x]];
    if (offset >= sequence.queries) return;
    size_t query = (size_t)sequence.query + offset;
    const uint32_t *rows = shape.rows + shape.longest + sequence.position + offset;
    const float *slopes = slopes_of(shape, query, head);
    T *sums = out + (query * shape.heads + head) * shape.table;
    float sum = 0.0f;
    for (uint32_t key = 0; key < sequence.length; key++) {
        uint32_t row = *(rows - key);
        sum += slopes[key];
        if (key + 1 == sequence.length || *(rows - key - 1) != row) {
            sums[row] = from_float<T>(sum);
            sum = 0.0f;
        }
    }
}
#define PARAMS(T) (T * out, const Sequence *sequences, const uint32_t *tiles, Shape shape)
KERNEL(slopes_by_query, PARAMS, (out, sequences, tiles, shape))
#undef PARAMS

// out: (keys, heads, table), cleared. tiles: pairs (sequence, its first key).
template <typename T>
__device__ void slopes_by_key(T *out, const Sequence *sequences, const uint32_t *tiles, const Shape &shape) {
    uint32_t head = blockIdx.y, key = tiles[2 * blockIdx.x + 1] + threadIdx.x;
    Sequence sequence = sequences[tiles[2 * blockIdx.x]];
    if (key >= sequence.length) return;
    const uint32_t *rows = shape.rows + shape.longest + sequence.position - key;
    T *sums = out + (((size_t)sequence.key + key) * shape.heads + head) * shape.table;
    float sum = 0.0f;
    for (uint32_t query = 0; query < sequence.queries; query++) {
        uint32_t row = rows[query];
        sum += slopes_of(shape, (size_t)sequence.query + query, head)[key];
        if (query + 1 == sequence.queries || rows[query + 1] != row) {
            sums[row] = from_float<T>(sum);
            sum = 0.0f;
        }
    }
}
#define PARAMS(T) (T * out, const Sequence *sequences, const uint32_t *tiles, Shape shape)
KERNEL(slopes_by_key, PARAMS, (out, sequences, tiles, shape))
#undef PARAMS

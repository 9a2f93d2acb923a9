// The low-rank products of adapters in bf16, each in one pass over the activations, whose dropout is drawn on the way:
// one side of such a product has a few columns only, so it is as fast as memory. There is a kernel for ranks up to 16,
// and one for ranks up to 64; widths are multiples of 8. What others need, cuBLAS does (low_rank.rs).

#include "tensor_cores.cuh"

const uint32_t BLOCK_WARPS = 8;

typedef Pack<bf16> Eight;

// Declares a kernel for ranks up to 16, of which so many blocks fit on a multiprocessor, and one for ranks up to 64,
// which needs more registers.
#define RANK_KERNEL(name, T_PARAMS, ARGS, BLOCKS)                                                                      \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) name##_16 T_PARAMS(bf16) { name<16> ARGS; }              \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_64 T_PARAMS(bf16) { name<64> ARGS; }

__device__ __forceinline__ uint32_t pair_of(bf16 low, bf16 high) {
    return __bfloat16_as_ushort(low) | (uint32_t)__bfloat16_as_ushort(high) << 16;
}

__device__ __forceinline__ uint32_t two_of(const Eight &pack, int pair) {
    return pair_of(pack.at[2 * pair], pack.at[2 * pair + 1]);
}

// Numbers k and k + 1 of a row of `rank`, k even; zero beyond the rank, and where there is no row.
__device__ __forceinline__ uint32_t two_of_row(const bf16 *row, uint32_t k, uint32_t rank, bool is_there) {
    bf16 zero = from_float<bf16>(0.0f);
    if (rank % 2 == 0) {
        struct alignas(4) Two {
            bf16 low, high;
        };
        if (!is_there || k >= rank) return 0;
        Two two = *reinterpret_cast<const Two *>(row + k);
        return pair_of(two.low, two.high);
    }
    return pair_of(is_there && k < rank ? row[k] : zero, is_there && k + 1 < rank ? row[k + 1] : zero);
}

// The same of a column, whose numbers are `stride` apart.
__device__ __forceinline__ uint32_t two_of_column(const bf16 *column, uint32_t stride, bool is_first, bool is_second) {
    bf16 zero = from_float<bf16>(0.0f);
    return pair_of(is_first ? column[0] : zero, is_second ? column[stride] : zero);
}

// Which of the eight elements from `element` on, a multiple of 4, dropout keeps: a bit each.
__device__ __forceinline__ uint32_t kept_bits(const Stream &stream, size_t element, uint32_t threshold) {
    uint32_t bits = 0;
#pragma unroll
    for (int quad = 0; quad < 2; quad++) {
        uint32_t numbers[4];
        philox(stream, element / 4 + quad, numbers);
#pragma unroll
        for (int i = 0; i < 4; i++) bits |= (uint32_t)(numbers[i] >= threshold) << (4 * quad + i);
    }
    return bits;
}

// Eight elements as dropout leaves them.
__device__ __forceinline__ Eight dropped(Eight pack, uint32_t bits, float scale) {
#pragma unroll
    for (int i = 0; i < 8; i++)
        pack.at[i] = from_float<bf16>(bits >> i & 1 ? scale * to_float(pack.at[i]) : 0.0f);
    return pack;
}

__device__ __forceinline__ Eight eight_zeros() {
    Eight zeros;
#pragma unroll
    for (int i = 0; i < 8; i++) zeros.at[i] = from_float<bf16>(0.0f);
    return zeros;
}

// out = base + scale · mask(u W): u (rows × rank); W (rank × width), or, where `is_transposed`, (width × rank).
// `kept`: the mask, as `low_rank_inputs` writes it, or none. `out` may be `base`. A warp: 32 columns, whose part of W it holds, of some rows.
template <uint32_t MOST_RANK>
__device__ __forceinline__ void add_low_rank(bf16 *out, const bf16 *base, const bf16 *u, const bf16 *w, uint32_t rows,
                                             uint32_t rank, uint32_t width, int is_transposed, float scale,
                                             const uint8_t *kept) {
    uint32_t lane = threadIdx.x % WARP, group = lane / 4, member = lane % 4;
    uint32_t first_column = (blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP) * 32;
    if (first_column >= width) return;
    // Column c of part j of the product is column 8 (c / 2) + 2 j + c % 2 of these 32: so a thread has eight neighbours.
    uint32_t right[MOST_RANK / 16][4][2];
#pragma unroll
    for (uint32_t step = 0; step < MOST_RANK / 16; step++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t column = first_column + group / 2 * 8 + 2 * part + group % 2;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t k = 16 * step + 8 * half + 2 * member;
                bool is_there = column < width;
                right[step][part][half] =
                    is_transposed ? two_of_row(w + (size_t)column * rank, k, rank, is_there)
                                  : two_of_column(w + (size_t)k * width + column, width, is_there && k < rank,
                                                  is_there && k + 1 < rank);
            }
        }
    }
    uint32_t column = first_column + 8 * member;
    bool is_inside = column < width;
for (uint32_t row = 16 * blockIdx.y; row < rows; row += 16 * gridDim.y) {
        // All that is read comes first, so that many reads are under way.
        Eight before[2];
        uint32_t bits[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t r = row + group + 8 * half;
            if (r >= rows || !is_inside) continue;
            size_t element = (size_t)r * width + column;
            before[half] = load_pack(base + element);
            bits[half] = kept ? kept[element / 8] : 0xff;
        }
        Sum sums[4] = {};
#pragma unroll
        for (uint32_t step = 0; step < MOST_RANK / 16; step++) {
            if (16 * step >= rank) break;
            Left left;
#pragma unroll
            for (int at = 0; at < 4; at++) {
                uint32_t r = row + group + at % 2 * 8, k = 16 * step + at / 2 * 8 + 2 * member;
                left[at] = two_of_row(u + (size_t)r * rank, k, rank, r < rows);
            }
#pragma unroll
            for (int part = 0; part < 4; part++) multiply_add(sums[part], left, right[step][part][0], right[step][part][1]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t r = row + group + 8 * half;
            if (r >= rows || !is_inside) continue;
            Eight &sum = before[half];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float product = bits[half] >> i & 1 ? scale * sums[i / 2][2 * half + i % 2] : 0.0f;
                sum.at[i] = from_float<bf16>(to_float(sum.at[i]) + product);
            }
            store_pack(out + (size_t)r * width + column, sum);
        }
    }
}
#define PARAMS(T)                                                                                                      \
    (bf16 * out, const bf16 *base, const bf16 *u, const bf16 *w, uint32_t rows, uint32_t rank, uint32_t width,         \
     int is_transposed, float scale, const uint8_t *kept)
RANK_KERNEL(add_low_rank, PARAMS, (out, base, u, w, rows, rank, width, is_transposed, scale, kept), 4)
#undef PARAMS

// Numbers of a thread on their way from global memory, 16 bytes each, several turns ahead: so many reads are under way
// without a register. `memory`: STAGES × SLOTS × threads × 16 bytes of shared memory; a thread has its own.
template <uint32_t STAGES, uint32_t SLOTS> struct ReadAhead {
    bf16 *memory;

    __device__ __forceinline__ bf16 *at(uint32_t turn, uint32_t slot) const {
        return memory + ((turn % STAGES * SLOTS + slot) * 256 + threadIdx.x) * Eight::WIDTH;
    }
    __device__ __forceinline__ void start(uint32_t turn, uint32_t slot, const bf16 *from, bool is_there) const {
        start_copy(at(turn, slot), from, is_there);
    }
    __device__ __forceinline__ Eight take(uint32_t turn, uint32_t slot) const { return load_pack(at(turn, slot)); }
};

// u = drop(x) Aᵀ: x (rows × width), A (rank × width), u (rows × rank). `kept` gets the mask, a bit for each element of
// x, or is none: then nothing is dropped. A block: 16 rows, whose columns its warps share.
template <uint32_t MOST_RANK>
__device__ __forceinline__ void low_rank_inputs(bf16 *u, const bf16 *x, const bf16 *a, uint32_t rows, uint32_t rank,
                                                uint32_t width, uint8_t *kept, const Stream &stream, uint32_t threshold,
                                                float kept_scale) {
    const uint32_t SUMMED = MOST_RANK < 32 ? MOST_RANK : 32, PARTS = MOST_RANK / 8;
    // As in low_rank.rs.
    const uint32_t STAGES = MOST_RANK <= 16 ? 4 : 2;
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, member = lane % 4;
    uint32_t first_row = 16 * blockIdx.x;
    Sum sums[PARTS] = {};
    // Of 32 columns, a thread has eight neighbours: the first four for one product, the others for a second. Two rows
    // of x, and a row of each part of A.
    ReadAhead<STAGES, 2 + PARTS> ahead = {reinterpret_cast<bf16 *>(shared_memory)};
    uint32_t turns = (width + 32 * BLOCK_WARPS - 1) / (32 * BLOCK_WARPS);
    auto column_of = [&](uint32_t turn) { return 32 * (turn * BLOCK_WARPS + warp) + 8 * member; };
    auto start = [&](uint32_t turn) {
        uint32_t column = column_of(turn);
        if (turn < turns) {
#pragma unroll
            for (uint32_t slot = 0; slot < 2 + PARTS; slot++) {
                bool is_of_x = slot < 2;
                uint32_t row = is_of_x ? first_row + group + 8 * slot : 8 * (slot - 2) + group;
                bool is_there = column < width && row < (is_of_x ? rows : rank);
                const bf16 *from = is_of_x ? x : a;
                ahead.start(turn, slot, is_there ? from + (size_t)row * width + column : from, is_there);
            }
        }
        end_group_of_copies();
    };
    for (uint32_t turn = 0; turn < STAGES - 1; turn++) start(turn);
    for (uint32_t turn = 0; turn < turns; turn++) {
        start(turn + STAGES - 1);
        finish_copies_before<STAGES - 1>();
        uint32_t column = column_of(turn);
        Eight left[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            left[half] = ahead.take(turn, half);
            if (!kept) continue;
            uint32_t row = first_row + group + 8 * half;
            size_t element = (size_t)row * width + column;
            uint32_t bits = kept_bits(stream, element, threshold);
            left[half] = dropped(left[half], bits, kept_scale);
            if (row < rows && column < width) kept[element / 8] = (uint8_t)bits;
        }
#pragma unroll
        for (uint32_t part = 0; part < PARTS; part++) {
            if (8 * part >= rank) break;
            Eight right = ahead.take(turn, 2 + part);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                Left x = {two_of(left[0], 2 * half), two_of(left[1], 2 * half), two_of(left[0], 2 * half + 1),
                          two_of(left[1], 2 * half + 1)};
                multiply_add(sums[part], x, two_of(right, 2 * half), two_of(right, 2 * half + 1));
            }
        }
    }
    finish_copies();
    auto parts = reinterpret_cast<float(*)[16][SUMMED + 8]>(shared_memory);
    // The warps' sums in their order.
    for (uint32_t start = 0; start < rank; start += SUMMED) {
        __syncthreads();
#pragma unroll
        for (uint32_t part = 0; part < MOST_RANK / 8; part++) {
            if (8 * part < start || 8 * part >= start + SUMMED) continue;
#pragma unroll
            for (int at = 0; at < 4; at++)
                parts[warp][group + at / 2 * 8][8 * part - start + 2 * member + at % 2] = sums[part][at];
        }
        __syncthreads();
        uint32_t columns = min(rank - start, SUMMED);
        for (uint32_t e = threadIdx.x; e < 16 * columns; e += blockDim.x) {
            uint32_t row = e / columns, column = e % columns;
            float sum = 0.0f;
            for (uint32_t other = 0; other < BLOCK_WARPS; other++) sum += parts[other][row][column];
            if (first_row + row < rows)
                u[(size_t)(first_row + row) * rank + start + column] = from_float<bf16>(sum);
        }
    }
}

#define PARAMS(T)                                                                                                      \
    (bf16 * u, const bf16 *x, const bf16 *a, uint32_t rows, uint32_t rank, uint32_t width, uint8_t *kept,              \
     Stream stream, uint32_t threshold, float kept_scale)
RANK_KERNEL(low_rank_inputs, PARAMS, (u, x, a, rows, rank, width, kept, stream, threshold, kept_scale), 3)
#undef PARAMS

// Parts of gᵀ drop(x): g (rows × rank), x (rows × width), parts (blocks of rows × rank × width). A block: 64 columns
// and `rows_of_block` rows, a multiple of 16, which its warps share. Ranks up to 16 at a time, from `first_rank` on.
extern "C" __global__ void __launch_bounds__(256, 3) low_rank_gradient(
    float *parts, const bf16 *g, const bf16 *x, uint32_t rows, uint32_t rank, uint32_t width,
    uint32_t rows_of_block, uint32_t first_rank, const uint8_t *kept, float kept_scale) {
    // Four rows of x, and of g a half of a row: of its 16 rows the warp has all 16 ranks.
    const uint32_t STAGES = 2, OF_G = 4;
    alignas(16) __shared__ bf16 memory[STAGES * (OF_G + 1) * 256 * Eight::WIDTH];
    ReadAhead<STAGES, OF_G + 1> ahead = {memory};
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, member = lane % 4;
    uint32_t column = 64 * blockIdx.x + 8 * group, first = rows_of_block * blockIdx.y;
    uint32_t last = min(rows, first + rows_of_block);
    // Rows 2 m, 2 m + 1 and the same from 8 on; of each eight columns.
    auto is_there = [&](uint32_t row) { return row < last && column < width; };
    auto row_of = [&](uint32_t turn, uint32_t at) {
        return first + 16 * (turn * BLOCK_WARPS + warp) + 2 * member + at % 2 + at / 2 * 8;
    };
    // The mask of the rows that are read ahead, a byte each.
    uint32_t bits;
    auto start = [&](uint32_t turn) {
        bits = kept ? 0 : ~0u;
#pragma unroll
        for (uint32_t at = 0; at < OF_G; at++) {
            uint32_t row = row_of(turn, at);
            size_t element = (size_t)row * width + column;
            ahead.start(turn, at, is_there(row) ? x + element : x, is_there(row));
            if (kept && is_there(row)) bits |= (uint32_t)kept[element / 8] << (8 * at);
        }
        uint32_t row = first + 16 * (turn * BLOCK_WARPS + warp) + lane / 2, r = first_rank + lane % 2 * 8;
        if (rank % 8 == 0) {
            bool is_there = row < last && r < rank;
            ahead.start(turn, OF_G, is_there ? g + (size_t)row * rank + r : g, is_there);
        } else {
            Eight some;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++)
                some.at[i] = row < last && r + i < rank ? g[(size_t)row * rank + r + i] : from_float<bf16>(0.0f);
            store_pack(ahead.at(turn, OF_G), some);
        }
        end_group_of_copies();
    };
    Sum sums[8] = {};
    uint32_t turns = (last - first + 16 * BLOCK_WARPS - 1) / (16 * BLOCK_WARPS);
    start(0);
    for (uint32_t turn = 0; turn < turns; turn++) {
        uint32_t now = bits;
        start(turn + 1);
        finish_copies_before<1>();
        __syncwarp();
        // Of g, transposed: the upper ranks are the second and the fourth matrix, the lower rows the third and fourth.
        Left left;
        const bf16 *rows_of_g = ahead.at(turn, OF_G) - lane * Eight::WIDTH;
        load_matrices_transposed(left, rows_of_g + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
        Eight right[OF_G];
#pragma unroll
        for (uint32_t at = 0; at < OF_G; at++) {
            right[at] = ahead.take(turn, at);
            if (kept) right[at] = dropped(right[at], now >> (8 * at), kept_scale);
        }
#pragma unroll
        for (int part = 0; part < 8; part++) {
            uint32_t pairs[2];
#pragma unroll
            for (int half = 0; half < 2; half++)
                pairs[half] = pair_of(right[2 * half].at[part], right[2 * half + 1].at[part]);
            multiply_add(sums[part], left, pairs[0], pairs[1]);
        }
        // The others have read g before it is written again.
        __syncwarp();
    }
    finish_copies();
    auto shared = reinterpret_cast<float(*)[16][64 + 8]>(memory);
    // The upper half of the warps hands its sums to the lower, and so on.
    for (uint32_t half = BLOCK_WARPS / 2; half > 0; half /= 2) {
        __syncthreads();
        // Column c of part j is column 8 c + j of the 64.
        if (warp >= half && warp < 2 * half)
#pragma unroll
            for (int part = 0; part < 8; part++)
#pragma unroll
                for (int at = 0; at < 4; at++)
                    shared[warp - half][group + at / 2 * 8][8 * (2 * member + at % 2) + part] = sums[part][at];
        __syncthreads();
        if (warp < half)
#pragma unroll
            for (int part = 0; part < 8; part++)
#pragma unroll
                for (int at = 0; at < 4; at++)
                    sums[part][at] += shared[warp][group + at / 2 * 8][8 * (2 * member + at % 2) + part];
    }
    if (warp > 0) return;
    parts += (size_t)blockIdx.y * rank * width;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t r = first_rank + group + 8 * half;
        if (r >= rank) continue;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            uint32_t from = 64 * blockIdx.x + 8 * (2 * member + side);
            if (from >= width) continue;
#pragma unroll
            for (int part = 0; part < 8; part++) parts[(size_t)r * width + from + part] = sums[part][2 * half + side];
        }
    }
}

// out = the sum of `count` parts of n numbers, in their order, or += that.
extern "C" __global__ void __launch_bounds__(256, 2) sum_of_parts(
    float *out, const float *parts, size_t n, uint32_t count, int accumulate) {
    for (size_t e = global_thread(); e < n; e += global_threads()) {
        float sum = 0.0f;
        for (uint32_t part = 0; part < count; part++) sum += parts[(size_t)part * n + e];
        out[e] = accumulate ? out[e] + sum : sum;
    }
}

// Full attention of the vision tower where its heads have 80 dimensions, by products of a warpgroup (sm_90a): what segment_attention.cu does.
//
// The order and the numbers are those of segment_attention.cu; an element of a warpgroup's products is that of mma. There, a warp without a row
// of a segment leaves it out; here, all four multiply, and weights of 0 change nothing of the others' sums (values are finite).
//
// Decomposition: one block a (tile of 64 consecutive rows, head), one warpgroup; it reads keys and values from shared memory once, not once a
// warp. Queries and weights are operands in registers, where a thread's scores become its weights. A tile of rows that touches several segments
// walks the keys of each, rows of the others masked. Keys and values come by 16-byte cp.async, one tile ahead. Three blocks fit a
// multiprocessor: while one weighs, the others multiply.
// Bytes moved: q and out once; k and v of a segment once per tile of 64 of its rows (from L2 after the first).
#include "hopper.cuh"
#include "softmax.cuh"

constexpr u32 THREADS = 128;
constexpr u32 TILE = ATTENTION_TILE;
constexpr u32 HEAD_DIM = 80;
constexpr u32 K_STEPS = HEAD_DIM / 16;
constexpr u32 EIGHTS = HEAD_DIM / 8;

// ---- shared memory, from a multiple of 1,024 bytes on

// 64 dimensions of a tile are rows of 128 bytes, their pieces of 16 bytes permuted. Two stages have keys and values each; one more such part has
// the other 16 dimensions of all four, 32 bytes a row: keys and values of the first stage, of the second.
constexpr u32 PART = TILE * 128;
constexpr u32 REST = 4 * PART;

__device__ __forceinline__ u32 keys_at(u32 smem, u32 stage) { return smem + stage * 2 * PART; }
__device__ __forceinline__ u32 values_at(u32 smem, u32 stage) { return keys_at(smem, stage) + PART; }
__device__ __forceinline__ u32 rest_of_keys_at(u32 smem, u32 stage) { return smem + REST + stage * 64; }
__device__ __forceinline__ u32 rest_of_values_at(u32 smem, u32 stage) { return rest_of_keys_at(smem, stage) + 32; }

// 16 dimensions of all keys.
__device__ __forceinline__ u64 keys_descriptor(u32 smem, u32 stage, u32 step) {
    return step < 4 ? tile_descriptor(keys_at(smem, stage)) + 2 * step : tile_descriptor(rest_of_keys_at(smem, stage));
}
// All dimensions of the values of 16 keys. A descriptor's second field, otherwise 1, says how many times 16 bytes on those from 64 on are.
__device__ __forceinline__ u64 values_descriptor(u32 smem, u32 stage, u32 step) {
    const u32 at = values_at(smem, stage), on = (rest_of_values_at(smem, stage) - at) / 16;
    return tile_descriptor(at + step * 16 * 128) + ((u64)(on - 1) << 16);
}

// c += a · b for 64 rows of a, which come as operands of mma, sixteen a warp; 16 rows of b and 80 columns. c as in hopper.cuh.
__device__ __forceinline__ void add_values(f32 (&c)[EIGHTS][4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2)
                 "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39}, {%40, %41, %42, %43}, %44, 1, 1, 1, 1;"
                 : ROWS_16(0), ROWS_16(4), ROW_4(8), ROW_4(9)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Keys and values of a tile from `first` on to a stage; rows from `end` on are 0. k, v: of the block's head, row_stride from one row to the next.
// Ten threads take the pieces of a row, which are one after the other in memory.
__device__ __forceinline__ void load_tile(const u16* k, const u16* v, u32 first, u32 end, u32 row_stride, u32 smem, u32 stage) {
    constexpr u32 PIECES = HEAD_DIM / 8;
    static_assert(TILE * PIECES % THREADS == 0, "rounds are whole");
#pragma unroll
    for (u32 round = 0; round < TILE * PIECES / THREADS; round++) {
        const u32 i = round * THREADS + threadIdx.x;
        const u32 row = i / PIECES, piece = i % PIECES;
        const u32 at = piece < 8 ? keys_at(smem, stage) + Tile<64>::at(row, piece) : smem + REST + Tile<64>::at(row, stage * 4 + piece - 8);
        // The rest of values is two pieces from that of keys: in the permuted row, too, bit 1 of the piece's number.
        const u32 values = piece < 8 ? at + PART : at ^ 32;
        // Nothing is read from where there is nothing to copy, but the address must be valid.
        const u64 from = (u64)min_u32(first + row, end - 1) * row_stride + piece * 8;
        const u32 bytes = first + row < end ? 16 : 0;
        cp_async16(at, k + from, bytes);
        cp_async16(values, v + from, bytes);
    }
}

// ---- the tiles of keys that a block's rows see, in order: those of each segment that has rows here

struct Walk {
    u32 segment, start, end, first_key;

    // At the last segment that starts at or before first_row. A whole warp asks 32 candidates at a time.
    __device__ __forceinline__ void begin(const u32* cu_seqlens, u32 num_segments, u32 first_row) {
        const u32 lane = threadIdx.x % 32;
        segment = 0;
        u32 candidates = num_segments;
        while (candidates > 1) {
            const u32 step = cdiv(candidates, 32);
            const bool before = lane * step < candidates && cu_seqlens[segment + lane * step] <= first_row;
            // The first candidate always is one.
            const u32 skipped = (__popc(__ballot_sync(FULL, before)) - 1) * step;
            segment += skipped;
            candidates = min_u32(step, candidates - skipped);
        }
        start = cu_seqlens[segment];
        end = cu_seqlens[segment + 1];
        first_key = start;
    }
    // False when there is none.
    __device__ __forceinline__ bool next(const u32* cu_seqlens, u32 num_segments, u32 last_row) {
        first_key += TILE;
        if (first_key < end) return true;
        do {
            start = end;
            segment++;
            if (segment >= num_segments || start >= last_row) return false;
            end = cu_seqlens[segment + 1];
        } while (end == start);
        first_key = start;
        return true;
    }
};

// ---- a thread's rows: `row` and `row` + 8, of its warp's sixteen

// As operands; rows from `rows` on are 0.
__device__ __forceinline__ void load_queries(u32 (&a)[K_STEPS][4], const u16* q, u32 row, u32 rows, u32 row_stride) {
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        const bool there = row + 8 * h < rows;
        const u16* src = q + (u64)(row + 8 * h) * row_stride + 2 * (threadIdx.x % 4);
#pragma unroll
        for (u32 step = 0; step < K_STEPS; step++) {
            a[step][h] = there ? *reinterpret_cast<const u32*>(src + 16 * step) : 0;
            a[step][h + 2] = there ? *reinterpret_cast<const u32*>(src + 16 * step + 8) : 0;
        }
    }
}

// Scores become weights; what was summed so far is scaled to the new maxima. visible: how many keys of the tile each row sees, for when not
// all rows see `all`.
__device__ __forceinline__ void weigh(f32 (&s)[8][4], f32 (&m)[2], f32 (&l)[2], f32 (&o)[EIGHTS][4], bool all, const u32 (&visible)[2], f32 scale) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 n = 0; n < 8; n++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) s[n][e] = __fmul_rn(s[n][e], scale);
    }
    if (!all) {
#pragma unroll
        for (u32 n = 0; n < 8; n++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) s[n][e] = 8 * n + 2 * t + e % 2 < visible[e / 2] ? s[n][e] : neg_inf();
        }
    }
    f32 alpha[2];
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        // Two maxima that do not wait for each other.
        f32 most = fmaxf(s[0][2 * h], s[0][2 * h + 1]), other = fmaxf(s[1][2 * h], s[1][2 * h + 1]);
#pragma unroll
        for (u32 n = 2; n < 8; n += 2) {
            most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            other = fmaxf(other, fmaxf(s[n + 1][2 * h], s[n + 1][2 * h + 1]));
        }
        most = fmaxf(most, other);
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 2));
        alpha[h] = weigh_row(s, h, fmaxf(most, m[h]), m[h], l[h]);
    }
    // Most tiles have no new maximum, and products with 1 change nothing.
    if (__any_sync(FULL, alpha[0] != 1.0f || alpha[1] != 1.0f)) {
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) o[j][e] *= alpha[e / 2];
        }
    }
}

// The grid is (tiles of rows, heads). head_dim is HEAD_DIM.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    tower_attention_80(const u16* q, const u16* k, const u16* v, const u32* cu_seqlens, u32 num_segments, u32 num_heads, u32 head_dim, u32 rows,
                       f32 score_scale, u16* out) {
    extern __shared__ __align__(1024) u8 dynamic[];
    wait_for_earlier_kernels();
    const u32 smem = (smem_u32(dynamic) + 1023) & ~1023u;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_row = blockIdx.x * TILE, last_row = min_u32(first_row + TILE, rows);
    const u32 row = first_row + 16 * warp + lane / 4;
    const u32 row_stride = num_heads * HEAD_DIM, head_at = blockIdx.y * HEAD_DIM;
    const f32 scale = score_scale * LOG2_E;
    k += head_at;
    v += head_at;

    Walk walk;
    walk.begin(cu_seqlens, num_segments, first_row);
    load_tile(k, v, walk.first_key, walk.end, row_stride, smem, 0);
    cp_async_commit();
    u32 queries[K_STEPS][4];
    load_queries(queries, q + head_at, row, rows, row_stride);

    f32 m[2] = {neg_inf(), neg_inf()}, l[2] = {}, o[EIGHTS][4] = {};
    u32 stage = 0;
    bool more = true;
    while (more) {
        const u32 start = walk.start, end = walk.end, first_key = walk.first_key;
        more = walk.next(cu_seqlens, num_segments, last_row);
        cp_async_wait<0>();
        written_for_accelerator();
        __syncthreads();
        if (more) load_tile(k, v, walk.first_key, walk.end, row_stride, smem, stage ^ 1);
        cp_async_commit();

        f32 s[8][4] = {};
        products_begin();
#pragma unroll
        for (u32 step = 0; step < K_STEPS; step++) add_products<false>(s, queries[step], keys_descriptor(smem, stage, step));
        products_commit();
        products_wait<0>();
        products_are_in(s);

        // Rows from last_row on are not stored: no matter what they see.
        const bool all = first_key + TILE <= end && start <= first_row && last_row <= end;
        u32 visible[2];
#pragma unroll
        for (u32 h = 0; h < 2; h++) visible[h] = row + 8 * h >= start && row + 8 * h < end ? end - first_key : 0;
        weigh(s, m, l, o, all, visible, scale);

        u32 weights[TILE / 16][4];
#pragma unroll
        for (u32 step = 0; step < TILE / 16; step++) weights_of(s, step, weights[step]);
        products_begin();
#pragma unroll
        for (u32 step = 0; step < TILE / 16; step++) add_values(o, weights[step], values_descriptor(smem, stage, step));
        products_commit();
        products_wait<0>();
        products_are_in(o);
        stage ^= 1;
    }

#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        f32 sum = l[h];
        sum += __shfl_xor_sync(FULL, sum, 1);
        sum += __shfl_xor_sync(FULL, sum, 2);
        const f32 inverse = 1.0f / sum;
        if (row + 8 * h < rows) {
            u16* dst = out + head_at + (u64)(row + 8 * h) * row_stride + 2 * (lane % 4);
#pragma unroll
            for (u32 j = 0; j < EIGHTS; j++) *reinterpret_cast<u32*>(dst + 8 * j) = f2bf2(o[j][2 * h] * inverse, o[j][2 * h + 1] * inverse);
        }
    }
}

// Full attention of the vision tower: every row sees all rows of its own segment (a window of at most 64 patches, or a whole frame).
//
// The order, for one query: the keys of its segment in tiles of 64 from the segment's start; an online softmax over the tiles from m = -inf,
// l = 0, O = 0 with scores in units of log2; weights rounded to bf16 for O += P · V (mma steps of 16 keys, ascending), unrounded in l, which
// each of a row's four lanes sums over its own keys and a butterfly adds up at the end. Other rows of the tile and other segments that the
// tile touches change nothing of it.
//
// Decomposition: one block a (tile of 64 consecutive rows, head); each of four warps has 16 rows and all keys of a tile, so scores become
// weights in registers. A tile of rows that touches several segments walks the keys of each, rows of the others masked and warps without a
// row of it idle. Keys and values come by 16-byte cp.async, one tile ahead.
// Bytes moved: q and out once; k and v of a segment once per tile of 64 of its rows (from L2 after the first).
#include "softmax.cuh"

constexpr u32 THREADS = 128;
constexpr u32 TILE = ATTENTION_TILE;

// 64 rows of one head of x[rows, heads, head_dim] from `first` to shared memory; rows from `end` on and dimensions beyond head_dim are 0.
// Two threads a row take its 16-byte pieces in turn: one address each, the others are constants away (a piece of 32 bytes is a sector).
template <u32 DP>
__device__ __forceinline__ void load_tile(const u16* x, u32 first, u32 end, u32 num_heads, u32 head, u32 head_dim, u8* dst) {
    static_assert(THREADS == 2 * TILE, "two threads a row");
    const u32 row = threadIdx.x / 2 % TILE, side = threadIdx.x % 2;
    const bool there = first + row < end;
    const u16* src = there ? x + ((u64)(first + row) * num_heads + head) * head_dim : x;
    if (head_dim % 8 == 0) {
        const u32 at = smem_u32(dst);
#pragma unroll
        for (u32 j = 0; j < DP / 16; j++) {
            const u32 piece = 2 * j + side;
            // An address beyond the buffer's end is not read from when there is nothing to copy.
            cp_async16(at + Tile<DP>::at(row, piece), src + piece * 8, there && piece * 8 < head_dim ? 16 : 0);
        }
    } else {
#pragma unroll 1
        for (u32 piece = side; piece < DP / 8; piece += 2) {
            u16* at = reinterpret_cast<u16*>(dst + Tile<DP>::at(row, piece));
#pragma unroll
            for (u32 d = 0; d < 8; d++) at[d] = there && piece * 8 + d < head_dim ? src[piece * 8 + d] : (u16)0;
        }
    }
}

template <u32 DP>
__device__ __forceinline__ void attend(const u16* q, const u16* k, const u16* v, const u32* cu_seqlens, u32 num_segments, u32 num_heads,
                                       u32 head_dim, u32 rows, f32 score_scale, u16* out) {
    constexpr u32 BYTES = TILE * Tile<DP>::ROW;
    constexpr u32 K_STEPS = DP / 16;
    constexpr u32 EIGHTS = DP / 8;

    extern __shared__ __align__(128) u8 smem[];
    u8* stages = smem + BYTES;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 g = lane / 4, t = lane % 4;
    const u32 head = blockIdx.y;
    const u32 first_row = blockIdx.x * TILE, last_row = min_u32(first_row + TILE, rows);
    const f32 scale = score_scale * LOG2_E;

    // The last segment that starts at or before the first row.
    u32 segment = 0, after = num_segments;
    while (after - segment > 1) {
        u32 middle = (segment + after) / 2;
        if (cu_seqlens[middle] <= first_row) {
            segment = middle;
        } else {
            after = middle;
        }
    }
    u32 start = cu_seqlens[segment], end = cu_seqlens[segment + 1], first_key = start;

    load_tile<DP>(q, first_row, last_row, num_heads, head, head_dim, smem);
    load_tile<DP>(k, first_key, end, num_heads, head, head_dim, stages);
    load_tile<DP>(v, first_key, end, num_heads, head, head_dim, stages + BYTES);
    cp_async_commit();

    u32 q_kept[K_STEPS][4];
    f32 m[2] = {neg_inf(), neg_inf()}, l[2] = {0.0f, 0.0f}, o[EIGHTS][4];
#pragma unroll
    for (u32 j = 0; j < EIGHTS; j++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) o[j][e] = 0.0f;
    }

    bool started = false;
    u32 stage = 0;
    while (true) {
        // The tile after this one: of this segment, or the first of the next that has rows here.
        u32 next_segment = segment, next_start = start, next_end = end, next_key = first_key + TILE;
        bool more = true;
        if (next_key >= end) {
            do {
                next_segment++;
                more = next_segment < num_segments;
                if (more) {
                    next_start = cu_seqlens[next_segment];
                    next_end = cu_seqlens[next_segment + 1];
                    more = next_start < last_row;
                }
            } while (more && next_start == next_end);
            next_key = next_start;
        }

        cp_async_wait<0>();
        __syncthreads();
        u8* keys = stages + stage * 2 * BYTES;
        if (more) {
            u8* other = stages + (stage ^ 1) * 2 * BYTES;
            load_tile<DP>(k, next_key, next_end, num_heads, head, head_dim, other);
            load_tile<DP>(v, next_key, next_end, num_heads, head, head_dim, other + BYTES);
        }
        cp_async_commit();
        if (!started) {
            started = true;
#pragma unroll
            for (u32 s = 0; s < K_STEPS; s++) {
                ldmatrix_x4(q_kept[s], smem_u32(smem) + Tile<DP>::at(16 * warp + lane % 16, 2 * s + lane / 16));
            }
        }

        const u32 warp_row = first_row + 16 * warp;
        if (warp_row < end && warp_row + 16 > start) {
            const u32 keys_at = smem_u32(keys), values_at = keys_at + BYTES;
            f32 s[8][4];
#pragma unroll
            for (u32 n = 0; n < 8; n++) {
#pragma unroll
                for (u32 e = 0; e < 4; e++) s[n][e] = 0.0f;
            }
#pragma unroll
            for (u32 step = 0; step < K_STEPS; step++) {
#pragma unroll
                for (u32 n = 0; n < 8; n += 2) {
                    u32 b[4];
                    ldmatrix_x4(b, keys_at + Tile<DP>::at(8 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
                    mma(s[n], q_kept[step], b[0], b[1]);
                    mma(s[n + 1], q_kept[step], b[2], b[3]);
                }
            }
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = warp_row + g + 8 * h;
                u32 visible = row >= start && row < end ? end - first_key : 0;
                f32 most = m[h];
#pragma unroll
                for (u32 n = 0; n < 8; n++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        f32& x = s[n][2 * h + e];
                        x = 8 * n + 2 * t + e < visible ? __fmul_rn(x, scale) : neg_inf();
                        most = fmaxf(most, x);
                    }
                }
                most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
                most = fmaxf(most, __shfl_xor_sync(FULL, most, 2));
                const f32 alpha = weigh_row(s, h, most, m[h], l[h]);
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) {
                    o[j][2 * h] *= alpha;
                    o[j][2 * h + 1] *= alpha;
                }
            }
#pragma unroll
            for (u32 step = 0; step < TILE / 16; step++) {
                u32 a[4];
                weights_of(s, step, a);
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j += 2) {
                    u32 b[4];
                    ldmatrix_x4_trans(b, values_at + Tile<DP>::at(16 * step + lane % 16, j + lane / 16));
                    mma(o[j], a, b[0], b[1]);
                    mma(o[j + 1], a, b[2], b[3]);
                }
            }
        }

        if (!more) break;
        segment = next_segment;
        start = next_start;
        end = next_end;
        first_key = next_key;
        stage ^= 1;
    }

#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u32 row = first_row + 16 * warp + g + 8 * h;
        f32 sum = l[h];
        sum += __shfl_xor_sync(FULL, sum, 1);
        sum += __shfl_xor_sync(FULL, sum, 2);
        f32 inverse = 1.0f / sum;
        if (row < last_row) {
            u16* dst = out + ((u64)row * num_heads + head) * head_dim;
#pragma unroll
            for (u32 j = 0; j < EIGHTS; j++) {
                u32 d = 8 * j + 2 * t;
                if (d < head_dim) *reinterpret_cast<u32*>(dst + d) = f2bf2(o[j][2 * h] * inverse, o[j][2 * h + 1] * inverse);
            }
        }
    }
}

#define KERNEL(DP, BLOCKS)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS)                                                                           \
        segment_attention_##DP(const u16* q, const u16* k, const u16* v, const u32* cu_seqlens, u32 num_segments, u32 num_heads,        \
                               u32 head_dim, u32 rows, f32 scale, u16* out) {                                                           \
        wait_for_earlier_kernels();                                                                                                     \
        attend<DP>(q, k, v, cu_seqlens, num_segments, num_heads, head_dim, rows, scale, out);                                           \
    }

KERNEL(16, 3)
KERNEL(32, 3)
KERNEL(48, 3)
KERNEL(64, 3)
KERNEL(80, 3)
KERNEL(96, 2)
KERNEL(112, 2)
KERNEL(128, 2)

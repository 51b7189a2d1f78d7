// Causal attention of a step over the paged cache: prefill, decode and recompute in one order, so that a row has the same bits in each.
//
// The order, for one query (a row and a head), scores and LSE in units of log2 (scale · log2 e is one factor):
//   1. score = (q · k) · scale, the product as mma steps of 16 dimensions, ascending.
//   2. Keys of a segment (prompt, completion) are cut from its start into chunks of 256, those into tiles of 64. A chunk starts with
//      m = -inf, l = 0, O = 0. A tile does m' = max(m, scores), α = 2^(m - m'), p = 2^(score - m') (0 for masked keys),
//      l = fma(l, α, Σp), O = α · O, then O += bf16(p) · v as mma steps of 16 keys, ascending. Σp = (s0 + s1) + (s2 + s3) over sixteens of
//      keys, each a butterfly over four lanes of ((p[2t] + p[2t+1]) + (p[2t+8] + p[2t+9])).
//   3. A chunk gives O · (1 / l) and L = m + log2 l. Chunks merge in ascending order, prompt first: M = max(L, Lc), a = 2^(L - M),
//      b = 2^(Lc - M), O = fma(a, O, b · Oc) · (1 / (a + b)), L = M + log2(a + b).
// A tile in which a row sees nothing changes none of its numbers, and an element of an mma result depends on its own row and column only, so
// neither the other rows of an item nor its kind (wide or narrow, direct or split) matter.
//
// Decomposition: a persistent grid walks (item, kv head) pairs; an item is up to 64 (wide) or 16 (narrow) rows of queries (row of the step
// × query heads of the kv head) and the keys they see. Rows of a group read their prompt together in the launch before this one
// (prompt_attention.cu); a row that then walks its own keys takes up the partials that it left; so nothing is merged afterwards where there
// are rows enough to fill the device. Where there are not, a row's chunks are items of their own, and the block that finishes the last of
// them (a counter a row and kv head tells) merges them, in their order, whoever computed them.
// Narrow: four warps share a tile of keys and 16 rows: for the scores each takes 16 of its 64 keys, for the output each takes a quarter of the
// dimensions; weights and row maxima pass through shared memory. Wide: each warp has 16 rows of its own, and all keys and dimensions.
// The next tiles (of the next items too), their queries and entries are on their way by 16-byte cp.async while one is computed.
// Bytes moved: keys and values of each item once (4 · D bytes a key and kv head), O and LSE of partials once out and once in.
#include "attention_rows.cuh"

// A tile in shared memory and its place in the walk.
struct Here {
    View view;
    const AttentionEntry* entries;
    u32 queries, keys, values;
};

// Four warps on 16 rows.
template <u32 DP>
struct Narrow {
    using S = Smem<DP, 16, 3>;
    static constexpr bool WIDE = false;
    static constexpr u32 K_STEPS = DP / 16;
    // Eights of dimensions that a warp has, and all of them.
    static constexpr u32 EIGHTS = DP / 8;
    static constexpr u32 OWN = (EIGHTS + WARPS - 1) / WARPS;

    Rows<OWN> rows;
    u32 q[K_STEPS][4];

    static __device__ __forceinline__ u32 row_of(u32 half) { return threadIdx.x % 32 / 4 + 8 * half; }
    static __device__ __forceinline__ u32 first_d() { return 8 * (threadIdx.x / 32 * OWN) + 2 * (threadIdx.x % 4); }
    static __device__ __forceinline__ bool writes_lse() { return threadIdx.x / 32 == 0 && threadIdx.x % 4 == 0; }

    __device__ __forceinline__ void begin_item(const Here& here) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 k = 0; k < K_STEPS; k++) ldmatrix_x4(q[k], here.queries + Block<DP, 16>::at(lane % 16, 2 * k + lane / 16));
    }

    __device__ __forceinline__ void tile(const Here& here, u8* smem, f32 scale) {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
        const u32 base = smem_u32(smem);
        f32* row_max = reinterpret_cast<f32*>(smem + S::MAX);
        f32* row_sum = reinterpret_cast<f32*>(smem + S::SUM);
        // Scores of this warp's sixteen keys.
        f32 s[2][4] = {};
        const u32 k_row = 16 * warp + lane / 16 * 8 + lane % 8, k_piece = lane / 8 % 2;
#pragma unroll
        for (u32 k = 0; k < K_STEPS; k++) {
            u32 b[4];
            ldmatrix_x4(b, here.keys + Block<DP>::at(k_row, 2 * k + k_piece));
            mma(s[0], q[k], b[0], b[1]);
            mma(s[1], q[k], b[2], b[3]);
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 visible = minus(rows.seen[half], TILE * here.view.segment_tile);
            f32 most = mask_scores(s, half, 16 * warp, visible, scale);
            if (t == 0) row_max[warp * 16 + row_of(half)] = most;
        }
        __syncthreads();
        f32 alpha[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = row_of(half);
            f32 most = neg_inf();
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) most = fmaxf(most, row_max[w * 16 + row]);
            f32 from = rows.raise(half, most, alpha[half]);
            f32 sum = weigh(s[0], s[1], half, from);
            if (t == 0) row_sum[warp * 16 + row] = sum;
            u8* weights = smem + S::P + 4 * t;
            *reinterpret_cast<u32*>(weights + Tile<TILE>::at(row, 2 * warp)) = f2bf2(s[0][2 * half], s[0][2 * half + 1]);
            *reinterpret_cast<u32*>(weights + Tile<TILE>::at(row, 2 * warp + 1)) = f2bf2(s[1][2 * half], s[1][2 * half + 1]);
        }
        __syncthreads();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const f32* sums = row_sum + row_of(half);
            rows.add_weights(half, alpha[half], (sums[0] + sums[16]) + (sums[32] + sums[48]));
        }
        // O += P · V, this warp's dimensions.
        if constexpr (OWN % 2 == 0) {
#pragma unroll
            for (u32 k = 0; k < TILE / 16; k++) {
                u32 a[4];
                ldmatrix_x4(a, base + S::P + Tile<TILE>::at(lane % 16, 2 * k + lane / 16));
#pragma unroll
                for (u32 j = 0; j < OWN; j += 2) {
                    // Keys 0..8 and 8..16 of the step for one eight of dimensions, then for the next.
                    u32 b[4];
                    ldmatrix_x4_trans(b, here.values + Block<DP>::at(16 * k + lane % 16, warp * OWN + j + lane / 16));
                    mma(rows.o[j], a, b[0], b[1]);
                    mma(rows.o[j + 1], a, b[2], b[3]);
                }
            }
        } else {
            static_assert(OWN == 1, "one eight of dimensions a warp");
            if (warp < EIGHTS) {
#pragma unroll
                for (u32 half = 0; half < TILE / 32; half++) {
                    u32 a[4], b[4];
                    ldmatrix_x4_trans(b, here.values + Block<DP>::at(32 * half + lane, warp));
                    ldmatrix_x4(a, base + S::P + Tile<TILE>::at(lane % 16, 4 * half + lane / 16));
                    mma(rows.o[0], a, b[0], b[1]);
                    ldmatrix_x4(a, base + S::P + Tile<TILE>::at(lane % 16, 4 * half + 2 + lane / 16));
                    mma(rows.o[0], a, b[2], b[3]);
                }
            }
        }
    }
};

// Sixteen rows a warp.
template <u32 DP>
struct Wide {
    using S = Smem<DP, 64, 2>;
    static constexpr bool WIDE = true;
    static constexpr u32 EIGHTS = DP / 8;

    Rows<EIGHTS> rows;

    static __device__ __forceinline__ u32 row_of(u32 half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }
    static __device__ __forceinline__ u32 first_d() { return 2 * (threadIdx.x % 4); }
    static __device__ __forceinline__ bool writes_lse() { return threadIdx.x % 4 == 0; }

    __device__ __forceinline__ void begin_item(const Here&) {}

    __device__ __forceinline__ void tile(const Here& here, u8*, f32 scale) {
        f32 s[8][4] = {};
        wide_scores<DP>(s, SharedQueries<DP>{here.queries}, here.keys);
        wide_weights(s, rows, here.view.segment_tile, scale);
        wide_values<DP>(s, rows, here.values);
    }
};

template <u32 DP, class Team>
__device__ __forceinline__ void attend(const Args& args) {
    using S = typename Team::S;
    constexpr u32 STAGES = S::STAGES;
    extern __shared__ __align__(128) u8 dynamic[];
    // Where the permutation of a warpgroup's operands begins.
    u8* smem = dynamic + (Team::WIDE ? (0u - smem_u32(dynamic)) % 1024 : 0);
    const u32 base = smem_u32(smem);
    const f32 scale = args.scale * LOG2_E;

    Cursor<!Team::WIDE> next;
    next.start(args, S::STAGE, args.shared * Partial<DP>::BYTES);
    // Lists are there since the step began, queries and keys since the launch before.
    if (!args.after_prompts) wait_for_earlier_kernel();
    if (Team::WIDE) let_next_kernel_begin();
    auto load = [&](u32 stage) {
        if (next.valid(args)) {
            if (next.in_partials()) {
                // The prompt comes first in the order, but it is waited for only now: its walk may still go on.
                wait_for_earlier_kernel();
                load_partials<DP>(args, next, base + stage * S::STAGE);
            } else {
                load_keys_and_values<DP>(args, next, base + stage * S::STAGE);
            }
            u32 slot = next.item % STAGES;
            if (next.tile == 0) load_queries<DP, S::ROWS>(args, next, smem + S::E + slot * S::ENTRIES, smem + S::Q + slot * S::QUERIES);
            if (threadIdx.x == 0) {
                u32 flags = (next.tile == 0 ? FIRST : 0) | (next.tile + 1 == next.tiles ? LAST : 0) | (next.in_prompt() ? PROMPT : 0) | (next.counted ? COUNTED : 0);
                if (next.in_partials()) flags |= PARTIALS;
                View view = {next.head, next.num_entries * args.shared, slot, flags, next.segment_tile(), next.segment_keys(), next.partials(), 0};
                *reinterpret_cast<View*>(smem + S::VIEWS + stage * sizeof(View)) = view;
            }
            next.advance(args);
        }
        cp_async_commit();
    };
    // Tiles of this block that are not computed yet, of those that are loaded.
    u32 ahead = 0;
#pragma unroll
    for (u32 stage = 0; stage + 1 < STAGES; stage++) {
        ahead += next.valid(args);
        load(stage);
    }

    Team team;
    for (u32 stage = 0; ahead > 0; ahead--, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        cp_async_wait<STAGES - 2>();
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        if (Team::WIDE) written_for_accelerator();
#endif
        __syncthreads();
        ahead += next.valid(args);
        load(stage == 0 ? STAGES - 1 : stage - 1);

        Here here;
        here.view = *reinterpret_cast<const View*>(smem + S::VIEWS + stage * sizeof(View));
        const View& v = here.view;
        here.entries = reinterpret_cast<const AttentionEntry*>(smem + S::E + v.item * S::ENTRIES);
        here.queries = base + S::Q + v.item * S::QUERIES;
        here.keys = base + stage * S::STAGE;
        here.values = here.keys + S::KEYS;
        auto head_of = [&](u32 row) { return v.head * args.shared + row % args.shared; };
        if (v.flags & FIRST) {
            team.begin_item(here);
#pragma unroll
            for (u32 half = 0; half < 2; half++) team.rows.total_lse[half] = neg_inf();
        }
        if (!Team::WIDE && v.flags & PARTIALS) {
            const f32* partials = reinterpret_cast<const f32*>(smem + stage * S::STAGE);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 row = Team::row_of(half);
                if (row >= v.num_rows) continue;
                team.rows.template merge_partials<DP>(half, partials + row * Partial<DP>::LEN, args.shared * Partial<DP>::LEN, v.partials, Team::first_d());
            }
            continue;
        }
        const u32 tile = v.segment_tile;
        if (tile % TILES_A_CHUNK == 0) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 row = Team::row_of(half);
                const AttentionEntry& entry = here.entries[row / args.shared];
                team.rows.begin_chunk(half, row >= v.num_rows ? 0 : v.flags & PROMPT ? entry.prompt_keys : entry.own_keys);
            }
        }
        team.tile(here, smem, scale);
        if (tile % TILES_A_CHUNK == TILES_A_CHUNK - 1 || TILE * (tile + 1) >= v.segment_keys) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) team.rows.end_chunk(half, tile / TILES_A_CHUNK * ATTENTION_CHUNK);
        }
        if (v.flags & LAST) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 row = Team::row_of(half);
                if (row < v.num_rows) team.rows.template store<DP>(args, half, here.entries[row / args.shared], head_of(row), Team::first_d(), Team::writes_lse());
            }
            if (v.flags & COUNTED) finish_rows<DP>(args, v.head, v.num_rows / args.shared, here.entries, reinterpret_cast<u32*>(smem + S::LAST));
        }
    }
    wait_for_earlier_kernel();
}

#define PARAMETERS                                                                                                                          \
    const u16 *q, const u16 *kv, const u32 *counts, const AttentionItem *items, const AttentionEntry *entries, const u32 *tables,           \
        u32 num_heads, u32 num_kv_heads, u32 head_dim, f32 scale, u16 *out, f32 *partials, u32 *finished, u32 after_prompts
#define ARGUMENTS(kind)                                                                                                                     \
    Args {                                                                                                                                  \
        q, kv, items, entries, tables, num_heads, num_kv_heads, head_dim, num_heads / num_kv_heads, counts[kind] * num_kv_heads, scale, out,\
            partials, finished, after_prompts                                                                                               \
    }
#define KERNELS(DP)                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_wide_##DP(PARAMETERS) { attend<DP, Wide<DP>>(ARGUMENTS(0)); }            \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_narrow_##DP(PARAMETERS) { attend<DP, Narrow<DP>>(ARGUMENTS(1)); }

KERNELS(16)
KERNELS(32)
KERNELS(64)
KERNELS(128)

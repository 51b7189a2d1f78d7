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
// × query heads of the kv head) and the keys they see. Prefix items carry all rows of a group, so that a prompt is read once per group;
// suffix items the rows of one sequence. A suffix item may go on from the partials of its prompt, which an earlier launch wrote; so nothing
// is merged afterwards where there are rows enough to fill the device. Where there are not, a row's chunks are items of their own, and the
// block that finishes the last of them (a counter a row and kv head tells) merges them, in their order, whoever computed them.
// Narrow: four warps share a tile of keys and 16 rows: for the scores each takes 16 of its 64 keys, for the output each takes a quarter of the
// dimensions; weights and row maxima pass through shared memory. Wide: each warp has 16 rows of its own, and all keys and dimensions.
// The next tiles (of the next items too), their queries and entries are on their way by 16-byte cp.async while one is computed.
// Bytes moved: keys and values of each item once (4 · D bytes a key and kv head), O and LSE of partials once out and once in.
#include "common.cuh"

struct AttentionItem {
    u32 first_entry, num_entries, prompt_table, prompt_keys, own_table, own_keys, counted, unused;
};
static_assert(sizeof(AttentionItem) == 32, "AttentionItem");

struct AttentionEntry {
    u32 row, prompt_keys, own_keys, partial, first_partial, num_partials, counter, unused;
};
static_assert(sizeof(AttentionEntry) == 32, "AttentionEntry");

// Warps of a team.
constexpr u32 WARPS = 4;
constexpr u32 TILE = ATTENTION_TILE;
constexpr u32 TILES_A_CHUNK = ATTENTION_CHUNK / ATTENTION_TILE;

// ---- merging chunks; every rounding is spelled out, since direct and split rows must have the same bits

struct Merge {
    f32 a, b, inverse, lse;
};

__device__ __forceinline__ Merge merge_weights(f32 lse, f32 chunk_lse) {
    f32 most = fmaxf(lse, chunk_lse);
    f32 a = exp2_fast(__fsub_rn(lse, most));
    f32 b = exp2_fast(__fsub_rn(chunk_lse, most));
    f32 sum = __fadd_rn(a, b);
    return Merge{a, b, __frcp_rn(sum), __fadd_rn(most, log2f(sum))};
}

__device__ __forceinline__ f32 merge_value(const Merge& m, f32 o, f32 chunk_o) {
    return __fmul_rn(__fmaf_rn(m.a, o, __fmul_rn(m.b, chunk_o)), m.inverse);
}

// ---- items

struct Args {
    const u16* q;
    const u16* kv;
    const AttentionItem* items;
    const AttentionEntry* entries;
    const u32* tables;
    u32 num_heads, num_kv_heads, head_dim, shared, num_work;
    f32 scale;
    u16* out;
    f32* partial_o;
    f32* partial_lse;
    u32* finished;
    // Whether the launch before this one is the wide walk of the same step: then only what that wrote must be waited for.
    u32 after_wide;
};

// A place in the walk over tiles that are loaded: which item and kv head, which of its tiles.
struct Cursor {
    u32 work, head, first_entry, num_entries, counted;
    u32 prompt_table, prompt_keys, own_table, own_keys;
    u32 prompt_tiles, tiles, tile;
    // Items before this one.
    u32 item;
    // Of this tile: its blocks and how many keys it has.
    u32 block0, block1, keys;

    __device__ __forceinline__ bool valid(const Args& args) const { return work < args.num_work; }

    __device__ __forceinline__ void load_item(const Args& args) {
        const uint4* from = reinterpret_cast<const uint4*>(args.items + work / args.num_kv_heads);
        uint4 x = from[0], y = from[1];
        head = work % args.num_kv_heads;
        first_entry = x.x;
        num_entries = x.y;
        prompt_table = x.z;
        prompt_keys = x.w;
        own_table = y.x;
        own_keys = y.y;
        counted = y.z;
        prompt_tiles = cdiv(prompt_keys, TILE);
        tiles = prompt_tiles + cdiv(own_keys, TILE);
        tile = 0;
    }

    __device__ __forceinline__ bool in_prompt() const { return tile < prompt_tiles; }
    // Tile of its segment.
    __device__ __forceinline__ u32 segment_tile() const { return in_prompt() ? tile : tile - prompt_tiles; }
    __device__ __forceinline__ u32 segment_keys() const { return in_prompt() ? prompt_keys : own_keys; }

    __device__ __forceinline__ void load_blocks(const Args& args) {
        u32 i = segment_tile();
        const u32* table = args.tables + (in_prompt() ? prompt_table : own_table) + 2 * i;
        keys = min_u32(TILE, segment_keys() - TILE * i);
        block0 = table[0];
        block1 = keys > BLOCK_SIZE ? table[1] : block0;
    }

    __device__ __forceinline__ void start(const Args& args) {
        work = blockIdx.x;
        item = 0;
        if (valid(args)) {
            load_item(args);
            load_blocks(args);
        }
    }

    __device__ __forceinline__ void advance(const Args& args) {
        tile++;
        if (tile == tiles) {
            work += gridDim.x;
            item++;
            if (!valid(args)) return;
            load_item(args);
        }
        load_blocks(args);
    }
};

// What is needed to compute with a tile once it is there.
struct View {
    u32 head, num_rows, item, flags, segment_tile, segment_keys, unused0, unused1;
};
static_assert(sizeof(View) == 32, "View");
constexpr u32 FIRST = 1, LAST = 2, PROMPT = 4, COUNTED = 8;

// ---- shared memory

constexpr u32 THREADS = 32 * WARPS;

template <u32 DP, u32 MAX_ROWS, u32 NUM_STAGES>
struct Smem {
    static constexpr u32 ROWS = MAX_ROWS;
    static constexpr u32 STAGES = NUM_STAGES;
    static constexpr u32 KEYS = TILE * Tile<DP>::ROW;
    static constexpr u32 STAGE = 2 * KEYS;
    static constexpr u32 QUERIES = ROWS * Tile<DP>::ROW;
    static constexpr u32 ENTRIES = ROWS * sizeof(AttentionEntry);
    // Keys and values by stage, queries and entries by item: no more items are under way than stages.
    static constexpr u32 Q = STAGES * STAGE;
    static constexpr u32 E = Q + STAGES * QUERIES;
    static constexpr u32 VIEWS = E + STAGES * ENTRIES;
    static constexpr u32 LAST = VIEWS + STAGES * sizeof(View);
    // Of the narrow walk: weights of a tile, maxima and sums of rows by warp.
    static constexpr u32 P = LAST + ROWS * 4;
    static constexpr u32 MAX = P + ROWS * Tile<TILE>::ROW;
    static constexpr u32 SUM = MAX + WARPS * ROWS * 4;
};

template <u32 DP>
__device__ __forceinline__ void load_keys_and_values(const Args& args, const Cursor& c, u32 stage) {
    constexpr u32 PIECES = DP / 8;
    constexpr u32 COUNT = TILE * PIECES;
    u64 side = (u64)args.num_kv_heads * BLOCK_SIZE * DP;
    const u16* head = args.kv + (u64)c.head * BLOCK_SIZE * DP;
    const u16* first = head + (u64)c.block0 * 2 * side;
    const u16* second = head + (u64)c.block1 * 2 * side;
#pragma unroll
    for (u32 j = 0; j < (COUNT + THREADS - 1) / THREADS; j++) {
        u32 i = threadIdx.x + j * THREADS;
        if (COUNT % THREADS != 0 && i >= COUNT) break;
        u32 row = i / PIECES, piece = i % PIECES;
        const u16* src = (row < BLOCK_SIZE ? first : second) + (row % BLOCK_SIZE) * DP + piece * 8;
        u32 bytes = row < c.keys ? 16 : 0;
        u32 dst = stage + Tile<DP>::at(row, piece);
        cp_async16(dst, src, bytes);
        cp_async16(dst + TILE * Tile<DP>::ROW, src + side, bytes);
    }
}

// An item's entries and queries; rows beyond its own are zero.
template <u32 DP, u32 ROWS>
__device__ __forceinline__ void load_queries(const Args& args, const Cursor& c, u8* entries, u8* queries) {
    constexpr u32 PIECES = DP / 8;
    constexpr u32 COUNT = ROWS * PIECES;
    const AttentionEntry* from = args.entries + c.first_entry;
    for (u32 i = threadIdx.x; i < 2 * c.num_entries; i += THREADS) cp_async16(smem_u32(entries + 16 * i), reinterpret_cast<const u8*>(from) + 16 * i, 16);
    const u32 num_rows = c.num_entries * args.shared;
    constexpr u32 ROUNDS = (COUNT + THREADS - 1) / THREADS;
    // All at once: one after the other, each would wait for memory.
    u32 step_row[ROUNDS];
#pragma unroll
    for (u32 j = 0; j < ROUNDS; j++) {
        u32 row = (threadIdx.x + j * THREADS) / PIECES;
        step_row[j] = row < num_rows ? from[row / args.shared].row : 0;
    }
#pragma unroll
    for (u32 j = 0; j < ROUNDS; j++) {
        u32 i = threadIdx.x + j * THREADS;
        if (COUNT % THREADS != 0 && i >= COUNT) break;
        u32 row = i / PIECES, piece = i % PIECES;
        bool used = row < num_rows && piece * 8 < args.head_dim;
        const u16* src = args.q;
        if (used) src += ((u64)step_row[j] * args.num_heads + c.head * args.shared + row % args.shared) * args.head_dim + piece * 8;
        u8* dst = queries + Tile<DP>::at(row, piece);
        if (args.head_dim % 8 == 0) {
            cp_async16(smem_u32(dst), src, used ? 16 : 0);
        } else {
#pragma unroll
            for (u32 d = 0; d < 8; d++) reinterpret_cast<u16*>(dst)[d] = used && piece * 8 + d < args.head_dim ? src[d] : (u16)0;
        }
    }
}

// ---- split rows

// Merges the partials of a row for the query heads of a kv head, in ascending order: `DP / 2` threads a head, two dimensions a thread.
template <u32 DP>
__device__ __forceinline__ void combine(const Args& args, const AttentionEntry& entry, u32 kv_head) {
    constexpr u32 AHEAD = 2;
    constexpr u32 LANES = DP / 2;
    const u32 d = 2 * (threadIdx.x % LANES);
    const u32 num_partials = entry.num_partials;
#pragma unroll 1
    for (u32 i = threadIdx.x / LANES; i < args.shared; i += THREADS / LANES) {
        const u32 head = kv_head * args.shared + i;
        const u64 first_place = (u64)entry.first_partial * args.num_heads + head;
        const f32* next_lse = args.partial_lse + first_place;
        const f32* next_o = args.partial_o + first_place * DP + d;
        f32 total_lse = load_shared_by_all(next_lse);
        float2 total = load_shared_by_all(reinterpret_cast<const float2*>(next_o));
#pragma unroll 1
        for (u32 first = 1; first < num_partials; first += AHEAD) {
            f32 lse[AHEAD];
            float2 o[AHEAD];
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) {
                if (first + j < num_partials) {
                    next_lse += args.num_heads;
                    next_o += args.num_heads * DP;
                    lse[j] = load_shared_by_all(next_lse);
                    o[j] = load_shared_by_all(reinterpret_cast<const float2*>(next_o));
                }
            }
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) {
                if (first + j < num_partials) {
                    Merge merge = merge_weights(total_lse, lse[j]);
                    total.x = merge_value(merge, total.x, o[j].x);
                    total.y = merge_value(merge, total.y, o[j].y);
                    total_lse = merge.lse;
                }
            }
        }
        if (d < args.head_dim) *reinterpret_cast<u32*>(args.out + ((u64)entry.row * args.num_heads + head) * args.head_dim + d) = f2bf2(total.x, total.y);
    }
}

// After a block has written the partials of an item with counted entries: rows that are whole now are merged here. `last` has a word an entry.
template <u32 DP>
__device__ __forceinline__ void finish_rows(const Args& args, const View& v, const AttentionEntry* entries, u32* last) {
    const u32 num_entries = v.num_rows / args.shared;
    __threadfence();
    __syncthreads();
    if (threadIdx.x < num_entries) {
        const AttentionEntry& entry = entries[threadIdx.x];
        bool whole = false;
        if (entry.counter != NONE) {
            u32* finished = args.finished + entry.counter * args.num_kv_heads + v.head;
            whole = atomicAdd(finished, 1u) + 1 == entry.num_partials;
            // Ready for the next layer.
            if (whole) *finished = 0;
        }
        last[threadIdx.x] = whole;
    }
    __syncthreads();
    __threadfence();
#pragma unroll 1
    for (u32 i = 0; i < num_entries; i++) {
        if (last[i] != 0) combine<DP>(args, entries[i], v.head);
    }
}

// ---- a row's chunks, in registers: `half` of an accumulator is one row

template <u32 EIGHTS>
struct Rows {
    // Of the present chunk, and of all before it.
    f32 m[2], l[2], o[EIGHTS][4];
    f32 total_lse[2], total[EIGHTS][4];
    u32 seen[2];

    __device__ __forceinline__ void begin_chunk(u32 half, u32 keys) {
        seen[half] = keys;
        m[half] = neg_inf();
        l[half] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) o[j][2 * half] = o[j][2 * half + 1] = 0.0f;
    }

    // Makes room for a larger maximum: returns what weights are relative to.
    __device__ __forceinline__ f32 raise(u32 half, f32 most, f32& alpha) {
        most = fmaxf(m[half], most);
        // A row that has seen nothing yet keeps -inf, and all its weights are 2^-inf.
        f32 from = most == neg_inf() ? 0.0f : most;
        alpha = exp2_fast(__fsub_rn(m[half], from));
        m[half] = most;
        return from;
    }

    __device__ __forceinline__ void add_weights(u32 half, f32 alpha, f32 sum) {
        l[half] = fmaf(l[half], alpha, sum);
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) {
            o[j][2 * half] *= alpha;
            o[j][2 * half + 1] *= alpha;
        }
    }

    // `chunk(j)`: its normalised output in eight j.
    template <class Chunk>
    __device__ __forceinline__ void merge_chunk(u32 half, f32 lse, Chunk chunk) {
        bool alone = total_lse[half] == neg_inf();
        Merge merge = merge_weights(total_lse[half], lse);
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) {
            float2 x = chunk(j);
            total[j][2 * half] = alone ? x.x : merge_value(merge, total[j][2 * half], x.x);
            total[j][2 * half + 1] = alone ? x.y : merge_value(merge, total[j][2 * half + 1], x.y);
        }
        total_lse[half] = alone ? lse : merge.lse;
    }

    // `chunk`: its first key.
    __device__ __forceinline__ void end_chunk(u32 half, u32 chunk) {
        if (seen[half] <= chunk) return;
        f32 inverse = __frcp_rn(l[half]);
        merge_chunk(half, __fadd_rn(m[half], log2f(l[half])),
                    [&](u32 j) { return float2{__fmul_rn(o[j][2 * half], inverse), __fmul_rn(o[j][2 * half + 1], inverse)}; });
    }

    // Goes on from `num` partials, the first at `place`; the thread's dimensions are `first_d + 8 j`.
    template <u32 DP>
    __device__ __forceinline__ void continue_from(const Args& args, u32 half, u64 place, u32 num, u32 first_d) {
        constexpr u32 AHEAD = 4;
        wait_for_earlier_kernel();
#pragma unroll 1
        for (u32 first = 0; first < num; first += AHEAD) {
            f32 lse[AHEAD];
            float2 x[AHEAD][EIGHTS];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                if (first + i >= num) break;
                lse[i] = args.partial_lse[place];
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) {
                    x[i][j] = float2{0.0f, 0.0f};
                    if (first_d + 8 * j < DP) x[i][j] = *reinterpret_cast<const float2*>(args.partial_o + place * DP + first_d + 8 * j);
                }
                place += args.num_heads;
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                if (first + i >= num) break;
                merge_chunk(half, lse[i], [&](u32 j) { return x[i][j]; });
            }
        }
    }

    // To the output, or to the entry's partial; `writes_lse`: one of the threads that have the row.
    template <u32 DP>
    __device__ __forceinline__ void store(const Args& args, u32 half, const AttentionEntry& entry, u32 head, u32 first_d, bool writes_lse) const {
        u32 partial = entry.partial;
        u64 place = (u64)(partial == NONE ? entry.row : partial) * args.num_heads + head;
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) {
            u32 d = first_d + 8 * j;
            f32 x = total[j][2 * half], y = total[j][2 * half + 1];
            if (partial == NONE) {
                if (d < args.head_dim) *reinterpret_cast<u32*>(args.out + place * args.head_dim + d) = f2bf2(x, y);
            } else if (d < DP) {
                *reinterpret_cast<float2*>(args.partial_o + place * DP + d) = float2{x, y};
            }
        }
        if (partial != NONE && writes_lse) args.partial_lse[place] = total_lse[half];
    }
};

// Scaled scores of a thread, keys beyond what the row sees at -inf; the largest of the row over the four lanes that have it.
template <u32 COUNT>
__device__ __forceinline__ f32 mask_scores(f32 (&s)[COUNT][4], u32 half, u32 first_key, u32 visible, f32 scale) {
    const u32 t = threadIdx.x % 4;
    f32 most = neg_inf();
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            f32& x = s[i][2 * half + e];
            x = first_key + 8 * i + 2 * t + e < visible ? __fmul_rn(x, scale) : neg_inf();
            most = fmaxf(most, x);
        }
    }
    most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
    return fmaxf(most, __shfl_xor_sync(FULL, most, 2));
}

// Weights in the place of the scores of sixteen keys, and their sum over the four lanes.
__device__ __forceinline__ f32 weigh(f32 (&low)[4], f32 (&high)[4], u32 half, f32 from) {
#pragma unroll
    for (u32 e = 0; e < 2; e++) {
        low[2 * half + e] = exp2_fast(__fsub_rn(low[2 * half + e], from));
        high[2 * half + e] = exp2_fast(__fsub_rn(high[2 * half + e], from));
    }
    f32 sum = (low[2 * half] + low[2 * half + 1]) + (high[2 * half] + high[2 * half + 1]);
    sum += __shfl_xor_sync(FULL, sum, 1);
    return sum + __shfl_xor_sync(FULL, sum, 2);
}

// A tile in shared memory and the walk's place.
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
        for (u32 k = 0; k < K_STEPS; k++) ldmatrix_x4(q[k], here.queries + Tile<DP>::at(lane % 16, 2 * k + lane / 16));
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
            ldmatrix_x4(b, here.keys + Tile<DP>::at(k_row, 2 * k + k_piece));
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
                    ldmatrix_x4_trans(b, here.values + Tile<DP>::at(16 * k + lane % 16, warp * OWN + j + lane / 16));
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
                    ldmatrix_x4_trans(b, here.values + Tile<DP>::at(32 * half + lane, warp));
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
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        f32 s[8][4] = {};
#pragma unroll
        for (u32 k = 0; k < DP / 16; k++) {
            u32 a[4];
            ldmatrix_x4(a, here.queries + Tile<DP>::at(16 * warp + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (u32 i = 0; i < TILE / 16; i++) {
                u32 b[4];
                ldmatrix_x4(b, here.keys + Tile<DP>::at(16 * i + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
                mma(s[2 * i], a, b[0], b[1]);
                mma(s[2 * i + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 visible = minus(rows.seen[half], TILE * here.view.segment_tile);
            f32 alpha, sums[4];
            f32 from = rows.raise(half, mask_scores(s, half, 0, visible, scale), alpha);
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[i] = weigh(s[2 * i], s[2 * i + 1], half, from);
            rows.add_weights(half, alpha, (sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) {
            const f32(&low)[4] = s[2 * k];
            const f32(&high)[4] = s[2 * k + 1];
            u32 a[4] = {f2bf2(low[0], low[1]), f2bf2(low[2], low[3]), f2bf2(high[0], high[1]), f2bf2(high[2], high[3])};
#pragma unroll
            for (u32 j = 0; j < EIGHTS; j += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, here.values + Tile<DP>::at(16 * k + lane % 16, j + lane / 16));
                mma(rows.o[j], a, b[0], b[1]);
                mma(rows.o[j + 1], a, b[2], b[3]);
            }
        }
    }
};

template <u32 DP, class Team>
__device__ __forceinline__ void attend(const Args& args) {
    using S = typename Team::S;
    constexpr u32 STAGES = S::STAGES;
    extern __shared__ __align__(128) u8 smem[];
    const u32 base = smem_u32(smem);
    const f32 scale = args.scale * LOG2_E;

    Cursor next;
    next.start(args);
    // Lists are there since the step began, queries and keys since the launch before.
    if (!args.after_wide) wait_for_earlier_kernel();
    if (Team::WIDE) let_next_kernel_begin();
    auto load = [&](u32 stage) {
        if (next.valid(args)) {
            load_keys_and_values<DP>(args, next, base + stage * S::STAGE);
            u32 slot = next.item % STAGES;
            if (next.tile == 0) load_queries<DP, S::ROWS>(args, next, smem + S::E + slot * S::ENTRIES, smem + S::Q + slot * S::QUERIES);
            if (threadIdx.x == 0) {
                u32 flags = (next.tile == 0 ? FIRST : 0) | (next.tile + 1 == next.tiles ? LAST : 0) | (next.in_prompt() ? PROMPT : 0) | (next.counted ? COUNTED : 0);
                View view = {next.head, next.num_entries * args.shared, slot, flags, next.segment_tile(), next.segment_keys(), 0, 0};
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
            for (u32 half = 0; half < 2; half++) {
                u32 row = Team::row_of(half);
                team.rows.total_lse[half] = neg_inf();
                if (!Team::WIDE && row < v.num_rows) {
                    const AttentionEntry& entry = here.entries[row / args.shared];
                    u64 place = (u64)entry.first_partial * args.num_heads + head_of(row);
                    if (entry.partial == NONE && entry.num_partials > 0) team.rows.template continue_from<DP>(args, half, place, entry.num_partials, Team::first_d());
                }
            }
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
            if (v.flags & COUNTED) finish_rows<DP>(args, v, here.entries, reinterpret_cast<u32*>(smem + S::LAST));
        }
    }
    wait_for_earlier_kernel();
}

#define PARAMETERS                                                                                                                          \
    const u16 *q, const u16 *kv, const u32 *counts, const AttentionItem *items, const AttentionEntry *entries, const u32 *tables,           \
        u32 num_heads, u32 num_kv_heads, u32 head_dim, f32 scale, u16 *out, f32 *partial_o, f32 *partial_lse, u32 *finished, u32 after_wide
#define ARGUMENTS(kind)                                                                                                                     \
    Args {                                                                                                                                  \
        q, kv, items, entries, tables, num_heads, num_kv_heads, head_dim, num_heads / num_kv_heads, counts[kind] * num_kv_heads, scale, out,\
            partial_o, partial_lse, finished, after_wide                                                                                    \
    }
// A wide block leaves room for a narrow one beside it, which the launch after it may begin with.
#define KERNELS(DP)                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_wide_##DP(PARAMETERS) { attend<DP, Wide<DP>>(ARGUMENTS(0)); }            \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_narrow_##DP(PARAMETERS) { attend<DP, Narrow<DP>>(ARGUMENTS(1)); }

KERNELS(16)
KERNELS(32)
KERNELS(64)
KERNELS(128)

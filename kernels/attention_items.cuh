// What attention walks: items and entries as the host lists them, the walk over their tiles, and how keys, values and queries get into shared
// memory.
#pragma once
#include "common.cuh"
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "hopper.cuh"
#endif

struct AttentionItem {
    u32 first_entry, num_entries, prompt_table, prompt_keys, own_table, own_keys, counted, num_partials;
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

// A partial of a row and head: its output, its LSE, and as much as lets eight of them lie in shared memory without sharing banks.
template <u32 DP>
struct Partial {
    static constexpr u32 LSE = DP;
    static constexpr u32 LEN = DP + 8;
    static constexpr u32 BYTES = 4 * LEN;
};

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
    f32* partials;
    u32* finished;
    // Whether the launch before this one is the wide walk of the same step: then only what that wrote must be waited for.
    u32 after_prompts;
};

// A place in the walk over tiles that are loaded: which item and kv head, which of its tiles. Partials that an item GOES_ON from come as tiles
// of their own, before the last one of its first chunk: by then the walk that makes them has most likely ended.
template <bool GOES_ON>
struct Cursor {
    u32 work, head, first_entry, num_entries, counted;
    u32 prompt_table, prompt_keys, own_table, own_keys, num_partials;
    u32 prompt_tiles, tiles, tile;
    // Of tiles of partials: the first, how many, how many partials in each.
    u32 partials_at, partial_tiles, partials_a_tile;
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
        num_partials = y.w;
        prompt_tiles = cdiv(prompt_keys, TILE);
        const u32 own_tiles = cdiv(own_keys, TILE);
        partials_at = minus(min_u32(own_tiles, TILES_A_CHUNK), 1);
        partial_tiles = GOES_ON ? cdiv(num_partials, partials_a_tile) : 0;
        tiles = prompt_tiles + own_tiles + partial_tiles;
        tile = 0;
    }

    __device__ __forceinline__ bool in_partials() const { return GOES_ON && tile - partials_at < partial_tiles; }
    // Those of this tile.
    __device__ __forceinline__ u32 first_partial() const { return (tile - partials_at) * partials_a_tile; }
    __device__ __forceinline__ u32 partials() const { return min_u32(partials_a_tile, num_partials - first_partial()); }

    __device__ __forceinline__ bool in_prompt() const { return tile < prompt_tiles; }
    // Tile of its segment.
    __device__ __forceinline__ u32 segment_tile() const {
        return in_prompt() ? tile : tile - prompt_tiles - (GOES_ON && tile >= partials_at + partial_tiles ? partial_tiles : 0);
    }
    __device__ __forceinline__ u32 segment_keys() const { return in_prompt() ? prompt_keys : own_keys; }

    __device__ __forceinline__ void load_blocks(const Args& args) {
        u32 i = segment_tile();
        const u32* table = args.tables + (in_prompt() ? prompt_table : own_table) + 2 * i;
        keys = min_u32(TILE, segment_keys() - TILE * i);
        block0 = table[0];
        block1 = keys > BLOCK_SIZE ? table[1] : block0;
    }

    __device__ __forceinline__ void start(const Args& args, u32 bytes_a_tile, u32 bytes_a_partial) {
        work = blockIdx.x;
        item = 0;
        partials_a_tile = bytes_a_tile / bytes_a_partial;
        if (valid(args)) {
            load_item(args);
            if (!in_partials()) load_blocks(args);
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
        if (!in_partials()) load_blocks(args);
    }
};

// What is needed to compute with a tile once it is there.
struct View {
    u32 head, num_rows, item, flags, segment_tile, segment_keys, partials, unused;
};
static_assert(sizeof(View) == 32, "View");
constexpr u32 FIRST = 1, LAST = 2, PROMPT = 4, COUNTED = 8, PARTIALS = 16;

// ---- shared memory

constexpr u32 THREADS = 32 * WARPS;

// COUNT queries, keys or values in shared memory: as mma wants them, or 64 dimensions after the other, as products of a warpgroup do.
template <u32 DP, u32 COUNT = TILE>
struct Block {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static constexpr bool HALVES = DP % 64 == 0;
#else
    static constexpr bool HALVES = false;
#endif
    // From one row to the next, from one half to the next.
    static constexpr u32 ROW = HALVES ? 128 : Tile<DP>::ROW;
    static constexpr u32 HALF = COUNT * 128;
    static constexpr u32 BYTES = COUNT * Tile<DP>::ROW;
    static __device__ __forceinline__ u32 at(u32 row, u32 piece) {
        return HALVES ? piece / 8 * HALF + Tile<64>::at(row, piece % 8) : Tile<DP>::at(row, piece);
    }
};

template <u32 DP, u32 MAX_ROWS, u32 NUM_STAGES>
struct Smem {
    static constexpr u32 ROWS = MAX_ROWS;
    static constexpr u32 STAGES = NUM_STAGES;
    static constexpr u32 KEYS = Block<DP>::BYTES;
    static constexpr u32 STAGE = 2 * KEYS;
    static constexpr u32 QUERIES = Block<DP, ROWS>::BYTES;
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

template <u32 DP, class Cursor>
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
        u32 dst = stage + Block<DP>::at(row, piece);
        cp_async16(dst, src, bytes);
        cp_async16(dst + Block<DP>::BYTES, src + side, bytes);
    }
}

// Partials that an item's rows go on from: those of a kv head lie together.
template <u32 DP, class Cursor>
__device__ __forceinline__ void load_partials(const Args& args, const Cursor& c, u32 stage) {
    const u32 pieces = args.shared * Partial<DP>::BYTES / 16, count = c.partials() * pieces;
    const u64 stride = (u64)args.num_heads * Partial<DP>::LEN;
    const f32* from = args.partials + (c.prompt_table + c.first_partial()) * stride + (u64)c.head * args.shared * Partial<DP>::LEN;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < count; i += THREADS) cp_async16(stage + 16 * i, from + i / pieces * stride + i % pieces * 4, 16);
}

// An item's entries and queries; rows beyond its own are zero.
template <u32 DP, u32 ROWS, class Cursor>
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
        u8* dst = queries + Block<DP, ROWS>::at(row, piece);
        if (args.head_dim % 8 == 0) {
            cp_async16(smem_u32(dst), src, used ? 16 : 0);
        } else {
#pragma unroll
            for (u32 d = 0; d < 8; d++) reinterpret_cast<u16*>(dst)[d] = used && piece * 8 + d < args.head_dim ? src[d] : (u16)0;
        }
    }
}

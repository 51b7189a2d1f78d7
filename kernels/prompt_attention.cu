// The walk over prompts that rows of a step share: a group's samples read each chunk of their prompt once, together.
//
// A block takes (item, kv head) pairs; an item is one chunk of 256 keys and up to 64 queries (rows that share the prompt × query heads of the
// kv head), sixteen a warp. The numbers and their order are those of attention.cu; every result goes to a partial.
//
// What a block does is over in a few microseconds, so everything serves its start and its end: the code is short (it runs once and comes from
// memory), queries go from memory to registers in loads of 16 bytes, and the first keys and values are asked for before the kernel that makes
// the queries has ended: the prompt was written in an earlier step. Partials are gathered in shared memory and leave in bulk, those of a row
// together. Three blocks fit a multiprocessor.
// On sm_90a the four warps multiply as one, so that they read keys and values once; an element of their products is that of mma.
// Bytes moved: keys and values of an item once (4 · D bytes a key and kv head), O and LSE of partials once.
#include "attention_rows.cuh"

// A block's chunk.
struct Chunk {
    u32 head, num_rows, keys, counted;
    const u32* table;
    const AttentionEntry* entries;

    __device__ __forceinline__ Chunk(const Args& args, u32 work) {
        const AttentionItem& item = args.items[work / args.num_kv_heads];
        head = work % args.num_kv_heads;
        num_rows = item.num_entries * args.shared;
        keys = item.prompt_keys;
        counted = item.counted;
        table = args.tables + item.prompt_table;
        entries = args.entries + item.first_entry;
    }

    // Keys (side 0) or values (side 1) of a tile, one group of copies. Beyond the last tile the group is empty.
    template <u32 DP>
    __device__ __forceinline__ void load(const Args& args, u32 tile, u32 side, u32 dst) const {
        constexpr u32 PIECES = DP / 8, ROWS_A_ROUND = THREADS / PIECES;
        static_assert(ROWS_A_ROUND % 8 == 0, "the permutation of pieces is that of the round's first rows");
        const u32 thread = threadIdx.x % THREADS, first_row = thread / PIECES, piece = thread % PIECES;
        if (TILE * tile < keys) {
            const u32 here = min_u32(TILE, keys - TILE * tile);
            const u32 block0 = table[2 * tile], block1 = here > BLOCK_SIZE ? table[2 * tile + 1] : block0;
            const u16* from = args.kv + ((u64)side * args.num_kv_heads + head) * BLOCK_SIZE * DP + piece * 8;
            const u64 stride = (u64)2 * args.num_kv_heads * BLOCK_SIZE * DP;
            from += first_row % BLOCK_SIZE * DP;
            const u16 *first = from + block0 * stride, *second = from + block1 * stride;
            // Eight rows on, a piece has the same place in its row.
            const u32 at = dst + Block<DP>::at(first_row, piece);
#pragma unroll
            for (u32 row = 0; row < TILE; row += ROWS_A_ROUND) {
                const u16* block = (ROWS_A_ROUND <= BLOCK_SIZE ? row : first_row) < BLOCK_SIZE ? first : second;
                const u16* src = block + row % BLOCK_SIZE * DP;
                cp_async16(at + row * Block<DP>::ROW, src, row + first_row < here ? 16 : 0);
            }
        }
        cp_async_commit();
    }
};

// A thread's rows among an item's.
__device__ __forceinline__ u32 row_of(u32 half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }

// Lane t of four has piece t of four, and gets word t of each.
__device__ __forceinline__ void transpose(uint4& w) {
    const bool odd = threadIdx.x % 2, upper = threadIdx.x / 2 % 2;
    const u32 a = __shfl_xor_sync(FULL, odd ? w.x : w.y, 1), b = __shfl_xor_sync(FULL, odd ? w.z : w.w, 1);
    w = odd ? uint4{a, w.y, b, w.w} : uint4{w.x, a, w.z, b};
    const u32 c = __shfl_xor_sync(FULL, upper ? w.x : w.z, 2), d = __shfl_xor_sync(FULL, upper ? w.y : w.w, 2);
    w = upper ? uint4{c, d, w.z, w.w} : uint4{w.x, w.y, c, d};
}

// A warp's sixteen queries as operands; rows beyond the item's are 0.
template <u32 DP>
__device__ __forceinline__ void load_queries(const Args& args, const Chunk& c, u32 (&q)[DP / 16][4]) {
    const u32 lane = threadIdx.x % 32;
    const u16* from[2];
    bool used[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = row_of(half);
        used[half] = row < c.num_rows;
        from[half] = args.q;
        if (used[half]) from[half] += ((u64)c.entries[row / args.shared].row * args.num_heads + c.head * args.shared + row % args.shared) * args.head_dim;
    }
    if (DP >= 32 && args.head_dim % 8 == 0) {
        constexpr u32 FOURS = DP >= 32 ? DP / 32 : 1;
        uint4 w[2][FOURS];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 f = 0; f < FOURS; f++) {
                const u32 piece = 4 * f + lane % 4;
                w[half][f] = used[half] && piece * 8 < args.head_dim ? reinterpret_cast<const uint4*>(from[half])[piece] : uint4{0, 0, 0, 0};
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 f = 0; f < FOURS; f++) {
                transpose(w[half][f]);
                const u32 words[4] = {w[half][f].x, w[half][f].y, w[half][f].z, w[half][f].w};
#pragma unroll
                for (u32 i = 0; i < 4; i++) q[(4 * f + i) / 2 % (DP / 16)][i % 2 * 2 + half] = words[i];
            }
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < DP / 4; i++) {
            const u32 half = i % 2, d = i / 2 * 8 + 2 * (lane % 4);
            q[i / 4][i / 2 % 2 * 2 + half] = used[half] && d < args.head_dim ? *reinterpret_cast<const u32*>(from[half] + d) : 0;
        }
    }
}

template <u32 DP>
__device__ __forceinline__ void attend(const Args& args, bool prompts_are_old) {
    constexpr u32 EIGHTS = DP / 8, BYTES = Block<DP>::BYTES;
    extern __shared__ __align__(1024) u8 dynamic[];
    // Where permutations begin.
    u8* smem = dynamic + (0u - smem_u32(dynamic)) % 1024;
    // Keys two tiles, values one.
    const u32 keys_at = smem_u32(smem), values_at = keys_at + 2 * BYTES;
    const f32 scale = args.scale * LOG2_E;

    if (!prompts_are_old) wait_for_earlier_kernel();
#pragma unroll 1
    for (u32 work = blockIdx.x; work < args.num_work; work += gridDim.x) {
        const Chunk c(args, work);
        __syncthreads();
        c.load<DP>(args, 0, 0, keys_at);
        c.load<DP>(args, 0, 1, values_at);
        c.load<DP>(args, 1, 0, keys_at + BYTES);
        wait_for_earlier_kernel();
        let_next_kernel_begin();
        KeptQueries<DP> queries;
        load_queries<DP>(args, c, queries.q);
        Rows<EIGHTS> rows;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = row_of(half);
            rows.begin_chunk(half, row < c.num_rows ? c.entries[row / args.shared].prompt_keys : 0);
        }
        const u32 num_tiles = cdiv(c.keys, TILE);
        // The group that was waited for is there for all.
        auto meet = [] {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
            written_for_accelerator();
#endif
            __syncthreads();
        };
        cp_async_wait<2>();
        meet();
#pragma unroll 1
        for (u32 tile = 0; tile < num_tiles; tile++) {
            const u32 keys = keys_at + tile % 2 * BYTES;
            f32 s[8][4] = {};
            wide_scores<DP>(s, queries, keys);
            wide_weights(s, rows, tile, scale);
            // This tile's values and the next one's keys are there, and nobody reads these keys any more.
            cp_async_wait<0>();
            meet();
            c.load<DP>(args, tile + 2, 0, keys);
            wide_values<DP>(s, rows, values_at);
            __syncthreads();
            c.load<DP>(args, tile + 1, 1, values_at);
        }
        const Chunk done(args, recomputed(work));
        const u32 lane = threadIdx.x % 4, num_entries = done.num_rows / args.shared;
        auto partial = [&](u32 entry) {
            return args.partials + ((u64)done.entries[entry].partial * args.num_heads + done.head * args.shared) * Partial<DP>::LEN;
        };
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        static_assert(64 * Partial<DP>::BYTES <= 3 * BYTES, "partials have room where keys and values were");
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            rows.template store_chunk<DP>(reinterpret_cast<f32*>(smem + row_of(half) * Partial<DP>::BYTES), half, 2 * lane, lane == 0);
        }
        meet();
        if (threadIdx.x < num_entries) {
            const u32 bytes = args.shared * Partial<DP>::BYTES;
            store_bytes(partial(threadIdx.x), smem_u32(smem) + threadIdx.x * bytes, bytes);
            stores_wait();
        }
#else
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = row_of(half);
            if (row < done.num_rows) rows.template store_chunk<DP>(partial(row / args.shared) + row % args.shared * Partial<DP>::LEN, half, 2 * lane, lane == 0);
        }
#endif
        if (done.counted) finish_rows<DP>(args, done.head, num_entries, done.entries, reinterpret_cast<u32*>(smem + 3 * BYTES));
    }
    wait_for_earlier_kernel();
}

#define KERNEL(DP)                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                                                        \
        prompt_attention_##DP(const u16* q, const u16* kv, const u32* counts, const AttentionItem* items, const AttentionEntry* entries,        \
                              const u32* tables, u32 num_heads, u32 num_kv_heads, u32 head_dim, f32 scale, u16* out, f32* partials,             \
                              u32* finished) {                                                                                                  \
        attend<DP>(Args{q, kv, items, entries, tables, num_heads, num_kv_heads, head_dim, num_heads / num_kv_heads, counts[2] * num_kv_heads,   \
                        scale, out, partials, finished, 0},                                                                                     \
                   counts[3] != 0);                                                                                                             \
    }

KERNEL(16)
KERNEL(32)
KERNEL(64)
KERNEL(128)

// Logits and what they are drawn by, in one: x · wᵀ, of which only parts of softmaxes leave (`gemm_tiles.cuh`, `sample_tile.cuh`).
//
// A tile is 192 entries of the vocabulary: 151,936 are six rounds of 132 multiprocessors, to the tile. Parts are those of `sample_parts`.
// Bytes moved: 32 a row and tile in place of 4 a logit, twice.
#include "gemm_tiles.cuh"
#include "sample_tile.cuh"

// Tiles that can be marked: more than any vocabulary has.
constexpr u32 MOST_TILES = 8192;

template <u32 WARPGROUPS>
struct Parts {
    static constexpr u32 BOXES = 1, BOX_ROWS = DRAW_TILE, STRIP_BYTES = 0;

    const SampleRow* asked;
    const u32* banned;
    // In shared memory, a bit for each tile of which some row lacks an entry: there, logits are wanted.
    u32 (&lacking)[MOST_TILES / 32];
    u32 vocab, rows;
    SamplePart* parts;
    f32* logits;

    // What rows ask for is there since the step began.
    __device__ __forceinline__ void begin() const {
        constexpr u32 THREADS = 128 * WARPGROUPS;
        for (u32 i = threadIdx.x; i < MOST_TILES / 32; i += THREADS) lacking[i] = 0;
        threads_meet<THREADS>(1);
        for (u32 row = threadIdx.x; row < rows; row += THREADS) {
            for (u32 i = 0; i < asked[row].banned_len; i++) {
                const u32 tile = banned[asked[row].banned_start + i] / DRAW_TILE;
                atomicOr(&lacking[tile / 32], 1u << tile % 32);
            }
        }
        threads_meet<THREADS>(1);
    }

    __device__ __forceinline__ u32 tiles() const { return cdiv(vocab, DRAW_TILE); }
    __device__ __forceinline__ u32 first_row(u32 tile, u32) const { return tile * DRAW_TILE; }

    // Of the lane's two rows.
    struct Ahead {
        f32 temperature[2];
        u32 word[2];
    };

    __device__ __forceinline__ Ahead ahead(u32 row, u32) const {
        Ahead of;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const SampleRow& from = asked[min_u32(row + threadIdx.x % 32 / 4 + 8 * half, rows - 1)];
            of.temperature[half] = from.temperature;
            of.word[half] = from.random[ENTRY_WORD];
        }
        return of;
    }

    __device__ __forceinline__ void store_logits(const f32 (&sums)[DRAW_TILE / 2], u32 row, u32 first) const {
#pragma unroll
        for (u32 i = 0; i < DRAW_TILE / 2; i++) {
            const u32 at = row + threadIdx.x % 32 / 4 + i / 2 % 2 * 8, id = entry_id(first, i / 4 * 2 + i % 2);
            if (at < rows && id < vocab) logits[(u64)at * vocab + id] = sums[i];
        }
    }

    __device__ __forceinline__ void finish(f32 (&sums)[DRAW_TILE / 2], const Ahead& ahead, u32 row, u32 tile, u32) const {
        const u32 first = tile * DRAW_TILE;
        if (lacking[tile / 32] >> tile % 32 & 1) store_logits(sums, row, first);
        if (first + DRAW_TILE > vocab) {
#pragma unroll
            for (u32 i = 0; i < DRAW_TILE / 2; i++) {
                if (entry_id(first, i / 4 * 2 + i % 2) >= vocab) sums[i] = BEYOND;
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            f32 x[ENTRIES];
#pragma unroll
            for (u32 i = 0; i < ENTRIES; i++) x[i] = sums[i / 2 * 4 + 2 * half + i % 2];
            const u32 at = row + threadIdx.x % 32 / 4 + 8 * half;
            const SamplePart part = part_of(x, first, ahead.temperature[half], ahead.word[half]);
            if (threadIdx.x % 4 == 0 && at < rows) store_part(parts + (u64)at * tiles() + tile, part);
        }
    }
};

// Kernels are named by their rows.
#define KERNEL(NAME, WARPGROUPS, HEIGHT, STAGES)                                                                                           \
    static_assert(NAME == Tiles<Parts<WARPGROUPS>, WARPGROUPS, HEIGHT, STAGES>::ROWS, "a kernel is named by its rows");                    \
    extern "C" __global__ void __launch_bounds__(Tiles<Parts<WARPGROUPS>, WARPGROUPS, HEIGHT, STAGES>::THREADS, 1)                         \
        gemm_sample_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u32 k, u32 rows,                      \
                           const SampleRow* asked, const u32* banned, u32 vocab, SamplePart* parts, f32* logits) {                         \
        __shared__ u32 lacking[MOST_TILES / 32];                                                                                           \
        Tiles<Parts<WARPGROUPS>, WARPGROUPS, HEIGHT, STAGES>::run(x, w, k, rows, {asked, banned, lacking, vocab, rows, parts, logits});    \
    }

KERNEL(64, 1, 1, 7)
KERNEL(128, 2, 1, 5)
KERNEL(256, 2, 2, 4)

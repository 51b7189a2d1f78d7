// out = f(x · wᵀ) by warpgroups, in tiles that come by the tensor memory accelerator. The f32 sums of a tile end where they are made: what
// becomes of them, and which rows of w make a tile, is the Epilogue's.
//
// The order, for one sum: steps of 16 columns in ascending order into one f32 accumulator, as the kernels of cublasLt sum that are admitted
// elsewhere (the host compares bits before it uses these).
//
// Decomposition: a tile is 64 · HEIGHT rows of x for each of WARPGROUPS by the Epilogue's rows of w. Blocks go through the tiles of the grid in
// turn. One lane of one more warp keeps STAGES of 64 columns of both operands on their way, across tiles. Weights change only between steps:
// those of the first stages are asked for before the kernel that makes x has ended. A tile's outputs gather, a warp's 16 rows at a time, in the
// stage that was read last, from where they leave in whole sectors.
// Bytes moved: x and w once a tile from L2, w once from memory while its row tiles run side by side; out once.
#pragma once
#include "hopper.cuh"

constexpr u32 COLUMNS = 64;
constexpr u32 ROW_BYTES = 2 * COLUMNS;
// Row tiles that are worked on side by side before the next outputs: what they read of w stays in L2.
constexpr u32 SIDE_BY_SIDE = 8;
// Rows of outputs that leave together: a warp's of 64.
constexpr u32 STRIP = 16;

// An Epilogue has `tiles()` of w, each BOXES of BOX_ROWS rows, box `i` from `first_row(tile, i)` on; STRIP_BYTES of shared memory for a warp's 16
// rows, or none; `begin()`, by all that multiply before anything else; `ahead(row, tile)`, what a warp reads for its rows from `row` on while their
// products are made; `finish(sums, ahead, row, tile, strip)`, which makes them outputs by way of the strip and leaves that free for the next; `leave()`,
// until a strip may be written by the accelerator.
template <class Epilogue, u32 WARPGROUPS, u32 HEIGHT, u32 STAGES>
struct Tiles {
    static constexpr u32 ROWS = 64 * HEIGHT * WARPGROUPS, BOX_BYTES = Epilogue::BOX_ROWS * ROW_BYTES, SUMS = Epilogue::BOXES * Epilogue::BOX_ROWS / 2;
    static constexpr u32 X_BYTES = ROWS * ROW_BYTES, STAGE = X_BYTES + Epilogue::BOXES * BOX_BYTES;
    static_assert(X_BYTES % 1024 == 0 && BOX_BYTES % 1024 == 0, "operands begin where the swizzle does");
    // Every 64 rows of a warpgroup have strips of their own where there is room.
    static constexpr u32 STRIPS = 4 * WARPGROUPS * HEIGHT * Epilogue::STRIP_BYTES <= STAGE ? HEIGHT : 1;
    static_assert(4 * WARPGROUPS * STRIPS * Epilogue::STRIP_BYTES <= STAGE, "outputs take the place of operands");
    // Sums that fill a thread's registers: the warp that fetches leaves its own to those that multiply, which goes by warpgroups.
    static constexpr bool LEAVE_REGISTERS = HEIGHT * SUMS > 88 && WARPGROUPS > 1;
    static constexpr u32 THREADS = 128 * WARPGROUPS + (LEAVE_REGISTERS ? 128 : 32);

    const TensorMap &x, &w;
    const Epilogue& epilogue;
    u32 k, row_tiles, w_tiles, smem, full, empty;

    // Place in the list of tiles to their first row and tile of w.
    __device__ __forceinline__ void locate(u32 place, u32& row, u32& tile) const {
        const u32 band_tiles = SIDE_BY_SIDE * w_tiles, band = place / band_tiles, within = place - band * band_tiles;
        const u32 height = min_u32(SIDE_BY_SIDE, row_tiles - band * SIDE_BY_SIDE);
        tile = within / height;
        row = (band * SIDE_BY_SIDE + within % height) * ROWS;
    }

    __device__ __forceinline__ void fetch_w(u32 stage, u32 tile, u32 column) const {
#pragma unroll
        for (u32 i = 0; i < Epilogue::BOXES; i++)
            copy_box(smem + stage * STAGE + X_BYTES + i * BOX_BYTES, w, column, epilogue.first_row(tile, i), full + 8 * stage);
    }

    __device__ __forceinline__ void fetch_x(u32 stage, u32 row, u32 column) const {
        copy_box(smem + stage * STAGE, x, column, row, full + 8 * stage);
    }

    // One lane: every stage of every tile, as room for it comes.
    __device__ __forceinline__ void fetch() const {
        const u32 steps = cdiv(k, COLUMNS), early = min_u32(STAGES, steps);
        u32 place = blockIdx.x, row, tile;
        locate(place, row, tile);
#pragma unroll 1
        for (u32 step = 0; step < early; step++) {
            barrier_expect(full + 8 * step, STAGE);
            fetch_w(step, tile, step * COLUMNS);
        }
        wait_for_earlier_kernels();
#pragma unroll 1
        for (u32 step = 0; step < early; step++) fetch_x(step, row, step * COLUMNS);
        u32 stage = early % STAGES, round = early / STAGES, step = early;
        for (;;) {
#pragma unroll 1
            for (; step < steps; step++) {
                barrier_wait(empty + 8 * stage, (round & 1) ^ 1);
                barrier_expect(full + 8 * stage, STAGE);
                fetch_w(stage, tile, step * COLUMNS);
                fetch_x(stage, row, step * COLUMNS);
                if (++stage == STAGES) {
                    stage = 0;
                    round++;
                }
            }
            place += gridDim.x;
            if (place >= row_tiles * w_tiles) break;
            locate(place, row, tile);
            step = 0;
        }
    }

    // One warpgroup: its rows of every tile.
    __device__ __forceinline__ void multiply() const {
        const u32 steps = cdiv(k, COLUMNS), group = __shfl_sync(FULL, threadIdx.x / 128, 0);
        u32 stage = 0, round = 0, before = 0;
        auto release = [&](u32 stage) {
            if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
        };
        epilogue.begin();
        wait_for_earlier_kernels();
        for (u32 place = blockIdx.x; place < row_tiles * w_tiles; place += gridDim.x) {
            u32 row, tile;
            locate(place, row, tile);
            row += group * HEIGHT * 64 + threadIdx.x / 32 % 4 * STRIP;
            typename Epilogue::Ahead ahead[HEIGHT];
#pragma unroll
            for (u32 h = 0; h < HEIGHT; h++) ahead[h] = epilogue.ahead(row + h * 64, tile);
            f32 sums[HEIGHT][SUMS] = {};
            products_are_in(sums);
#pragma unroll 1
            for (u32 step = 0; step < steps; step++) {
                barrier_wait(full + 8 * stage, round & 1);
                const u32 at = smem + stage * STAGE;
                const u64 a = tile_descriptor(at + group * HEIGHT * 64 * ROW_BYTES), b = tile_descriptor(at + X_BYTES);
                products_begin();
#pragma unroll
                for (u32 i = 0; i < COLUMNS / 16; i++) {
#pragma unroll
                    for (u32 h = 0; h < HEIGHT; h++) add_products(sums[h], a + h * (64 * ROW_BYTES / 16) + 2 * i, b + 2 * i);
                }
                products_commit();
                // The stage before this one is read; this one is while the next is waited for.
                products_wait<1>();
                if (step > 0) release(before);
                before = stage;
                if (++stage == STAGES) {
                    stage = 0;
                    round++;
                }
            }
            products_wait<0>();
            products_are_in(sums);
            constexpr bool STRIPPED = Epilogue::STRIP_BYTES > 0;
            if constexpr (STRIPPED) threads_meet<128 * WARPGROUPS>(1);
            else release(before);
            const u32 strip = smem + before * STAGE + threadIdx.x / 32 * STRIPS * Epilogue::STRIP_BYTES;
#pragma unroll
            for (u32 h = 0; h < HEIGHT; h++)
                epilogue.finish(sums[h], ahead[h], row + h * 64, tile, strip + h % STRIPS * Epilogue::STRIP_BYTES);
            if constexpr (STRIPPED) {
                epilogue.leave();
                threads_meet<128>(2 + group);
                release(before);
            }
        }
        stores_wait();
    }

    // x [rows, k] and w [.., k] by their maps.
    static __device__ __forceinline__ void run(const TensorMap& x, const TensorMap& w, u32 k, u32 rows, const Epilogue& epilogue) {
        extern __shared__ u8 dynamic[];
        __shared__ u64 barriers[2 * STAGES];
        const u32 full = smem_u32(barriers), smem = (smem_u32(dynamic) + 1023) & ~1023u;
        const Tiles tiles = {x, w, epilogue, k, cdiv(rows, ROWS), epilogue.tiles(), smem, full, full + 8 * STAGES};
        if (threadIdx.x == 0) {
            for (u32 i = 0; i < STAGES; i++) {
                barrier_init(tiles.full + 8 * i, 1);
                barrier_init(tiles.empty + 8 * i, WARPGROUPS);
            }
            barriers_are_there();
        }
        __syncthreads();
        if (threadIdx.x < 128 * WARPGROUPS) {
            if constexpr (LEAVE_REGISTERS) more_registers<240>();
            tiles.multiply();
        } else {
            if constexpr (LEAVE_REGISTERS) fewer_registers<24>();
            if (threadIdx.x == 128 * WARPGROUPS) tiles.fetch();
        }
    }
};

// out = silu(x · gateᵀ + b) · (x · upᵀ + b'): the product that a gated MLP begins with, ended by its activation, so that its f32 sums never
// leave the multiprocessor. Tiles come by the tensor memory accelerator, warpgroups multiply them.
//
// The order, for one sum: steps of 16 columns in ascending order into one f32 accumulator, then the bias, as the kernels of cublasLt sum that are
// admitted elsewhere (the host compares bits before it uses this).
//
// Decomposition: a tile is 64 · HEIGHT rows of x for each of WARPGROUPS by 88 gates with their 88 ups: 11,008 of them are one wave of 132
// multiprocessors. Blocks go through the tiles of the grid in turn. One lane of one more warp keeps STAGES of 64 columns of both operands on
// their way, across tiles. Weights change only between steps: those of the first stages are asked for before the kernel that makes x has ended.
// A tile's outputs gather in the stage that was read last and leave it in bulk, whole sectors at a time.
// Bytes moved: x and w once a tile from L2, w once from memory while its row tiles run side by side; out once.
#include "hopper.cuh"

constexpr u32 COLUMNS = 64;
constexpr u32 ROW_BYTES = 2 * COLUMNS;
constexpr u32 WIDTH = 88;
// Row tiles that are worked on side by side before the next outputs: what they read of w stays in L2.
constexpr u32 SIDE_BY_SIDE = 8;

// Rows of outputs that leave together: a warp's of 64.
constexpr u32 STRIP = 16;

// Matrices by their maps; `width` gates and as many ups of `k` columns.
struct Product {
    const TensorMap &x, &w, &out;
    u32 width, k, rows;
    const f32* bias;
};

template <u32 WARPGROUPS, u32 HEIGHT, u32 STAGES>
struct Tiles {
    static constexpr u32 ROWS = 64 * HEIGHT * WARPGROUPS;
    static constexpr u32 X_BYTES = ROWS * ROW_BYTES, W_BYTES = 2 * WIDTH * ROW_BYTES, STAGE = X_BYTES + W_BYTES;
    static constexpr u32 OUT_BYTES = 2 * WIDTH;
    static_assert(ROWS * OUT_BYTES <= STAGE && STRIP * OUT_BYTES % 128 == 0, "outputs take the place of operands");
    static_assert(X_BYTES % 1024 == 0 && W_BYTES / 2 % 1024 == 0, "operands begin where the swizzle does");
    // Sums that fill a thread's registers: the warp that fetches leaves its own to those that multiply, which goes by warpgroups.
    static constexpr bool LEAVE_REGISTERS = HEIGHT > 1;
    static constexpr u32 THREADS = 128 * WARPGROUPS + (LEAVE_REGISTERS ? 128 : 32);

    const Product& product;
    u32 smem, full, empty, row_tiles, tiles;

    // Place in the list of tiles to their first row and output.
    __device__ __forceinline__ void locate(u32 place, u32& row, u32& column) const {
        const u32 band_tiles = SIDE_BY_SIDE * (tiles / row_tiles), band = place / band_tiles, within = place - band * band_tiles;
        const u32 height = min_u32(SIDE_BY_SIDE, row_tiles - band * SIDE_BY_SIDE);
        column = within / height * WIDTH;
        row = (band * SIDE_BY_SIDE + within % height) * ROWS;
    }

    __device__ __forceinline__ void fetch_w(u32 stage, u32 output, u32 column) const {
        const u32 at = smem + stage * STAGE + X_BYTES;
        copy_box(at, product.w, column, output, full + 8 * stage);
        copy_box(at + W_BYTES / 2, product.w, column, product.width + output, full + 8 * stage);
    }

    __device__ __forceinline__ void fetch_x(u32 stage, u32 row, u32 column) const {
        copy_box(smem + stage * STAGE, product.x, column, row, full + 8 * stage);
    }

    // One lane: every stage of every tile, as room for it comes.
    __device__ __forceinline__ void fetch() const {
        const u32 steps = cdiv(product.k, COLUMNS), early = min_u32(STAGES, steps);
        u32 place = blockIdx.x, row, output;
        locate(place, row, output);
#pragma unroll 1
        for (u32 step = 0; step < early; step++) {
            barrier_expect(full + 8 * step, STAGE);
            fetch_w(step, output, step * COLUMNS);
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
                fetch_w(stage, output, step * COLUMNS);
                fetch_x(stage, row, step * COLUMNS);
                if (++stage == STAGES) {
                    stage = 0;
                    round++;
                }
            }
            place += gridDim.x;
            if (place >= tiles) break;
            locate(place, row, output);
            step = 0;
        }
    }

    // One warpgroup: its rows of every tile.
    __device__ __forceinline__ void multiply() const {
        const u32 steps = cdiv(product.k, COLUMNS), group = __shfl_sync(FULL, threadIdx.x / 128, 0);
        u32 stage = 0, round = 0, before = 0;
        auto release = [&](u32 stage) {
            if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
        };
        wait_for_earlier_kernels();
        for (u32 place = blockIdx.x; place < tiles; place += gridDim.x) {
            f32 sums[HEIGHT][WIDTH] = {};
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
            threads_meet<128 * WARPGROUPS>(1);
            u32 row, output;
            locate(place, row, output);
#pragma unroll
            for (u32 h = 0; h < HEIGHT; h++) {
                const u32 strip = (group * HEIGHT + h) * 64 + threadIdx.x / 32 % 4 * STRIP, at = smem + before * STAGE + strip * OUT_BYTES;
                activate(sums[h], output, at);
                written_for_accelerator();
                __syncwarp();
                if (threadIdx.x % 32 == 0) store_box(product.out, output, row + strip, at);
            }
            stores_are_read();
            threads_meet<128>(2 + group);
            release(before);
        }
        stores_wait();
    }

    // The lane's sums of 64 rows; the warp's outputs to `at` in shared memory, row by row. Rows of 176 bytes meet every bank once.
    __device__ __forceinline__ void activate(const f32 (&sums)[WIDTH], u32 first_output, u32 at) const {
        const u32 lane = threadIdx.x % 32, output = first_output + 2 * (lane % 4), to = at + lane / 4 * OUT_BYTES + 4 * (lane % 4);
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; j++) {
            float2 of_gate = {0.0f, 0.0f}, of_up = {0.0f, 0.0f};
            if (product.bias && output + 8 * j < product.width) {
                of_gate = *reinterpret_cast<const float2*>(product.bias + output + 8 * j);
                of_up = *reinterpret_cast<const float2*>(product.bias + product.width + output + 8 * j);
            }
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const f32 *gate = sums + 4 * j + 2 * half, *up = gate + WIDTH / 2;
                const f32 y0 = silu_times(gate[0] + of_gate.x, up[0] + of_up.x), y1 = silu_times(gate[1] + of_gate.y, up[1] + of_up.y);
                store_shared(to + 8 * half * OUT_BYTES + 16 * j, f2bf2(y0, y1));
            }
        }
    }

    static __device__ __forceinline__ void run(const Product& product) {
        extern __shared__ u8 dynamic[];
        __shared__ u64 barriers[2 * STAGES];
        const u32 row_tiles = cdiv(product.rows, ROWS), full = smem_u32(barriers);
        const Tiles tiles = {product, (smem_u32(dynamic) + 1023) & ~1023u, full, full + 8 * STAGES, row_tiles, row_tiles * cdiv(product.width, WIDTH)};
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

#define KERNEL(NAME, WARPGROUPS, HEIGHT, STAGES)                                                                                           \
    static_assert(NAME == Tiles<WARPGROUPS, HEIGHT, STAGES>::ROWS, "a kernel is named by its rows");                                       \
    extern "C" __global__ void __launch_bounds__(Tiles<WARPGROUPS, HEIGHT, STAGES>::THREADS, 1)                                            \
        gemm_silu_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap out, \
                         u32 width, u32 k, u32 rows, const f32* bias) {                                                                    \
        Tiles<WARPGROUPS, HEIGHT, STAGES>::run({x, w, out, width, k, rows, bias});                                                         \
    }

KERNEL(64, 1, 1, 7)
KERNEL(128, 2, 1, 5)
KERNEL(256, 2, 2, 4)

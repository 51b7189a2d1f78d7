// out = x · wᵀ (or +=) for at most eight rows of x: a stream of weights, nothing else.
//
// The order, for one output: mma steps of 16 values in ascending order into one f32 accumulator, as the kernels of cublasLt sum that are
// admitted beside this one (the host compares bits before it uses either); `add` adds the old output to the sum at the end.
//
// Decomposition: a warp takes tiles of eight rows of w (outputs), one after the other, warps of one multiprocessor far from each other in the
// list so that all have equally many. Each warp keeps a ring of stages of 128 columns in shared memory, which it alone fills and reads; nothing
// is synchronised but the copy of x at the start. Weights change only between steps: their first stages are asked for before the kernel that
// makes x has ended, so that memory does not idle from one launch to the next.
// Bytes moved: w once, x once a block (from L2 after the first), out once.
#include "common.cuh"

// All copy x, some multiply.
constexpr u32 THREADS = 256;
constexpr u32 OUTPUTS = 8;
constexpr u32 COLUMNS = 128;
constexpr u32 PAIRS = COLUMNS / 32;
static_assert(PAIRS % 2 == 0, "operands of a stage's first pair are in the first of two places");
constexpr u32 STAGE = OUTPUTS * COLUMNS * 2;

// `OUTPUTS` rows of 256 bytes as two halves of 128: pieces of a row are permuted so that eight rows never meet in a bank.
__device__ __forceinline__ u32 stage_at(u32 row, u32 piece) { return piece / 8 * (STAGE / 2) + row * 128 + ((piece % 8 ^ row) << 4); }

// Places in the list of (tile, stage), in the order in which a warp goes through it.
struct Place {
    u32 tile, stage;

    __device__ __forceinline__ void advance(u32 stages, u32 stride) {
        if (++stage == stages) {
            stage = 0;
            tile += stride;
        }
    }
};

// All threads of a block: `rows` of so many pieces of 16 bytes to rows `stride` bytes apart.
__device__ __forceinline__ void copy_rows(const uint4* from, u32 pieces, u32 rows, u8* to, u32 stride) {
    // Several at once: one after the other, each would wait for memory.
    constexpr u32 AT_ONCE = 6;
    // Division by a reciprocal: exact, since quotients are below eight and the halves keep them away from whole numbers.
    const f32 inverse = 1.0f / (f32)pieces;
#pragma unroll 1
    for (u32 first = threadIdx.x; first < rows * pieces; first += AT_ONCE * THREADS) {
        uint4 x[AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            if (first + j * THREADS < rows * pieces) x[j] = from[first + j * THREADS];
        }
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 i = first + j * THREADS, row = (u32)(((f32)i + 0.5f) * inverse);
            if (i < rows * pieces) *reinterpret_cast<uint4*>(to + row * stride + (i - row * pieces) * 16) = x[j];
        }
    }
}

template <u32 WARPS, u32 DEPTH>
__device__ __forceinline__ void multiply(const u16* w, const u16* x, u32 n, u32 k, u32 rows, u32 add, f32* out) {
    extern __shared__ __align__(128) u8 smem[];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 ring = smem_u32(smem) + warp * DEPTH * STAGE;
    const u32 x_at = smem_u32(smem) + WARPS * DEPTH * STAGE, x_stride = 2 * k + 16;
    const u32 tiles = n / OUTPUTS, stages = k / COLUMNS, stride = gridDim.x * WARPS;

    Place next = {blockIdx.x + gridDim.x * warp, 0};
    const u32 first_tile = next.tile;
    auto load = [&](u32 slot) {
        if (next.tile < tiles) {
            const u16* from = w + (u64)next.tile * OUTPUTS * k + next.stage * COLUMNS;
#pragma unroll
            for (u32 i = 0; i < STAGE / 512; i++) {
                const u32 row = 2 * i + lane / 16, piece = lane % 16;
                cp_async16(ring + slot * STAGE + stage_at(row, piece), from + (u64)row * k + piece * 8, 16);
            }
            next.advance(stages, stride);
        }
        cp_async_commit();
    };
    if (warp < WARPS) {
#pragma unroll 1
        for (u32 slot = 0; slot + 1 < DEPTH; slot++) load(slot);
    }

    wait_for_earlier_kernels();
    copy_rows(reinterpret_cast<const uint4*>(x), k / 8, rows, smem + WARPS * DEPTH * STAGE, x_stride);
    __syncthreads();
    if (warp >= WARPS) return;

    // Four 8x8 matrices at a time: two steps of sixteen columns. Rows of x beyond the last are the last one's, and go nowhere.
    const u32 matrix = lane / 8, row = lane % 8;
    const u32 x_row = x_at + min_u32(row, rows - 1) * x_stride + matrix * 16;
    auto fetch = [&](u32 slot, u32 stage, u32 pair, u32(&a)[4], u32(&b)[4]) {
        ldmatrix_x4(a, x_row + stage * COLUMNS * 2 + pair * 64);
        ldmatrix_x4(b, ring + slot * STAGE + stage_at(row, 4 * pair + matrix));
    };
    // Operands are fetched a pair of steps ahead, across stages and tiles: the chain of sums never waits for them.
    u32 a[2][4], b[2][4], slot = 0;
    cp_async_wait<DEPTH - 2>();
    __syncwarp();
    fetch(0, 0, 0, a[0], b[0]);
#pragma unroll 1
    for (u32 tile = first_tile; tile < tiles; tile += stride) {
        f32 sums[4] = {};
#pragma unroll 1
        for (u32 stage = 0; stage < stages; stage++) {
            const u32 after = slot + 1 == DEPTH ? 0 : slot + 1;
            cp_async_wait<DEPTH - 3>();
            __syncwarp();
            load(slot == 0 ? DEPTH - 1 : slot - 1);
#pragma unroll
            for (u32 pair = 0; pair < PAIRS; pair++) {
                const u32 now = pair % 2;
                if (pair + 1 < PAIRS) {
                    fetch(slot, stage, pair + 1, a[now ^ 1], b[now ^ 1]);
                } else {
                    fetch(after, stage + 1 == stages ? 0 : stage + 1, 0, a[now ^ 1], b[now ^ 1]);
                }
                const u32 first[4] = {a[now][0], 0, a[now][1], 0}, second[4] = {a[now][2], 0, a[now][3], 0};
                mma(sums, first, b[now][0], b[now][1]);
                mma(sums, second, b[now][2], b[now][3]);
            }
            slot = after;
        }
        if (lane / 4 < rows) {
            float2* to = reinterpret_cast<float2*>(out + (u64)(lane / 4) * n + tile * OUTPUTS + 2 * (lane % 4));
            float2 old = add ? *to : float2{0.0f, 0.0f};
            *to = add ? float2{sums[0] + old.x, sums[1] + old.y} : float2{sums[0], sums[1]};
        }
    }
}

#define KERNEL(WARPS, DEPTH)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                            \
        gemm_few_##WARPS(const u16* w, const u16* x, u32 n, u32 k, u32 rows, u32 add, f32* out) {                                          \
        multiply<WARPS, DEPTH>(w, x, n, k, rows, add, out);                                                                                \
    }

// Few outputs: few warps, each with more on the way.
KERNEL(2, 24)
KERNEL(3, 16)
KERNEL(7, 8)

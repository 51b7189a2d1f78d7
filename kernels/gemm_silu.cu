// out = silu(x · gateᵀ + b) · (x · upᵀ + b'): the product that a gated MLP begins with, ended by its activation (`gemm_tiles.cuh`).
//
// A tile is 88 gates with their 88 ups: 11,008 of them are one wave of 132 multiprocessors. Its outputs leave in bulk.
#include "gemm_tiles.cuh"

constexpr u32 WIDTH = 88;

struct Gated {
    static constexpr u32 BOXES = 2, BOX_ROWS = WIDTH, OUT_BYTES = 2 * WIDTH, STRIP_BYTES = STRIP * OUT_BYTES;
    static_assert(STRIP_BYTES % 128 == 0, "stores begin there");

    const TensorMap& out;
    u32 width;
    const f32* bias;

    __device__ __forceinline__ u32 tiles() const { return cdiv(width, WIDTH); }
    __device__ __forceinline__ u32 first_row(u32 tile, u32 box) const { return box * width + tile * WIDTH; }

    __device__ __forceinline__ void begin() const {}
    struct Ahead {};
    __device__ __forceinline__ Ahead ahead(u32, u32) const { return {}; }

    // Rows of 176 bytes meet every bank once.
    __device__ __forceinline__ void finish(const f32 (&sums)[WIDTH], const Ahead&, u32 row, u32 tile, u32 strip) const {
        const u32 lane = threadIdx.x % 32, output = tile * WIDTH + 2 * (lane % 4), to = strip + lane / 4 * OUT_BYTES + 4 * (lane % 4);
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; j++) {
            float2 of_gate = {0.0f, 0.0f}, of_up = {0.0f, 0.0f};
            if (bias && output + 8 * j < width) {
                of_gate = *reinterpret_cast<const float2*>(bias + output + 8 * j);
                of_up = *reinterpret_cast<const float2*>(bias + width + output + 8 * j);
            }
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const f32 *gate = sums + 4 * j + 2 * half, *up = gate + WIDTH / 2;
                const f32 y0 = silu_times(gate[0] + of_gate.x, up[0] + of_up.x), y1 = silu_times(gate[1] + of_gate.y, up[1] + of_up.y);
                // What is left of a row is filled up with zeros: who reads it multiplies it by some.
                store_shared(to + 8 * half * OUT_BYTES + 16 * j, output + 8 * j < width ? f2bf2(y0, y1) : 0);
            }
        }
        written_for_accelerator();
        __syncwarp();
        if (lane == 0) store_box(out, tile * WIDTH, row, strip);
    }

    __device__ __forceinline__ void leave() const { stores_are_read(); }
};

#define KERNEL(NAME, WARPGROUPS, HEIGHT, STAGES)                                                                                           \
    static_assert(NAME == Tiles<Gated, WARPGROUPS, HEIGHT, STAGES>::ROWS, "a kernel is named by its rows");                                \
    extern "C" __global__ void __launch_bounds__(Tiles<Gated, WARPGROUPS, HEIGHT, STAGES>::THREADS, 1)                                     \
        gemm_silu_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap out,  \
                         u32 width, u32 k, u32 rows, const f32* bias) {                                                                    \
        Tiles<Gated, WARPGROUPS, HEIGHT, STAGES>::run(x, w, k, rows, {out, width, bias});                                                 \
    }

KERNEL(64, 1, 1, 7)
KERNEL(128, 2, 1, 5)
KERNEL(256, 2, 2, 4)

// Queries, keys and values of rows: x · wᵀ + b, queries and keys turned by the table of `rope.cu`, where attention looks for them
// (`gemm_tiles.cuh`).
//
// A tile has PAIRS low outputs of a head, the high outputs that they turn with, and those of further pieces of heads. They leave 16 bytes a lane.
#include "gemm_tiles.cuh"
#include "rotation.cuh"

// Queries in rows; keys and values in the blocks of a cache.
struct Paged {
    u16 *q, *kv;
    const u32* slot_mapping;
    u32 num_heads, num_kv_heads, padded_dim;

    __device__ __forceinline__ u32 heads() const { return num_heads + 2 * num_kv_heads; }
    __device__ __forceinline__ u32 turned() const { return num_heads + num_kv_heads; }
    __device__ __forceinline__ u32 slot(u32 row) const { return slot_mapping[row]; }
    __device__ __forceinline__ u16* place(u32 row, u32 slot, u32 head, u32 head_dim) const {
        if (head < num_heads) return q + ((u64)row * num_heads + head) * head_dim;
        if (slot == NONE) return nullptr;
        // A block holds the keys of all heads, then the values.
        return kv + ((u64)(slot / BLOCK_SIZE) * 2 * num_kv_heads + head - num_heads) * BLOCK_SIZE * padded_dim + slot % BLOCK_SIZE * padded_dim;
    }
};

// Queries, keys and values in rows of their own.
struct Apart {
    u16 *q, *k, *v;
    u32 num_heads;

    __device__ __forceinline__ u32 heads() const { return 3 * num_heads; }
    __device__ __forceinline__ u32 turned() const { return 2 * num_heads; }
    __device__ __forceinline__ u32 slot(u32) const { return NONE; }
    __device__ __forceinline__ u16* place(u32 row, u32, u32 head, u32 head_dim) const {
        u16* of = head < num_heads ? q : head < 2 * num_heads ? k : v;
        return of + ((u64)row * num_heads + head % num_heads) * head_dim;
    }
};

template <class Places, u32 HEAD_DIM, u32 PAIRS, u32 PIECES>
struct Turned {
    static constexpr u32 BOXES = 2 * PIECES, BOX_ROWS = PAIRS, HALF = HEAD_DIM / 2, OUTPUTS = 2 * PAIRS * PIECES;
    // Rows of a strip are 16 bytes further apart than they are long: they meet every bank once.
    static constexpr u32 ROWS_AT_ONCE = 8, PITCH = 2 * OUTPUTS + 16, STRIP_BYTES = ROWS_AT_ONCE * PITCH;
    static_assert(HALF % PAIRS == 0 && PAIRS % 8 == 0, "a head is so many pieces");
    static_assert(PIECES == 1 || PAIRS == HALF, "pieces of a tile turn by the same angles");

    const Places& places;
    const f32 *bias, *rope;
    u32 rows;

    __device__ __forceinline__ u32 tiles() const { return cdiv(places.heads() * (HALF / PAIRS), PIECES); }

    // Head of a piece, and its first pair there.
    static __device__ __forceinline__ u32 head_of(u32 piece) { return piece / (HALF / PAIRS); }
    static __device__ __forceinline__ u32 pair_of(u32 piece) { return piece % (HALF / PAIRS) * PAIRS; }

    __device__ __forceinline__ u32 first_row(u32 tile, u32 box) const {
        const u32 piece = tile * PIECES + box / 2;
        return head_of(piece) * HEAD_DIM + pair_of(piece) + box % 2 * HALF;
    }

    // Angles of the lane's pairs in its two rows, the same in every head; the slot of one row of the warp.
    struct Ahead {
        float2 cos[2][PAIRS / 8], sin[2][PAIRS / 8];
        u32 slot;
    };

    __device__ __forceinline__ Ahead ahead(u32 row, u32 tile) const {
        const u32 lane = threadIdx.x % 32, head = head_of(tile * PIECES), pair = pair_of(tile * PIECES) + 2 * (lane % 4);
        Ahead of = {};
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const f32* angles = rope + (u64)min_u32(row + half * ROWS_AT_ONCE + lane / 4, rows - 1) * HEAD_DIM + pair;
#pragma unroll
            for (u32 j = 0; j < PAIRS / 8; j++) {
                if (head >= places.turned()) continue;
                of.cos[half][j] = load2(angles + 8 * j);
                of.sin[half][j] = load2(angles + HALF + 8 * j);
            }
        }
        of.slot = places.slot(min_u32(row + lane % STRIP, rows - 1));
        return of;
    }

    __device__ __forceinline__ void finish(const f32 (&sums)[OUTPUTS / 2], const Ahead& ahead, u32 row, u32 tile, u32 strip) const {
        const u32 lane = threadIdx.x % 32, column = 2 * (lane % 4), to = strip + lane / 4 * PITCH + 2 * column;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 p = 0; p < PIECES; p++) {
                const u32 head = head_of(tile * PIECES + p);
                if (head >= places.heads()) continue;
                const f32* biases = bias + head * HEAD_DIM + pair_of(tile * PIECES + p) + column;
                float2 low[PAIRS / 8], high[PAIRS / 8];
#pragma unroll
                for (u32 j = 0; j < PAIRS / 8; j++) {
                    low[j] = load2(biases + 8 * j);
                    high[j] = load2(biases + HALF + 8 * j);
                }
#pragma unroll
                for (u32 j = 0; j < PAIRS / 8; j++) {
                    const f32* of_low = sums + p * PAIRS + 4 * j + 2 * half;
                    float2 a = add2(of_low, low[j]), b = add2(of_low + PAIRS / 2, high[j]);
                    if (head < places.turned()) {
                        const float2 c = ahead.cos[half][j], s = ahead.sin[half][j], x = a, y = b;
                        a = {turn_low(x.x, y.x, c.x, s.x), turn_low(x.y, y.y, c.y, s.y)};
                        b = {turn_high(x.x, y.x, c.x, s.x), turn_high(x.y, y.y, c.y, s.y)};
                    }
                    store_shared(to + 4 * PAIRS * p + 16 * j, f2bf2(a.x, a.y));
                    store_shared(to + 4 * PAIRS * p + 2 * PAIRS + 16 * j, f2bf2(b.x, b.y));
                }
            }
            __syncwarp();
#pragma unroll
            for (u32 i = lane; i < ROWS_AT_ONCE * OUTPUTS / 8; i += 32) {
                const u32 r = half * ROWS_AT_ONCE + i / (OUTPUTS / 8), output = i % (OUTPUTS / 8) * 8, box = output / PAIRS;
                const u32 piece = tile * PIECES + box / 2, slot = __shfl_sync(FULL, ahead.slot, r);
                if (row + r >= rows || head_of(piece) >= places.heads()) continue;
                u16* dst = places.place(row + r, slot, head_of(piece), HEAD_DIM);
                if (!dst) continue;
                dst += pair_of(piece) + box % 2 * HALF + output % PAIRS;
                *reinterpret_cast<uint4*>(dst) = load_shared4(strip + r % ROWS_AT_ONCE * PITCH + 2 * output);
            }
            __syncwarp();
        }
    }

    __device__ __forceinline__ void leave() const {}
    static __device__ __forceinline__ float2 add2(const f32* x, float2 b) { return {x[0] + b.x, x[1] + b.y}; }
    static __device__ __forceinline__ float2 load2(const f32* p) { return *reinterpret_cast<const float2*>(p); }
};

template <class Places, u32 ROWS, u32 OUTPUTS, u32 HEAD_DIM, u32 PAIRS, u32 STAGES>
using TurnedTiles = Tiles<Turned<Places, HEAD_DIM, PAIRS, OUTPUTS / (2 * PAIRS)>, ROWS / 64, 1, STAGES>;

// Kernels are named by their tiles: rows by outputs.
#define QKV(ROWS, OUTPUTS, PAIRS, STAGES)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(TurnedTiles<Paged, ROWS, OUTPUTS, 128, PAIRS, STAGES>::THREADS, 1)                        \
        gemm_rope_qkv_##ROWS##x##OUTPUTS(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u32 k, u32 rows,        \
                                         const f32* bias, const f32* rope, const u32* slot_mapping, u32 num_heads, u32 num_kv_heads,       \
                                         u32 padded_dim, u16* q, u16* kv) {                                                                \
        const Paged places = {q, kv, slot_mapping, num_heads, num_kv_heads, padded_dim};                                                   \
        TurnedTiles<Paged, ROWS, OUTPUTS, 128, PAIRS, STAGES>::run(x, w, k, rows, {places, bias, rope, rows});                             \
    }

QKV(64, 64, 32, 8)
QKV(64, 128, 64, 8)
QKV(128, 128, 64, 6)
QKV(128, 256, 64, 4)

extern "C" __global__ void __launch_bounds__(TurnedTiles<Apart, 128, 160, 80, 40, 6>::THREADS, 1)
    gemm_rope_vision_128x160(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u32 k, u32 rows, const f32* bias,
                             const f32* rope, u32 num_heads, u16* q, u16* keys, u16* v) {
    const Apart places = {q, keys, v, num_heads};
    TurnedTiles<Apart, 128, 160, 80, 40, 6>::run(x, w, k, rows, {places, bias, rope, rows});
}

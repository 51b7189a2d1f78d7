// Queries, keys and values of rows: x · wᵀ + b, queries and keys turned by the table of `rope.cu`, where attention looks for them
// (`gemm_tiles.cuh`).
//
// A tile has PAIRS low outputs of a head, the high outputs that they turn with, and those of further pieces of heads.
#include "gemm_tiles.cuh"
#include "rotation.cuh"

// Queries in rows; keys and values in the blocks of a cache.
struct Paged {
    u16 *q, *kv;
    const u32* slot_mapping;
    u32 num_heads, num_kv_heads, padded_dim;

    __device__ __forceinline__ u32 heads() const { return num_heads + 2 * num_kv_heads; }
    __device__ __forceinline__ u32 turned() const { return num_heads + num_kv_heads; }
    // Of a row in the cache, if one of the heads up to `head` goes there.
    __device__ __forceinline__ u32 slot(u32 row, u32 head) const { return head < num_heads ? NONE : slot_mapping[row]; }
    __device__ __forceinline__ u16* place(u32 row, u32 slot, u32 head, u32 head_dim) const {
        if (head < num_heads) return q + ((u64)row * num_heads + head) * head_dim;
        if (slot == NONE) return nullptr;
        // A block holds the keys of all heads, then the values.
        return kv + ((u64)(slot / BLOCK_SIZE) * 2 * num_kv_heads + head - num_heads) * BLOCK_SIZE * padded_dim + slot % BLOCK_SIZE * padded_dim;
    }
};

// Queries, keys and values in rows of their own, by their maps.
struct Apart {
    const TensorMap &q, &k, &v;
    u32 num_heads;

    __device__ __forceinline__ u32 heads() const { return 3 * num_heads; }
    __device__ __forceinline__ u32 turned() const { return 2 * num_heads; }
    __device__ __forceinline__ const TensorMap& map(u32 head) const { return head < num_heads ? q : head < 2 * num_heads ? k : v; }
};

template <class Places, u32 HEAD_DIM, u32 PAIRS, u32 PIECES>
struct Turned {
    static constexpr u32 BOXES = 2 * PIECES, BOX_ROWS = PAIRS, HALF = HEAD_DIM / 2, OUTPUTS = 2 * PAIRS * PIECES;
    static_assert(HALF % PAIRS == 0 && PAIRS % 8 == 0, "a head is so many pieces");
    static_assert(PIECES == 1 || PAIRS == HALF, "pieces of a tile turn by the same angles");

    const Places& places;
    const f32 *bias, *rope;
    u32 rows;

    // Of the lane's pairs in one row, the same in every head.
    struct Angles {
        float2 cos[PAIRS / 8], sin[PAIRS / 8];
    };

    __device__ __forceinline__ void begin() const {}
    __device__ __forceinline__ u32 tiles() const { return cdiv(places.heads() * (HALF / PAIRS), PIECES); }
    // Head of a piece, and its first pair there.
    static __device__ __forceinline__ u32 head_of(u32 piece) { return piece / (HALF / PAIRS); }
    static __device__ __forceinline__ u32 pair_of(u32 piece) { return piece % (HALF / PAIRS) * PAIRS; }

    __device__ __forceinline__ u32 first_row(u32 tile, u32 box) const {
        const u32 piece = tile * PIECES + box / 2;
        return head_of(piece) * HEAD_DIM + pair_of(piece) + box % 2 * HALF;
    }

    __device__ __forceinline__ Angles angles(u32 row, u32 tile) const {
        Angles of = {};
        if (head_of(tile * PIECES) >= places.turned()) return of;
        const f32* table = rope + (u64)min_u32(row, rows - 1) * HEAD_DIM + pair_of(tile * PIECES) + 2 * (threadIdx.x % 4);
#pragma unroll
        for (u32 j = 0; j < PAIRS / 8; j++) {
            of.cos[j] = load2(table + 8 * j);
            of.sin[j] = load2(table + HALF + 8 * j);
        }
        return of;
    }

    // The lane's outputs of one of its rows, two neighbours at a time: `store(box, j, outputs)`, at 8 j of the box.
    template <class Store>
    __device__ __forceinline__ void turn(const f32 (&sums)[OUTPUTS / 2], const Angles& by, u32 half, u32 tile, Store&& store) const {
#pragma unroll
        for (u32 p = 0; p < PIECES; p++) {
            const u32 head = head_of(tile * PIECES + p);
            if (head >= places.heads()) continue;
            const f32* biases = bias + head * HEAD_DIM + pair_of(tile * PIECES + p) + 2 * (threadIdx.x % 4);
            float2 low[PAIRS / 8], high[PAIRS / 8];
#pragma unroll
            for (u32 j = 0; j < PAIRS / 8; j++) {
                low[j] = load2(biases + 8 * j);
                high[j] = load2(biases + HALF + 8 * j);
            }
#pragma unroll
            for (u32 j = 0; j < PAIRS / 8; j++) {
                const f32* sum = sums + p * PAIRS + 4 * j + 2 * half;
                float2 a = add2(sum, low[j]), b = add2(sum + PAIRS / 2, high[j]);
                if (head < places.turned()) {
                    const float2 c = by.cos[j], s = by.sin[j], x = a, y = b;
                    a = {turn_low(x.x, y.x, c.x, s.x), turn_low(x.y, y.y, c.y, s.y)};
                    b = {turn_high(x.x, y.x, c.x, s.x), turn_high(x.y, y.y, c.y, s.y)};
                }
                store(2 * p, j, f2bf2(a.x, a.y));
                store(2 * p + 1, j, f2bf2(b.x, b.y));
            }
        }
    }

    static __device__ __forceinline__ float2 add2(const f32* x, float2 b) { return {x[0] + b.x, x[1] + b.y}; }
    static __device__ __forceinline__ float2 load2(const f32* p) { return *reinterpret_cast<const float2*>(p); }
};

// To queries and a cache, 16 bytes a lane.
template <u32 PAIRS, u32 PIECES>
struct ToCache : Turned<Paged, 128, PAIRS, PIECES> {
    using Base = Turned<Paged, 128, PAIRS, PIECES>;
    static constexpr u32 OUTPUTS = Base::OUTPUTS, ROWS_AT_ONCE = 8;
    // Rows of a strip are 16 bytes further apart than they are long: they meet every bank once.
    static constexpr u32 PITCH = 2 * OUTPUTS + 16, STRIP_BYTES = ROWS_AT_ONCE * PITCH;

    // Angles of the lane's two rows; the slot of one row of the warp.
    struct Ahead {
        typename Base::Angles of[2];
        u32 slot;
    };

    __device__ __forceinline__ Ahead ahead(u32 row, u32 tile) const {
        const u32 lane = threadIdx.x % 32, last = min_u32(Base::head_of(tile * PIECES + PIECES - 1), this->places.heads() - 1);
        return {{this->angles(row + lane / 4, tile), this->angles(row + ROWS_AT_ONCE + lane / 4, tile)},
                this->places.slot(min_u32(row + lane % STRIP, this->rows - 1), last)};
    }

    __device__ __forceinline__ void finish(const f32 (&sums)[OUTPUTS / 2], const Ahead& ahead, u32 row, u32 tile, u32 strip) const {
        const u32 lane = threadIdx.x % 32, to = strip + lane / 4 * PITCH + 4 * (lane % 4);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            this->turn(sums, ahead.of[half], half, tile, [&](u32 box, u32 j, u32 outputs) { store_shared(to + 2 * PAIRS * box + 16 * j, outputs); });
            __syncwarp();
#pragma unroll
            for (u32 i = lane; i < ROWS_AT_ONCE * OUTPUTS / 8; i += 32) {
                const u32 r = half * ROWS_AT_ONCE + i / (OUTPUTS / 8), output = i % (OUTPUTS / 8) * 8, box = output / PAIRS;
                const u32 head = Base::head_of(tile * PIECES + box / 2), slot = __shfl_sync(FULL, ahead.slot, r);
                if (row + r >= this->rows || head >= this->places.heads()) continue;
                u16* dst = this->places.place(row + r, slot, head, 128);
                if (!dst) continue;
                dst += Base::pair_of(tile * PIECES + box / 2) + box % 2 * Base::HALF + output % PAIRS;
                *reinterpret_cast<uint4*>(dst) = load_shared4(strip + r % ROWS_AT_ONCE * PITCH + 2 * output);
            }
            __syncwarp();
        }
    }

    __device__ __forceinline__ void leave() const { written_for_accelerator(); }
};

// To rows of their own, in boxes of half a head.
template <u32 HEAD_DIM, u32 PIECES>
struct ToRows : Turned<Apart, HEAD_DIM, HEAD_DIM / 2, PIECES> {
    using Base = Turned<Apart, HEAD_DIM, HEAD_DIM / 2, PIECES>;
    static constexpr u32 PAIRS = HEAD_DIM / 2, BOX_BYTES = STRIP * 2 * PAIRS, STRIP_BYTES = Base::BOXES * BOX_BYTES;
    static_assert(BOX_BYTES % 128 == 0, "stores begin there");

    struct Ahead {};
    __device__ __forceinline__ Ahead ahead(u32, u32) const { return {}; }

    // Rows of 80 bytes meet every bank once.
    __device__ __forceinline__ void finish(const f32 (&sums)[Base::OUTPUTS / 2], const Ahead&, u32 row, u32 tile, u32 strip) const {
        const u32 lane = threadIdx.x % 32;
        const typename Base::Angles of[2] = {this->angles(row + lane / 4, tile), this->angles(row + 8 + lane / 4, tile)};
        // What left the strip before.
        stores_are_read();
        __syncwarp();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 to = strip + (8 * half + lane / 4) * 2 * PAIRS + 4 * (lane % 4);
            this->turn(sums, of[half], half, tile, [&](u32 box, u32 j, u32 outputs) { store_shared(to + box * BOX_BYTES + 16 * j, outputs); });
        }
        written_for_accelerator();
        __syncwarp();
        if (lane != 0) return;
#pragma unroll
        for (u32 box = 0; box < Base::BOXES; box++) {
            const u32 head = tile * PIECES + box / 2;
            if (head >= this->places.heads()) continue;
            store_box(this->places.map(head), head % this->places.num_heads * HEAD_DIM + box % 2 * PAIRS, row, strip + box * BOX_BYTES);
        }
    }

    __device__ __forceinline__ void leave() const { stores_are_read(); }
};

// Kernels are named by their tiles: rows by outputs.
#define QKV(ROWS, OUTPUTS, PAIRS, STAGES)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(Tiles<ToCache<PAIRS, OUTPUTS / (2 * PAIRS)>, ROWS / 64, 1, STAGES>::THREADS, 1)           \
        gemm_rope_qkv_##ROWS##x##OUTPUTS(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u32 k, u32 rows,        \
                                         const f32* bias, const f32* rope, const u32* slot_mapping, u32 num_heads, u32 num_kv_heads,       \
                                         u32 padded_dim, u16* q, u16* kv) {                                                                \
        const Paged places = {q, kv, slot_mapping, num_heads, num_kv_heads, padded_dim};                                                   \
        Tiles<ToCache<PAIRS, OUTPUTS / (2 * PAIRS)>, ROWS / 64, 1, STAGES>::run(x, w, k, rows, {{places, bias, rope, rows}});              \
    }

QKV(64, 64, 32, 12)
QKV(64, 128, 64, 9)
QKV(128, 128, 64, 6)
QKV(128, 256, 64, 4)

extern "C" __global__ void __launch_bounds__(Tiles<ToRows<80, 2>, 2, 2, 4>::THREADS, 1)
    gemm_rope_vision_256x160(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap q,
                             const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap v, u32 k, u32 rows, const f32* bias,
                             const f32* rope, u32 num_heads) {
    const Apart places = {q, keys, v, num_heads};
    Tiles<ToRows<80, 2>, 2, 2, 4>::run(x, w, k, rows, {{places, bias, rope, rows}});
}

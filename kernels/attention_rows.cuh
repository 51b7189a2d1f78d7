// A row's chunks in the one order: merged in registers, taken up from partials, written to partials, put together by whoever finishes the last;
// and the products of many rows.
#pragma once
#include "attention_items.cuh"
#include "softmax.cuh"

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
        const f32* next = args.partials + ((u64)entry.first_partial * args.num_heads + head) * Partial<DP>::LEN;
        f32 total_lse = load_shared_by_all(next + Partial<DP>::LSE);
        float2 total = load_shared_by_all(reinterpret_cast<const float2*>(next + d));
#pragma unroll 1
        for (u32 first = 1; first < num_partials; first += AHEAD) {
            f32 lse[AHEAD];
            float2 o[AHEAD];
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) {
                if (first + j < num_partials) {
                    next += args.num_heads * Partial<DP>::LEN;
                    lse[j] = load_shared_by_all(next + Partial<DP>::LSE);
                    o[j] = load_shared_by_all(reinterpret_cast<const float2*>(next + d));
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
__device__ __forceinline__ void finish_rows(const Args& args, u32 kv_head, u32 num_entries, const AttentionEntry* entries, u32* last) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x < num_entries) {
        const AttentionEntry& entry = entries[threadIdx.x];
        bool whole = false;
        if (entry.counter != NONE) {
            u32* finished = args.finished + entry.counter * args.num_kv_heads + kv_head;
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
        if (last[i] != 0) combine<DP>(args, entries[i], kv_head);
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

    __device__ __forceinline__ f32 chunk_lse(u32 half) const { return __fadd_rn(m[half], log2f(l[half])); }

    // `chunk`: its first key.
    __device__ __forceinline__ void end_chunk(u32 half, u32 chunk) {
        if (seen[half] <= chunk) return;
        f32 inverse = __frcp_rn(l[half]);
        merge_chunk(half, chunk_lse(half),
                    [&](u32 j) { return float2{__fmul_rn(o[j][2 * half], inverse), __fmul_rn(o[j][2 * half + 1], inverse)}; });
    }

    // Goes on from `num` partials in shared memory, the row's first at `at`, `stride` values from one to the next; the thread's dimensions are
    // `first_d + 8 j`.
    template <u32 DP>
    __device__ __forceinline__ void merge_partials(u32 half, const f32* at, u32 stride, u32 num, u32 first_d) {
#pragma unroll 1
        for (u32 i = 0; i < num; i++, at += stride) {
            merge_chunk(half, at[Partial<DP>::LSE], [&](u32 j) {
                return first_d + 8 * j < DP ? *reinterpret_cast<const float2*>(at + first_d + 8 * j) : float2{0.0f, 0.0f};
            });
        }
    }

    // The present chunk, which the row sees something of, to a partial at `to`.
    template <u32 DP>
    __device__ __forceinline__ void store_chunk(f32* to, u32 half, u32 first_d, bool writes_lse) const {
        const f32 inverse = __frcp_rn(l[half]);
#pragma unroll
        for (u32 j = 0; j < EIGHTS; j++) {
            *reinterpret_cast<float2*>(to + first_d + 8 * j) = float2{__fmul_rn(o[j][2 * half], inverse), __fmul_rn(o[j][2 * half + 1], inverse)};
        }
        if (writes_lse) to[Partial<DP>::LSE] = chunk_lse(half);
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
                *reinterpret_cast<float2*>(args.partials + place * Partial<DP>::LEN + d) = float2{x, y};
            }
        }
        if (partial != NONE && writes_lse) args.partials[place * Partial<DP>::LEN + Partial<DP>::LSE] = total_lse[half];
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

// ---- sixteen rows a warp: all keys of a tile, all dimensions. On sm_90a the four warps multiply as one and read keys and values once; an element
// of their products is that of mma.

// Keeps what is made of x from being kept in registers through a loop: there, they are full of sums.
__device__ __forceinline__ u32 recomputed(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Sixteen queries a warp as operands of mma, sixteen dimensions each.
template <u32 DP>
struct KeptQueries {
    u32 q[DP / 16][4];
    __device__ __forceinline__ void operand(u32 k, u32 (&a)[4]) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) a[i] = q[k][i];
    }
    __device__ __forceinline__ const u32 (&products_operand(u32 k) const)[4] { return q[k]; }
};

// The same 64 in shared memory.
template <u32 DP>
struct SharedQueries {
    u32 at;
    __device__ __forceinline__ void operand(u32 k, u32 (&a)[4]) const {
        const u32 lane = threadIdx.x % 32;
        ldmatrix_x4(a, at + Block<DP, 64>::at(threadIdx.x / 32 * 16 + lane % 16, 2 * k + lane / 16));
    }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __device__ __forceinline__ u64 products_operand(u32 k) const { return tile_descriptor(at + k / 4 * Block<DP, 64>::HALF) + 2 * (k % 4); }
#endif
};

template <u32 DP, class Queries>
__device__ __forceinline__ void wide_scores(f32 (&s)[8][4], const Queries& queries, u32 keys) {
    if constexpr (Block<DP>::HALVES) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        products_begin();
#pragma unroll
        for (u32 k = 0; k < DP / 16; k++) add_products<false>(s, queries.products_operand(k), tile_descriptor(keys + k / 4 * Block<DP>::HALF) + 2 * (k % 4));
        products_commit();
        products_wait<0>();
        products_are_in(s);
#endif
    } else {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 k = 0; k < DP / 16; k++) {
            u32 a[4];
            queries.operand(k, a);
#pragma unroll
            for (u32 i = 0; i < TILE / 16; i++) {
                u32 b[4];
                ldmatrix_x4(b, keys + Block<DP>::at(16 * i + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
                mma(s[2 * i], a, b[0], b[1]);
                mma(s[2 * i + 1], a, b[2], b[3]);
            }
        }
    }
}

// Scores become weights; what was summed so far is scaled to the new maxima.
template <u32 EIGHTS>
__device__ __forceinline__ void wide_weights(f32 (&s)[8][4], Rows<EIGHTS>& rows, u32 segment_tile, f32 scale) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 visible = minus(rows.seen[half], TILE * segment_tile);
        f32 alpha, sums[4];
        f32 from = rows.raise(half, mask_scores(s, half, 0, visible, scale), alpha);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[i] = weigh(s[2 * i], s[2 * i + 1], half, from);
        rows.add_weights(half, alpha, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
}

template <u32 DP>
__device__ __forceinline__ void wide_values(const f32 (&s)[8][4], Rows<DP / 8>& rows, u32 values) {
    if constexpr (Block<DP>::HALVES) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        u32 weights[TILE / 16][4];
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) weights_of(s, k, weights[k]);
        products_begin();
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) {
#pragma unroll
            for (u32 half = 0; half < DP / 64; half++) {
                add_products<true>(rows.o + 8 * half, weights[k], tile_descriptor(values + half * Block<DP>::HALF + k * 16 * Block<DP>::ROW));
            }
        }
        products_commit();
        products_wait<0>();
        products_are_in(rows.o);
#endif
    } else {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) {
            u32 a[4];
            weights_of(s, k, a);
#pragma unroll
            for (u32 j = 0; j < DP / 8; j += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, values + Block<DP>::at(16 * k + lane % 16, j + lane / 16));
                mma(rows.o[j], a, b[0], b[1]);
                mma(rows.o[j + 1], a, b[2], b[3]);
            }
        }
    }
}

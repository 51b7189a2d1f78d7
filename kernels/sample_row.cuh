// What a row of logits is asked for, the order of its scores, and sums over a block.
#pragma once
#include "common.cuh"

// ---- order of scores

// Larger scores have larger keys; 0 and -0 are equal.
__device__ __forceinline__ u32 key_of(f32 x) {
    u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ f32 score_of(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }
constexpr u32 KEY_NEG_INF = 0x007FFFFFu;

// A score and its id such that the larger score, then the lower id, is the larger number; 0 is nothing.
__device__ __forceinline__ u64 ranked(f32 x, u32 id) { return (u64)key_of(x) << 32 | (u32)~id; }
__device__ __forceinline__ f32 ranked_score(u64 r) { return score_of((u32)(r >> 32)); }
__device__ __forceinline__ u32 ranked_id(u64 r) { return ~(u32)r; }

__device__ __forceinline__ u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }

// ---- reductions over a block, the same value in every thread; `room` is free again after the next barrier

template <u32 N>
__device__ __forceinline__ u64 block_max(u64 x, u64* room) {
#pragma unroll
    for (u32 offset = 16; offset > 0; offset /= 2) {
        u64 y = __shfl_xor_sync(FULL, x, offset);
        x = max_u64(x, y);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = room[0];
#pragma unroll
    for (u32 i = 1; i < N / 32; i++) x = max_u64(x, room[i]);
    return x;
}

// Several at a time.
template <u32 N, class T, u32 COUNT, class Join>
__device__ __forceinline__ void block_reduce(T (&x)[COUNT], T (&room)[COUNT][N / 32], Join join) {
#pragma unroll
    for (u32 c = 0; c < COUNT; c++) {
#pragma unroll
        for (u32 offset = 16; offset > 0; offset /= 2) x[c] = join(x[c], __shfl_xor_sync(FULL, x[c], offset));
    }
    __syncthreads();
#pragma unroll
    for (u32 c = 0; c < COUNT; c++) {
        if (threadIdx.x % 32 == 0) room[c][threadIdx.x / 32] = x[c];
    }
    __syncthreads();
#pragma unroll
    for (u32 c = 0; c < COUNT; c++) {
        x[c] = room[c][0];
#pragma unroll
        for (u32 i = 1; i < N / 32; i++) x[c] = join(x[c], room[c][i]);
    }
}

// Sum over the threads before this one.
template <u32 N, class T>
__device__ __forceinline__ T block_scan(T x, T* room, T& total) {
    T sum = x;
#pragma unroll
    for (u32 offset = 1; offset < 32; offset *= 2) {
        const T y = __shfl_up_sync(FULL, sum, offset);
        if (threadIdx.x % 32 >= offset) sum += y;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) room[threadIdx.x / 32] = sum;
    __syncthreads();
    T before = 0;
    total = 0;
#pragma unroll
    for (u32 i = 0; i < N / 32; i++) {
        if (i < threadIdx.x / 32) before += room[i];
        total += room[i];
    }
    // Of the lane before, not this one's less x: neighbours agree on where one ends and the next begins.
    sum = __shfl_up_sync(FULL, sum, 1);
    return threadIdx.x % 32 == 0 ? before : before + sum;
}

// ---- what a row asks for

// Which random word tells the place within the tile that is drawn; the two before it tell the tile.
constexpr u32 ENTRY_WORD = 2;

__device__ __forceinline__ bool penalises_counts(const SampleRow& row) {
    return row.counts_row != NONE && (row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f);
}
__device__ __forceinline__ bool changes_scores(const SampleRow& row) {
    return row.bias_len > 0 || row.repetition_penalty != 1.0f || penalises_counts(row);
}
__device__ __forceinline__ bool changes_logits(const SampleRow& row) { return row.banned_len > 0 || changes_scores(row); }
__device__ __forceinline__ bool filters(const SampleRow& row) {
    return row.temperature != 0.0f && (row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f);
}
// A row that draws from scores as they came, less a few of them at most: what `SampleRow::is_plain` of src/backends/mod.rs says of it.
constexpr u32 FEW = 8;
__device__ __forceinline__ bool draws_by_parts(const SampleRow& row) {
    return !changes_scores(row) && !filters(row) && row.banned_len <= (row.temperature == 0.0f ? 0 : FEW);
}
__device__ __forceinline__ bool contains(const u32* ids, u32 len, u32 id) {
    for (u32 i = 0; i < len; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}
__device__ __forceinline__ f32 temperature_of(const SampleRow& row) { return row.temperature == 0.0f ? 1.0f : row.temperature; }
__device__ __forceinline__ f32 over(f32 x, f32 temperature) { return temperature == 1.0f ? x : __fdiv_rn(x, temperature); }

// Two neighbouring logits, the first at an even place of the vocabulary; `beyond` where that ends.
__device__ __forceinline__ float2 two_logits(const f32* logits, u32 first, u32 vocab, f32 beyond) {
    if (vocab % 2 == 0) return *reinterpret_cast<const float2*>(logits + first);
    return {logits[first], first + 1 < vocab ? logits[first + 1] : beyond};
}

// Four neighbouring logits; -inf beyond the vocabulary.
__device__ __forceinline__ void load_logits(const f32* logits, u32 first, u32 vocab, f32 (&x)[4]) {
    if (vocab % 4 == 0) {
        float4 v = {neg_inf(), neg_inf(), neg_inf(), neg_inf()};
        if (first < vocab) v = *reinterpret_cast<const float4*>(logits + first);
        x[0] = v.x;
        x[1] = v.y;
        x[2] = v.z;
        x[3] = v.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = first + i < vocab ? logits[first + i] : neg_inf();
    }
}

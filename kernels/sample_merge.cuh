// A row's parts put together, by a block of N threads: its softmax, and the tile that is drawn.
#pragma once
#include "sample_tile.cuh"

// Neighbours that a thread of the block has of `num`: begin and end.
template <u32 N>
__device__ __forceinline__ uint2 share_of(u32 num) {
    const u32 each = cdiv(num, N), begin = min_u32(threadIdx.x * each, num);
    return {begin, min_u32(begin + each, num)};
}

// Where threads meet.
template <u32 N>
struct Room {
    u64 ranks[2][N / 32];
    f64 sums[3][N / 32];
    u32 thread, tile;
};

// The one of `num` tiles that the random words of a row choose by `mass(i)`: the last that has mass and before which lies no more of it than the point
// that they tell. `total`: of all. The same in every thread.
template <u32 N, class Mass>
__device__ u32 choose(u32 num, const SampleRow& row, Room<N>& room, f64& total, Mass mass) {
    const uint2 own = share_of<N>(num);
    f64 here = 0.0;
    for (u32 i = own.x; i < own.y; i++) here += mass(i);
    f64 before = block_scan<N>(here, room.sums[0], total);
    const f64 point = ((f64)((u64)row.random[0] << 32 | row.random[1]) + 0.5) * 5.421010862427522e-20 * total;
    if (threadIdx.x == 0) room.thread = room.tile = 0;
    __syncthreads();
    const bool may = here > 0.0 && before <= point;
    if (may) atomicMax(&room.thread, threadIdx.x);
    __syncthreads();
    if (may && threadIdx.x == room.thread) {
        for (u32 i = own.x; i < own.y; i++) {
            const f64 of = mass(i);
            if (of > 0.0 && before <= point) room.tile = i;
            before += of;
        }
    }
    __syncthreads();
    return room.tile;
}

// A row's softmax, the same in every thread; numbers mean nothing where a logit is not finite.
struct Merged {
    f32 most;
    u32 most_id;
    bool corrupt;
    // Σe^z and Σe^z·z at the row's temperature, Σe^z at 1, relative to `most`.
    f64 sum, weighted, raw_sum;
    // The largest logit of the parts that have mass.
    f32 base;

    // `has_mass(i)`: whether something of part i may be drawn. `each(i, part, z)`: is told all parts, and how far they lie below `base`.
    template <u32 N, class HasMass, class Each>
    __device__ __forceinline__ Merged(const SamplePart* parts, u32 num, const SampleRow& row, Room<N>& room, HasMass has_mass, Each each) {
        u64 largest[2] = {0, 0};
        bool finite = true;
#pragma unroll 4
        for (u32 i = threadIdx.x; i < num; i += N) {
            const SamplePart part = load_part(parts + i);
            const f32 check = part.sum + part.weighted;
            finite &= check - check == 0.0f;
            const u64 rank = ranked(part.most, part.most_id);
            largest[0] = max_u64(largest[0], rank);
            if (has_mass(i)) largest[1] = max_u64(largest[1], rank);
        }
        block_reduce<N>(largest, room.ranks, max_u64);
        corrupt = __syncthreads_or(!finite);
        most = ranked_score(largest[0]);
        most_id = ranked_id(largest[0]);
        base = ranked_score(largest[1]);
        const f64 inverse = 1.0 / (f64)temperature_of(row);
        f64 sums[3] = {0.0, 0.0, 0.0};
#pragma unroll 4
        for (u32 i = threadIdx.x; i < num; i += N) {
            const SamplePart part = load_part(parts + i);
            const f64 z = (f64)(part.most - most) * inverse, scale = (f64)expf((f32)z);
            sums[0] += scale * (f64)part.sum;
            if (scale > 0.0) sums[1] += scale * ((f64)part.weighted * LN_2 + z * (f64)part.sum);
            sums[2] += (f64)expf(part.most - most) * (f64)part.raw_sum;
            each(i, part, (f64)(part.most - base) * inverse);
        }
        block_reduce<N>(sums, room.sums, [](f64 a, f64 b) { return a + b; });
        sum = sums[0];
        weighted = sums[1];
        raw_sum = sums[2];
    }
};

// What a draw leaves behind.
struct State {
    u32* last_tokens;
    u32* seen;
    u32* counts;
    u32 vocab;

    // By a warp, each number of which lane 0 has. `x`: the token's logit; `distance`: of its score to what `mass` is relative to; no mass: the token
    // could not have been drawn.
    __device__ __forceinline__ void store(const SampleRow& row, const Merged& merged, u32 token, f32 x, f64 distance, f64 mass, Sampled& out) const {
        // Logarithms take long: three lanes take one each.
        const u32 lane = threadIdx.x % 32;
        const f64 of_lane = log(lane == 0 ? merged.sum : lane == 1 ? merged.raw_sum : mass);
        const f64 log_sum = of_lane, log_raw = __shfl_sync(FULL, of_lane, 1), log_mass = __shfl_sync(FULL, of_lane, 2);
        if (lane != 0) return;
        const f32 temperature = temperature_of(row);
        out.token = token;
        out.logp = (f32)((f64)(over(x, temperature) - over(merged.most, temperature)) - log_sum);
        out.logp_raw = (f32)((f64)(x - merged.most) - log_raw);
        out.logp_sampled = row.temperature == 0.0f ? 0.0f : mass > 0.0 ? (f32)(distance - log_mass) : neg_inf();
        out.entropy = (f32)(log_sum - merged.weighted / merged.sum);
        out.corrupt = 0;
        last_tokens[row.slot] = token;
        seen[(u64)row.slot * cdiv(vocab, 32) + token / 32] |= 1u << token % 32;
        if (row.counts_row != NONE) counts[(u64)row.counts_row * vocab + token] += 1;
    }
};

// By the threads of a block: no alternatives, and nothing drawn.
__device__ __forceinline__ void clear(Sampled& out) {
    u32* words = reinterpret_cast<u32*>(&out);
    for (u32 i = threadIdx.x; i < sizeof(Sampled) / 4; i += blockDim.x) words[i] = 0;
    __syncthreads();
    if (threadIdx.x == 0) out.corrupt = 1;
}

// What a tile of neighbouring entries has of a row's softmax, and which of them is drawn if the tile is. The twin of src/backends/cpu/draw.rs.
//
// A draw takes two steps: a tile by its mass, then an entry of it by its own. A tile has 192 entries among four neighbouring lanes, as the sums of
// a warpgroup's products lie there: lane t has 8 j + 2 t and 8 j + 2 t + 1. Its masses are summed by runs of six entries of a lane. The entry drawn
// is the last one that has mass and before which, in the order of lanes and of a lane's entries, lies no more of it than the point that was drawn.
#pragma once
#include "sample_row.cuh"

constexpr u32 DRAW_TILE = 192;
constexpr u32 ENTRIES = DRAW_TILE / 4;
constexpr u32 RUN = 6;
constexpr u32 RUNS = ENTRIES / RUN;

// In place of entries beyond the vocabulary: they weigh nothing, and nothing times this is nothing.
constexpr f32 BEYOND = -1e30f;

struct SamplePart {
    f32 most;
    // Where `most` first stands; only of rows that take the largest.
    u32 most_id;
    // Of y = (x - most) / temperature · log2 e: Σ 2^y, Σ 2^y · y, and Σ 2^y at temperature 1. Not finite where a logit is not.
    f32 sum, weighted, raw_sum;
    // The entry that is drawn if the tile is: its logit and id.
    f32 logit;
    u32 id, unused;
};
static_assert(sizeof(SamplePart) == 32, "SamplePart");

// Id of this lane's entry `i` of a tile that begins at `first`.
__device__ __forceinline__ u32 entry_id(u32 first, u32 i) { return first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2; }

// This lane's entries, two neighbours at a time: `two(id)`.
template <class Two>
__device__ __forceinline__ void load_tile(f32 (&x)[ENTRIES], u32 first, u32 vocab, Two two) {
#pragma unroll
    for (u32 i = 0; i < ENTRIES; i += 2) {
        const u32 id = entry_id(first, i);
        const float2 v = id < vocab ? two(id) : float2{BEYOND, BEYOND};
        x[i] = v.x;
        x[i + 1] = v.y;
    }
}

__device__ __forceinline__ f32 quad_sum(f32 x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}
__device__ __forceinline__ f32 quad_max(f32 x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}

// N neighbours, as a tree.
template <u32 N>
__device__ __forceinline__ f32 sum_of(const f32* x) {
    if constexpr (N == 1) return x[0];
    else return sum_of<N / 2>(x) + sum_of<N / 2>(x + N / 2);
}

// `weight(i)`: of entry i, which is known to the compiler.
template <class Weight>
__device__ __forceinline__ void sum_runs(f32 (&runs)[RUNS], Weight weight) {
#pragma unroll
    for (u32 r = 0; r < RUNS; r++) {
        runs[r] = 0.0f;
#pragma unroll
        for (u32 k = 0; k < RUN; k++) runs[r] += weight(r * RUN + k);
    }
}

struct Drawn {
    f32 mass, x;
    u32 id;
};

// Of two neighbours in a tree of masses, whether `point` of both lies in the second; goes on to the point of that one.
__device__ __forceinline__ bool in_second(f32 first, f32 second, f32& point) {
    const bool in = second > 0.0f && first <= point;
    point = in ? point - first : point;
    return in;
}

// A lane's logits in registers. What is looked at takes the place of what is not.
struct Held {
    f32 (&x)[ENTRIES];

    // The first or the second N of 2 N entries.
    template <u32 N>
    __device__ __forceinline__ void choose(bool second) {
#pragma unroll
        for (u32 i = 0; i < N; i++) x[i] = second ? x[N + i] : x[i];
    }
    __device__ __forceinline__ f32 chosen(u32 i, u32) const { return x[i]; }
};

// Of 2 N runs the one that `point` lies in comes first; `at`: where its entries are.
template <u32 N, class Logits>
__device__ __forceinline__ void choose_run(Logits& logits, f32 (&runs)[RUNS], f32& point, u32& at) {
    if constexpr (N > 0) {
        const bool second = in_second(sum_of<N>(runs), sum_of<N>(runs + N), point);
#pragma unroll
        for (u32 i = 0; i < N; i++) runs[i] = second ? runs[N + i] : runs[i];
        logits.template choose<N * RUN>(second);
        at += second ? N * RUN : 0;
        choose_run<N / 2>(logits, runs, point, at);
    }
}

// The entry at `point` (0 to 1) of a tile's mass, the same in its four lanes. `weight(x, id)`: what `runs` are sums of. Leaves nothing of the runs.
template <class Logits, class Weight>
__device__ __forceinline__ Drawn draw_entry(Logits logits, f32 (&runs)[RUNS], u32 first, f32 point, Weight weight) {
    const u32 quad = threadIdx.x % 32 & ~3u;
    const f32 own = sum_of<RUNS>(runs), pair = own + __shfl_xor_sync(FULL, own, 1);
    const f32 low = __shfl_sync(FULL, pair, quad), high = __shfl_sync(FULL, pair, quad + 2), mass = low + high;
    point *= mass;
    u32 owner = in_second(low, high, point) ? quad + 2 : quad;
    const f32 even = __shfl_sync(FULL, own, owner), odd = __shfl_sync(FULL, own, owner + 1);
    owner += in_second(even, odd, point);
    // Within the owner; what the others find goes nowhere.
    u32 at = 0;
    choose_run<RUNS / 2>(logits, runs, point, at);
    u32 drawn = at;
    f32 logit = 0.0f, before = 0.0f;
#pragma unroll
    for (u32 i = 0; i < RUN; i++) {
        const f32 x = logits.chosen(i, entry_id(first, at + i)), here = weight(x, entry_id(first, at + i));
        if (i == 0 || (here > 0.0f && before <= point)) {
            drawn = at + i;
            logit = x;
        }
        before += here;
    }
    const u32 id = __shfl_sync(FULL, entry_id(first, drawn), owner);
    return {mass, __shfl_sync(FULL, logit, owner), mass > 0.0f ? id : NONE};
}

// In [0, 1], finest at 0.
__device__ __forceinline__ f32 uniform_of(u32 word) { return ((f32)word + 0.5f) * 2.3283064365386963e-10f; }

// 2^y of a logit, y over the temperature and relative to the largest.
struct Weights {
    f32 most, scale;
    __device__ __forceinline__ Weights(f32 most, f32 temperature)
        : most(most), scale(temperature == 0.0f || temperature == 1.0f ? LOG2_E : LOG2_E / temperature) {}
    __device__ __forceinline__ f32 exponent(f32 x) const { return (x - most) * scale; }
    __device__ __forceinline__ f32 operator()(f32 x) const { return exp2_fast(exponent(x)); }
};

// A tile's part of a row whose temperature and random word are given. In all lanes of the warp, whatever their rows; the same numbers whoever is beside
// them. Leaves nothing of x.
__device__ __forceinline__ SamplePart part_of(f32 (&x)[ENTRIES], u32 first, f32 temperature, u32 word) {
    const bool as_it_is = temperature == 0.0f || temperature == 1.0f;
    SamplePart part;
    f32 most = x[0];
#pragma unroll
    for (u32 i = 1; i < ENTRIES; i++) most = fmaxf(most, x[i]);
    part.most = most = quad_max(most);
    part.most_id = NONE;
    if (__any_sync(FULL, temperature == 0.0f)) {
        u32 id = NONE;
#pragma unroll
        for (u32 i = ENTRIES; i-- > 0;) id = x[i] == most ? entry_id(first, i) : id;
        id = min_u32(id, __shfl_xor_sync(FULL, id, 1));
        id = min_u32(id, __shfl_xor_sync(FULL, id, 2));
        if (temperature == 0.0f) part.most_id = id;
    }
    f32 runs[RUNS], raw = 0.0f, weighted = 0.0f;
    if (__any_sync(FULL, !as_it_is)) {
        const Weights at_one(most, 1.0f);
        sum_runs(runs, [&](u32 i) { return at_one(x[i]); });
        raw = quad_sum(sum_of<RUNS>(runs));
    }
    const Weights weights(most, temperature);
    sum_runs(runs, [&](u32 i) {
        const f32 y = weights.exponent(x[i]), e = exp2_fast(y);
        weighted = fmaf(e, y, weighted);
        return e;
    });
    part.weighted = quad_sum(weighted);
    const Drawn drawn = draw_entry(Held{x}, runs, first, uniform_of(word), [&](f32 x, u32) { return weights(x); });
    part.sum = drawn.mass;
    part.raw_sum = as_it_is ? part.sum : raw;
    part.logit = drawn.x;
    part.id = drawn.id;
    part.unused = 0;
    return part;
}

// Nobody writes parts while this kernel runs: loads may pass its stores.
__device__ __forceinline__ SamplePart load_part(const SamplePart* from) {
    SamplePart part;
    uint4* words = reinterpret_cast<uint4*>(&part);
    words[0] = __ldg(reinterpret_cast<const uint4*>(from));
    words[1] = __ldg(reinterpret_cast<const uint4*>(from) + 1);
    return part;
}
// One lane of four.
__device__ __forceinline__ void store_part(SamplePart* to, const SamplePart& part) {
    const uint4* words = reinterpret_cast<const uint4*>(&part);
    reinterpret_cast<uint4*>(to)[0] = words[0];
    reinterpret_cast<uint4*>(to)[1] = words[1];
}

// Rows with penalties and filters, or alternatives to report: scores made anew in every pass, and the cutoffs that radix select finds.
#pragma once
#include "sample_merge.cuh"

constexpr u32 THREADS = 512;
constexpr u32 BINS = 2048;

// A row's scores, made anew in every pass.
struct Scores {
    const f32* logits;
    u32 vocab;
    // As they came, or changed and over the temperature.
    bool raw;
    f32 temperature, repetition_penalty, presence_penalty, frequency_penalty;
    const u32* seen;
    const u32* counts;
    // Bitmap of banned and biased ids; null when there are none.
    const u32* touched;
    const u32* banned;
    const u32* bias_ids;
    const f32* bias_values;
    u32 banned_len, bias_len;

    __device__ __forceinline__ f32 changed(u32 id, f32 x) const {
        if (touched != nullptr && touched[id / 32] >> (id % 32) & 1) {
#pragma unroll 1
            for (u32 i = 0; i < banned_len; i++) {
                if (banned[i] == id) x = neg_inf();
            }
#pragma unroll 1
            for (u32 i = 0; i < bias_len; i++) {
                if (bias_ids[i] == id) x += bias_values[i];
            }
        }
        if (seen != nullptr && seen[id / 32] >> (id % 32) & 1) x = x < 0.0f ? x * repetition_penalty : __fdiv_rn(x, repetition_penalty);
        if (counts != nullptr) {
            u32 count = counts[id];
            if (count > 0) x -= __fadd_rn(presence_penalty, __fmul_rn(frequency_penalty, (f32)count));
        }
        return over(x, temperature);
    }

    __device__ __forceinline__ f32 one(u32 id) const { return raw ? logits[id] : changed(id, logits[id]); }

    __device__ __forceinline__ void four(u32 first, f32 (&x)[4]) const {
        load_logits(logits, first, vocab, x);
        if (!raw) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (first + i < vocab) x[i] = changed(first + i, x[i]);
            }
        }
    }

    __device__ __forceinline__ float2 two(u32 first, f32 beyond) const {
        float2 x = two_logits(logits, first, vocab, beyond);
        if (!raw) {
            x.x = changed(first, x.x);
            if (first + 1 < vocab) x.y = changed(first + 1, x.y);
        }
        return x;
    }

    // Rounds in which every thread of the block takes one group of four ids.
    __device__ __forceinline__ u32 rounds() const { return cdiv(cdiv(vocab, 4), THREADS); }
};

struct Shared {
    Room<THREADS> merging;
    u32 picked;
    u64 above, inside;
    u32 tie;
    u32 num_top;
    u32 top_ids[MAX_TOP_LOGPROBS];
    f32 top_scores[MAX_TOP_LOGPROBS];
};

struct Histogram {
    u32 count[BINS];
    u32 low[BINS];
    u32 high[BINS];
};
static_assert(sizeof(Histogram) == 24576, "Histogram");

// e^(x - top) in units of 2^-40.
__device__ __forceinline__ u64 mass_of(f32 x, f32 top) { return __float2ull_rn(expf(x - top) * 1099511627776.0f); }

// Where a walk down the order, key by key, has counted `wanted` entries (or units of mass): that key, what it has counted above it, and how
// much is at it.
struct Place {
    u32 key;
    u64 above, inside;
    u32 ties;
};

// `share` of all mass where it is >= 0, else `wanted` entries, among keys >= least.
template <bool MASS>
__device__ Place select(const Scores& scores, u32 least, f32 top, f64 share, u64 wanted, Shared& shared, Histogram& histogram) {
    u32 prefix = 0, mask = 0;
    Place place = {0, 0, 0, 0};
    u64 above = 0;
#pragma unroll 1
    for (u32 level = 0; level < 3; level++) {
        const u32 shift = level == 0 ? 21 : level == 1 ? 10 : 0;
        const u32 bins = level == 2 ? 1024 : 2048;
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
            histogram.count[i] = 0;
            if (MASS) {
                histogram.low[i] = 0;
                histogram.high[i] = 0;
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 round = 0; round < scores.rounds(); round++) {
            u32 first = 4 * (round * THREADS + threadIdx.x);
            if (first >= scores.vocab) break;
            f32 x[4];
            scores.four(first, x);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 key = key_of(x[i]);
                if (key > KEY_NEG_INF && key >= least && (key & mask) == prefix) {
                    u32 bin = key >> shift & (bins - 1);
                    atomicAdd(&histogram.count[bin], 1u);
                    if (MASS) {
                        u64 mass = mass_of(x[i], top);
                        u32 low = (u32)mass, high = (u32)(mass >> 32);
                        if (low != 0) high += atomicAdd(&histogram.low[bin], low) + low < low ? 1 : 0;
                        if (high != 0) atomicAdd(&histogram.high[bin], high);
                    }
                }
            }
        }
        __syncthreads();
        // Bins from the top, four a thread.
        u64 amount[BINS / THREADS], sum = 0;
#pragma unroll
        for (u32 i = 0; i < BINS / THREADS; i++) {
            u32 bin = BINS - 1 - (threadIdx.x * (BINS / THREADS) + i);
            amount[i] = MASS ? (u64)histogram.high[bin] << 32 | histogram.low[bin] : (u64)histogram.count[bin];
            sum += amount[i];
        }
        u64 total;
        u64 before = block_scan<THREADS>(sum, shared.merging.ranks[0], total);
        if (level == 0) {
            if (MASS) {
                wanted = (u64)ceil(share * (f64)total);
                if (wanted == 0) wanted = 1;
            }
            if (wanted > total) wanted = total;
        }
        if (before < wanted - above && wanted - above <= before + sum) {
            u64 walked = before;
#pragma unroll
            for (u32 i = 0; i < BINS / THREADS; i++) {
                if (walked < wanted - above && wanted - above <= walked + amount[i]) {
                    shared.picked = BINS - 1 - (threadIdx.x * (BINS / THREADS) + i);
                    shared.above = walked;
                    shared.inside = amount[i];
                }
                walked += amount[i];
            }
        }
        __syncthreads();
        prefix |= shared.picked << shift;
        mask |= (bins - 1) << shift;
        above += shared.above;
        place.ties = histogram.count[shared.picked];
        place.inside = shared.inside;
    }
    place.key = prefix;
    place.above = above;
    // What is still wanted of the entries at the key, in entries.
    u64 left = wanted - above;
    if (MASS) {
        u64 each = place.inside / place.ties;
        left = (left + each - 1) / each;
    }
    place.inside = left < place.ties ? left : place.ties;
    __syncthreads();
    return place;
}

// Id of the nth entry (from 1) with this key, in ascending order of ids.
__device__ u32 nth_tie(const Scores& scores, u32 key, u32 nth, Shared& shared) {
    u32 found = 0;
    for (u32 round = 0; round < scores.rounds(); round++) {
        u32 first = 4 * (round * THREADS + threadIdx.x);
        f32 x[4] = {neg_inf(), neg_inf(), neg_inf(), neg_inf()};
        if (first < scores.vocab) scores.four(first, x);
        u32 here = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) here += key_of(x[i]) == key ? 1 : 0;
        u64 total;
        u32 before = found + (u32)block_scan<THREADS>((u64)here, shared.merging.ranks[0], total);
        if (before < nth && nth <= before + here) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (key_of(x[i]) == key && ++before == nth) shared.tie = first + i;
            }
        }
        found += (u32)total;
        if (found >= nth) break;
    }
    __syncthreads();
    return shared.tie;
}

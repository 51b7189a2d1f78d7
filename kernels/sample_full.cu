// What rows ask for that their parts do not tell: the twin of src/backends/cpu/sample.rs and filter.rs.
//
// A block a row, after `sample`. Scores go through as many passes as they need: the maximum; top-k by radix select over the bits of the score (11, 11,
// 10); top-p likewise by mass, in fixed point so that sums have no order; the masses of tiles of what is left, of which one is drawn as in
// `sample_merge.cuh`. All cuts are one cutoff in the order (score descending, id ascending). Alternatives to report are found by the same select.
// Bytes moved: up to nine times 4 a logit.
#include "sample_filter.cuh"

// A row's scores; `touched`: a bit for every entry.
__device__ __forceinline__ Scores scores_of(const SampleRow& row, const f32* logits, u32 vocab, const u32* banned, const u32* bias_ids,
                                            const f32* bias_values, const u32* seen, const u32* counts, u32* touched) {
    const u32 words = cdiv(vocab, 32);
    Scores scores;
    scores.logits = logits;
    scores.vocab = vocab;
    scores.temperature = temperature_of(row);
    scores.raw = !changes_logits(row) && scores.temperature == 1.0f;
    scores.repetition_penalty = row.repetition_penalty;
    scores.presence_penalty = row.presence_penalty;
    scores.frequency_penalty = row.frequency_penalty;
    scores.seen = row.repetition_penalty != 1.0f ? seen + (u64)row.slot * words : nullptr;
    scores.counts = penalises_counts(row) ? counts + (u64)row.counts_row * vocab : nullptr;
    scores.banned = banned + row.banned_start;
    scores.banned_len = row.banned_len;
    scores.bias_ids = bias_ids + row.bias_start;
    scores.bias_values = bias_values + row.bias_start;
    scores.bias_len = row.bias_len;
    scores.touched = nullptr;
    if (row.banned_len + row.bias_len > 0) {
        for (u32 i = threadIdx.x; i < words; i += THREADS) touched[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < row.banned_len; i += THREADS) atomicOr(&touched[scores.banned[i] / 32], 1u << scores.banned[i] % 32);
        for (u32 i = threadIdx.x; i < row.bias_len; i += THREADS) atomicOr(&touched[scores.bias_ids[i] / 32], 1u << scores.bias_ids[i] % 32);
        __syncthreads();
        scores.touched = touched;
    }
    return scores;
}

// The largest score and its id, as `ranked`.
__device__ __forceinline__ u64 largest_of(const Scores& scores, Shared& shared) {
    u64 best = 0;
#pragma unroll 1
    for (u32 round = 0; round < scores.rounds(); round++) {
        u32 first = 4 * (round * THREADS + threadIdx.x);
        if (first >= scores.vocab) break;
        f32 x[4];
        scores.four(first, x);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u64 here = ranked(x[i], first + i);
            if (first + i < scores.vocab && here > best) best = here;
        }
    }
    return block_max<THREADS>(best, shared.merging.ranks[0]);
}

// The last entry that filters leave.
struct Cutoff {
    u32 key, id;

    __device__ __forceinline__ bool keeps(f32 x, u32 of) const {
        const u32 other = key_of(x);
        return other > key || (other == key && of <= id);
    }
};

__device__ __forceinline__ Cutoff cutoff_of(const SampleRow& row, const Scores& scores, f32 top, Shared& shared, Histogram& histogram) {
    Cutoff cutoff = {0, NONE};
    if (row.top_k > 0 && row.top_k < scores.vocab) cutoff.key = select<false>(scores, 0, top, 0.0, row.top_k, shared, histogram).key;
    if (row.top_p < 1.0f) {
        Place place = select<true>(scores, cutoff.key, top, (f64)row.top_p, 0, shared, histogram);
        cutoff.key = place.key;
        if (place.inside < place.ties) cutoff.id = nth_tie(scores, place.key, (u32)place.inside, shared);
    }
    if (row.min_p > 0.0f) {
        u32 least = key_of(top + fminf(logf(row.min_p), 0.0f));
        if (least > cutoff.key) cutoff = {least, NONE};
    }
    return cutoff;
}

// A lane's scores, made anew when they are looked at.
struct Remade {
    const Scores& scores;

    template <u32 N>
    __device__ __forceinline__ void choose(bool) {}
    __device__ __forceinline__ f32 chosen(u32, u32 id) const { return id < scores.vocab ? scores.one(id) : BEYOND; }
};

// The entry that is drawn, and all mass that is left, relative to `top`. `masses`: one a tile.
__device__ __forceinline__ u32 draw_left(const SampleRow& row, const Scores& scores, const Cutoff& cutoff, f32 top, u32 tiles, f32* masses, Shared& shared,
                                         f64& mass) {
    auto weight = [&](f32 x, u32 id) { return cutoff.keeps(x, id) ? expf(x - top) : 0.0f; };
    f32 runs[RUNS] = {};
    // As `sum_runs`, but not written out: what makes a score is long.
    auto load = [&](u32 first) {
#pragma unroll 1
        for (u32 r = 0; r < RUNS; r++) {
            f32 sum = 0.0f;
#pragma unroll
            for (u32 k = 0; k < RUN; k += 2) {
                const u32 id = entry_id(first, r * RUN + k);
                const float2 pair = id < scores.vocab ? scores.two(id, BEYOND) : float2{BEYOND, BEYOND};
                sum += weight(pair.x, id);
                sum += weight(pair.y, id + 1);
            }
#pragma unroll
            for (u32 i = 0; i < RUNS; i++) runs[i] = i == r ? sum : runs[i];
        }
    };
    // What passes before this one left there is no longer read.
    __syncthreads();
#pragma unroll 1
    for (u32 round = 0; round < cdiv(4 * tiles, THREADS); round++) {
        const u32 tile = (round * THREADS + threadIdx.x) / 4;
        load(tile * DRAW_TILE);
        const f32 here = quad_sum(sum_of<RUNS>(runs));
        if (threadIdx.x % 4 == 0 && tile < tiles) masses[tile] = here;
    }
    __syncthreads();
    const u32 first = choose(tiles, row, shared.merging, mass, [&](u32 i) { return (f64)masses[i]; }) * DRAW_TILE;
    load(first);
    return draw_entry(Remade{scores}, runs, first, uniform_of(row.random[ENTRY_WORD]), weight).id;
}

// The most likely entries as they came, the best first.
__device__ __forceinline__ void report_alternatives(const SampleRow& row, const Merged& merged, const f32* logits, u32 vocab, Shared& shared,
                                                    Histogram& histogram, Sampled& out) {
    Scores scores = {};
    scores.logits = logits;
    scores.vocab = vocab;
    scores.raw = true;
    const u32 num_top = min_u32(min_u32(row.top_logprobs, MAX_TOP_LOGPROBS), vocab);
    Place place = select<false>(scores, 0, 0.0f, 0.0, num_top, shared, histogram);
    u32 last = NONE;
    if (place.inside < place.ties) last = nth_tie(scores, place.key, (u32)place.inside, shared);
    if (threadIdx.x == 0) shared.num_top = 0;
    __syncthreads();
#pragma unroll 1
    for (u32 round = 0; round < scores.rounds(); round++) {
        u32 first = 4 * (round * THREADS + threadIdx.x);
        if (first >= vocab) break;
        f32 x[4];
        scores.four(first, x);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 key = key_of(x[i]);
            if (key > place.key || (key == place.key && first + i <= last && first + i < vocab)) {
                u32 at = atomicAdd(&shared.num_top, 1u);
                if (at < MAX_TOP_LOGPROBS) {
                    shared.top_ids[at] = first + i;
                    shared.top_scores[at] = x[i];
                }
            }
        }
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const f64 log_raw = log(merged.raw_sum);
    // Selection sort: at most twenty.
    for (u32 i = 0; i < num_top; i++) {
        u64 best = 0;
        u32 at = i;
        for (u32 j = i; j < num_top; j++) {
            u64 here = ranked(shared.top_scores[j], shared.top_ids[j]);
            if (here > best) {
                best = here;
                at = j;
            }
        }
        f32 score = shared.top_scores[at];
        u32 id = shared.top_ids[at];
        shared.top_scores[at] = shared.top_scores[i];
        shared.top_ids[at] = shared.top_ids[i];
        out.top_ids[i] = id;
        out.top_logps[i] = (f32)((f64)(score - merged.most) - log_raw);
    }
    out.num_top = num_top;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sample_full(const f32* __restrict__ all_logits, const SampleRow* __restrict__ rows, const u32* banned,
                                                                     const u32* bias_ids, const f32* bias_values, u32 vocab, u32 parts,
                                                                     const SamplePart* __restrict__ scratch, u32* last_tokens, u32* seen, u32* counts,
                                                                     Sampled* __restrict__ all_out) {
    wait_for_earlier_kernels();
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ Shared shared;
    Histogram& histogram = *reinterpret_cast<Histogram*>(dynamic);
    f32* masses = reinterpret_cast<f32*>(dynamic);
    u32* touched = reinterpret_cast<u32*>(dynamic + sizeof(Histogram));
    const SampleRow& row = rows[blockIdx.x];
    const f32* logits = all_logits + (u64)row.logits_row * vocab;
    Sampled& out = all_out[blockIdx.x];
    const bool by_parts = draws_by_parts(row);
    if (by_parts && row.top_logprobs == 0) return;
    const Merged merged(scratch + (u64)blockIdx.x * parts, parts, row, shared.merging, [](u32) { return true; }, [](u32, const SamplePart&, f64) {});
    if (merged.corrupt) return;
    if (!by_parts) {
        const Scores scores = scores_of(row, logits, vocab, banned, bias_ids, bias_values, seen, counts, touched);
        const u64 largest = largest_of(scores, shared);
        const f32 top = ranked_score(largest);
        // Nothing may be drawn.
        if (top == neg_inf()) return;
        u32 token = ranked_id(largest);
        Cutoff cutoff = {0, NONE};
        f64 mass = 1.0;
        if (row.temperature != 0.0f) {
            cutoff = cutoff_of(row, scores, top, shared, histogram);
            token = draw_left(row, scores, cutoff, top, parts, masses, shared, mass);
        }
        if (row.forced != NONE) token = row.forced;
        if (threadIdx.x < 32) {
            const f32 score = scores.one(token);
            if (!cutoff.keeps(score, token)) mass = 0.0;
            State{last_tokens, seen, counts, vocab}.store(row, merged, token, logits[token], (f64)(score - top), mass, out);
        }
    }
    if (row.top_logprobs > 0) report_alternatives(row, merged, logits, vocab, shared, histogram, out);
}

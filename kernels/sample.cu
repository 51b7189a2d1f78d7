// One token from one row of logits: the twin of src/backends/cpu/sample.rs and filter.rs.
//
// `sample_parts`: a block a (part of 8,192 entries, row). Its logits are read once into registers; from there the maximum, Σe^z and Σe^z·z
// at the row's temperature, Σe^z at 1, whether all are finite, and, for rows without penalties and filters, the largest score + Gumbel noise
// and its id. Noise is made for every entry (Philox of the id), but its logarithms only for entries that can win: with S = Σe^z, the largest
// sum is above ln S - 2.5 except once in 200,000 parts, and an entry reaches that only if its word u <= e^z · e^2.5 / S, about twelve
// entries a part. When nothing reaches the mark, all entries are looked at.
// `sample`: a block a row merges the parts in order, in f64, and writes the result and the sampler's state. Rows with bias, penalties, filters
// or more than a few bans take their scores through as many passes as they need: the maximum; top-k by radix select over the bits of the
// score (11, 11, 10); top-p likewise by mass, in fixed point so that sums have no order; the draw among what is left. All cuts are one cutoff
// in the order (score descending, id ascending).
// Sums have an order that depends on the vocabulary alone. Bytes moved: 4 a logit, once; rows with filters up to nine times.
#include "common.cuh"
#include "philox.cuh"
#include "sample_filter.cuh"

constexpr u32 PART = 8192;
constexpr u32 PART_THREADS = 256;
constexpr u32 GROUPS = PART / PART_THREADS / 4;
// Entries of a part that may win, at most; more of them take the slow way.
constexpr u32 FOUND = 512;

struct SamplePart {
    f32 most;
    u32 most_id;
    // Of z = (x - most) / temperature.
    f32 sum;
    f32 weighted;
    // At temperature 1.
    f32 raw_sum;
    f32 draw;
    u32 draw_id;
    u32 corrupt;
};
static_assert(sizeof(SamplePart) == 32, "SamplePart");

extern "C" __global__ void __launch_bounds__(256, 3) sample_parts(const f32* __restrict__ logits, const SampleRow* __restrict__ rows, const u32* __restrict__ all_banned,
                                                                  u32 vocab, u32 parts, SamplePart* __restrict__ scratch) {
    wait_for_earlier_kernels();
    __shared__ u64 room[PART_THREADS / 32];
    __shared__ f32 room_f[PART_THREADS / 32];
    const SampleRow& row = rows[blockIdx.y];
    const f32* x = logits + (u64)row.logits_row * vocab;
    const u32 first = blockIdx.x * PART;
    const f32 temperature = temperature_of(row);
    const f32 inverse = 1.0f / temperature;
    const bool draws = row.temperature != 0.0f && row.forced == NONE && !filters(row) && (!changes_logits(row) || lacks_few(row));
    const u32* banned = all_banned + row.banned_start;
    const u32 banned_len = row.banned_len;

    f32 e[GROUPS][4];
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) load_logits(x, first + 4 * (j * PART_THREADS + threadIdx.x), vocab, e[j]);

    // A number times 0 is 0, or NaN when it is not finite; NaN stays.
    f32 check = 0.0f, most = neg_inf();
    u32 most_id = first;
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 id = first + 4 * (j * PART_THREADS + threadIdx.x) + i;
            if (id < vocab) check = fmaf(e[j][i], 0.0f, check);
            if (e[j][i] > most) {
                most = e[j][i];
                most_id = id;
            }
        }
    }
    if (__syncthreads_or(!(check == 0.0f))) {
        if (threadIdx.x == 0) scratch[(u64)blockIdx.y * parts + blockIdx.x] = SamplePart{0.0f, 0, 0.0f, 0.0f, 0.0f, 0.0f, 0, 1};
        return;
    }
    u64 largest = block_max<PART_THREADS>(ranked(most, most_id), room);
    most = ranked_score(largest);

    f32 raw_sum = 0.0f;
    if (temperature != 1.0f) {
#pragma unroll
        for (u32 j = 0; j < GROUPS; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) raw_sum += exp2_fast((e[j][i] - most) * LOG2_E);
        }
        raw_sum = block_sum<PART_THREADS>(raw_sum, room_f);
    }
    f32 sum = 0.0f, weighted = 0.0f;
#pragma unroll
    for (u32 j = 0; j < GROUPS; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            // A finite z keeps 0 · z from NaN.
            f32 z = fmaxf((e[j][i] - most) * inverse, -200.0f);
            e[j][i] = exp2_fast(z * LOG2_E);
            sum += e[j][i];
            weighted = fmaf(e[j][i], z, weighted);
        }
    }
    sum = block_sum<PART_THREADS>(sum, room_f);
    weighted = block_sum<PART_THREADS>(weighted, room_f);
    if (temperature == 1.0f) raw_sum = sum;

    u64 best = 0;
    if (draws) {
        __shared__ u32 num_found;
        __shared__ uint2 found[FOUND];
        const f32 mark = over(most, temperature) + (logf(sum) - 2.5f);
        const f32 reach = 12.182494f * 1.0001f / sum;
        if (threadIdx.x == 0) num_found = 0;
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < GROUPS; j++) {
            f32 largest_here = fmaxf(fmaxf(e[j][0], e[j][1]), fmaxf(e[j][2], e[j][3]));
            // No word is below 2^-33.
            if (largest_here * reach < 1e-10f) continue;
            u32 group = first / 4 + j * PART_THREADS + threadIdx.x;
            Words words = philox(group, row.position, row.sample, row.key[0], row.key[1]);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (one_plus(words.w[i]) <= fmaf(e[j][i], reach, ONE_AND_SLACK)) {
                    u32 at = atomicAdd(&num_found, 1u);
                    if (at < FOUND) found[at] = uint2{4 * group + i, words.w[i]};
                }
            }
        }
        __syncthreads();
        const u32 num = num_found;
        if (num <= FOUND) {
            for (u32 i = threadIdx.x; i < num; i += PART_THREADS) {
                uint2 entry = found[i];
                if (entry.x < vocab && !contains(banned, banned_len, entry.x)) best = max_u64(best, ranked(over(x[entry.x], temperature) + gumbel(entry.y), entry.x));
            }
            best = block_max<PART_THREADS>(best, room);
        }
        if (best == 0 || ranked_score(best) < mark + 0.01f + 1e-6f * fabsf(mark)) {
            best = 0;
#pragma unroll 1
            for (u32 j = 0; j < GROUPS; j++) {
                u32 group = first / 4 + j * PART_THREADS + threadIdx.x;
                if (4 * group >= vocab) break;
                Words words = philox(group, row.position, row.sample, row.key[0], row.key[1]);
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 id = 4 * group + i;
                    if (id < vocab && !contains(banned, banned_len, id)) best = max_u64(best, ranked(over(x[id], temperature) + gumbel(words.w[i]), id));
                }
            }
            best = block_max<PART_THREADS>(best, room);
        }
    }
    if (threadIdx.x == 0) {
        scratch[(u64)blockIdx.y * parts + blockIdx.x] = SamplePart{most, ranked_id(largest), sum, weighted, raw_sum, best == 0 ? neg_inf() : ranked_score(best), best == 0 ? NONE : ranked_id(best), 0};
    }
}

extern "C" __global__ void __launch_bounds__(512, 2) sample(const f32* __restrict__ all_logits, const SampleRow* __restrict__ rows, const u32* banned,
                                                            const u32* bias_ids, const f32* bias_values, u32 vocab, u32 parts,
                                                            const SamplePart* __restrict__ scratch, u32* last_tokens, u32* seen, u32* counts,
                                                            Sampled* __restrict__ all_out) {
    wait_for_earlier_kernels();
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ Shared shared;
    Histogram& histogram = *reinterpret_cast<Histogram*>(dynamic);
    u32* touched = reinterpret_cast<u32*>(dynamic + sizeof(Histogram));

    const SampleRow& row = rows[blockIdx.x];
    const u32 words = cdiv(vocab, 32);
    const f32* logits = all_logits + (u64)row.logits_row * vocab;
    Sampled* out = all_out + blockIdx.x;
    const bool greedy = row.temperature == 0.0f;
    const f32 temperature = temperature_of(row);

    // The parts, merged in order by every thread alike.
    SamplePart* merged = reinterpret_cast<SamplePart*>(dynamic);
    for (u32 i = threadIdx.x; i < parts * 2; i += THREADS) {
        reinterpret_cast<uint4*>(merged)[i] = reinterpret_cast<const uint4*>(scratch + (u64)blockIdx.x * parts)[i];
    }
    __syncthreads();
    u32 corrupt = 0;
    u64 largest = 0;
    for (u32 i = 0; i < parts; i++) {
        corrupt |= merged[i].corrupt;
        u64 here = ranked(merged[i].most, merged[i].most_id);
        largest = max_u64(largest, here);
    }
    const f32 most = ranked_score(largest);
    f64 log_sum = 0.0, log_raw = 0.0, mean = 0.0, log_kept = 0.0;
    u64 drawn = 0;
    if (threadIdx.x == 0) shared.full = !lacks_few(row) && (changes_logits(row) || filters(row));
    if (threadIdx.x == 0 && corrupt == 0) {
        f64 sum = 0.0, weighted = 0.0, raw = 0.0;
        for (u32 i = 0; i < parts; i++) {
            SamplePart part = merged[i];
            f32 distance = part.most - most;
            f64 z = (f64)distance / (f64)temperature;
            f64 scale = (f64)expf((f32)z);
            sum += scale * (f64)part.sum;
            if (scale > 0.0) weighted += scale * ((f64)part.weighted + z * (f64)part.sum);
            raw += (f64)expf(distance) * (f64)part.raw_sum;
            if (part.draw_id != NONE) {
                u64 here = ranked(part.draw, part.draw_id);
                drawn = max_u64(drawn, here);
            }
        }
        log_sum = log(sum);
        log_raw = log(raw);
        mean = weighted / sum;
        if (lacks_few(row)) {
            const u32* ids = banned + row.banned_start;
            f64 lost = 0.0;
            for (u32 i = 0; i < row.banned_len; i++) {
                if (!contains(ids, i, ids[i])) lost += exp((f64)(over(logits[ids[i]], temperature) - over(most, temperature)) - log_sum);
            }
            // A difference of nearly equal numbers says nothing; then the rest is summed by itself.
            shared.full = lost > 0.5;
            log_kept = log1p(-fmin(lost, 0.5));
        }
    }
    __syncthreads();

    u32 token = greedy ? ranked_id(largest) : ranked_id(drawn);
    const bool full = shared.full != 0;
    f32 logp_sampled = 0.0f;
    if (full && corrupt == 0) {
        Scores scores;
        scores.logits = logits;
        scores.vocab = vocab;
        scores.raw = !changes_logits(row) && temperature == 1.0f;
        scores.temperature = temperature;
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

        u64 best = 0;
#pragma unroll 1
        for (u32 round = 0; round < scores.rounds(); round++) {
            u32 first = 4 * (round * THREADS + threadIdx.x);
            if (first >= vocab) break;
            f32 x[4];
            scores.four(first, x);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u64 here = ranked(x[i], first + i);
                if (first + i < vocab && here > best) best = here;
            }
        }
        best = block_max<THREADS>(best, shared.room);
        const f32 top = ranked_score(best);
        if (top == neg_inf()) {
            corrupt = 1;
        } else {
            // The last entry that stays.
            u32 cut = 0, cut_id = NONE;
            if (!greedy) {
                if (row.top_k > 0 && row.top_k < vocab) cut = select<false>(scores, 0, top, 0.0, row.top_k, shared, histogram).key;
                if (row.top_p < 1.0f) {
                    Place place = select<true>(scores, cut, top, (f64)row.top_p, 0, shared, histogram);
                    cut = place.key;
                    if (place.inside < place.ties) cut_id = nth_tie(scores, place.key, (u32)place.inside, shared);
                }
                if (row.min_p > 0.0f) {
                    u32 least = key_of(top + fminf(logf(row.min_p), 0.0f));
                    if (least > cut) {
                        cut = least;
                        cut_id = NONE;
                    }
                }
            }
            f32 sum = 0.0f, best_sum = neg_inf();
            u32 best_id = NONE;
            const bool draws = !greedy && row.forced == NONE;
            // e^(top - the largest sum of the warp so far).
            f32 reach = __uint_as_float(0x7F800000u);
#pragma unroll 1
            for (u32 round = 0; round < scores.rounds(); round++) {
                u32 group = round * THREADS + threadIdx.x;
                f32 x[4] = {neg_inf(), neg_inf(), neg_inf(), neg_inf()};
                if (4 * group < vocab) scores.four(4 * group, x);
                f32 e[4], largest_here = 0.0f;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 key = key_of(x[i]);
                    bool kept = key > cut || (key == cut && 4 * group + i <= cut_id);
                    e[i] = kept ? expf(x[i] - top) : 0.0f;
                    sum += e[i];
                    largest_here = fmaxf(largest_here, e[i]);
                }
                if (draws && largest_here > 0.0f && !(largest_here * reach < 1e-10f)) {
                    Words word = philox(group, row.position, row.sample, row.key[0], row.key[1]);
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        if (e[i] > 0.0f && one_plus(word.w[i]) <= fmaf(e[i], reach, ONE_AND_SLACK)) {
                            f32 total = x[i] + gumbel(word.w[i]);
                            if (total > best_sum) {
                                best_sum = total;
                                best_id = 4 * group + i;
                            }
                        }
                    }
                }
                if (draws) {
                    f32 warp_best = score_of(__reduce_max_sync(FULL, key_of(best_sum)));
                    reach = expf(top - warp_best) * 1.0001f;
                }
            }
            sum = block_sum<THREADS>(sum, shared.room_f);
            if (draws) {
                u64 choice = best_id == NONE ? 0 : ranked(best_sum, best_id);
                token = ranked_id(block_max<THREADS>(choice, shared.room));
            } else if (greedy) {
                token = ranked_id(best);
            }
            if (row.forced != NONE) token = row.forced;
            if (threadIdx.x == 0 && !greedy) {
                f32 x = scores.one(token);
                u32 key = key_of(x);
                bool kept = key > cut || (key == cut && token <= cut_id);
                logp_sampled = kept ? (f32)((f64)(x - top) - log((f64)sum)) : neg_inf();
            }
        }
    }
    if (row.forced != NONE) token = row.forced;

    u32 num_top = 0;
    if (row.top_logprobs > 0 && corrupt == 0) {
        Scores scores = {};
        scores.logits = logits;
        scores.vocab = vocab;
        scores.raw = true;
        num_top = min_u32(min_u32(row.top_logprobs, MAX_TOP_LOGPROBS), vocab);
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
    }

    if (threadIdx.x != 0) return;
    for (u32 i = 0; i < MAX_TOP_LOGPROBS; i++) {
        out->top_ids[i] = 0;
        out->top_logps[i] = 0.0f;
    }
    if (corrupt != 0) {
        out->token = 0;
        out->logp = 0.0f;
        out->logp_raw = 0.0f;
        out->logp_sampled = 0.0f;
        out->entropy = 0.0f;
        out->corrupt = 1;
        out->num_top = 0;
        return;
    }
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
        out->top_ids[i] = id;
        out->top_logps[i] = (f32)((f64)(score - most) - log_raw);
    }
    f32 x = logits[token];
    f32 logp = (f32)((f64)(over(x, temperature) - over(most, temperature)) - log_sum);
    out->token = token;
    out->logp = logp;
    out->logp_raw = (f32)((f64)(x - most) - log_raw);
    out->logp_sampled = greedy ? 0.0f : full ? logp_sampled : log_kept == 0.0 ? logp : (f32)((f64)logp - log_kept);
    out->entropy = (f32)(log_sum - mean);
    out->corrupt = 0;
    out->num_top = num_top;

    last_tokens[row.slot] = token;
    seen[(u64)row.slot * words + token / 32] |= 1u << token % 32;
    if (row.counts_row != NONE) counts[(u64)row.counts_row * vocab + token] += 1;
}

// Prepares a slot: its last token, its seen tokens and, when it has one, its counts row. One block.
extern "C" __global__ void __launch_bounds__(1024) reset_slot(u32* last_tokens, u32* seen, u32* counts, u32 vocab, u32 slot, u32 counts_row,
                                                              const u32* tokens, u32 num_prompt, u32 num_completion) {
    wait_for_earlier_kernels();
    const u32 words = cdiv(vocab, 32);
    u32* bits = seen + (u64)slot * words;
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) bits[i] = 0;
    u32* row = counts + (u64)(counts_row == NONE ? 0 : counts_row) * vocab;
    if (counts_row != NONE) {
        for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) row[i] = 0;
    }
    __syncthreads();
    const u32 num = num_prompt + num_completion;
    for (u32 i = threadIdx.x; i < num; i += blockDim.x) {
        u32 token = tokens[i];
        atomicOr(&bits[token / 32], 1u << token % 32);
        if (counts_row != NONE && i >= num_prompt) atomicAdd(&row[token], 1u);
    }
    if (threadIdx.x == 0 && num > 0) last_tokens[slot] = tokens[num - 1];
}

// One token from one row of logits: the twin of src/backends/cpu/sample.rs.
//
// `sample_parts`: four lanes a tile of 192 entries (`sample_tile.cuh`), whose logits are read once into registers; from there the maximum, Σe^z and
// Σe^z·z at the row's temperature, Σe^z at 1, and the entry that is drawn if the tile is. `gemm_sample.cu` makes the same parts of products.
// `sample`: a block a row puts the parts together, in f64, draws one of them by its mass, and writes the result and the sampler's state. Rows that ask
// for more are left to `sample_full.cu`.
// Sums have an order that depends on the vocabulary alone. Bytes moved: 4 a logit, once, and 32 a tile, twice.
#include "sample_merge.cuh"

constexpr u32 THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) sample_parts(const f32* __restrict__ logits, const SampleRow* __restrict__ rows, u32 vocab, u32 parts,
                                                                   SamplePart* __restrict__ scratch) {
    wait_for_earlier_kernels();
    const SampleRow& row = rows[blockIdx.y];
    const f32* of_row = logits + (u64)row.logits_row * vocab;
    const u32 tile = blockIdx.x * (THREADS / 4) + threadIdx.x / 4, first = tile * DRAW_TILE;
    f32 x[ENTRIES];
    load_tile(x, first, vocab, [&](u32 id) { return two_logits(of_row, id, vocab, BEYOND); });
    const SamplePart part = part_of(x, first, row.temperature, row.random[ENTRY_WORD]);
    if (threadIdx.x % 4 == 0 && tile < parts) store_part(scratch + (u64)blockIdx.y * parts + tile, part);
}

// A lane's logits of a tile less its bans.
struct Kept {
    const f32* logits;
    u32 vocab, first;
    // A bit for each of the lane's entries that is banned.
    u64 banned;

    __device__ __forceinline__ void ban(u32 id) {
        const u32 at = id - first;
        if (at < DRAW_TILE && at % 8 / 2 == threadIdx.x % 4) banned |= 1ull << (at / 8 * 2 + at % 2);
    }
    __device__ __forceinline__ f32 entry(u32 i) const {
        const u32 id = entry_id(first, i);
        return id < vocab && !(banned >> i & 1) ? logits[id] : BEYOND;
    }
    template <u32 N>
    __device__ __forceinline__ void choose(bool) {}
    __device__ __forceinline__ f32 chosen(u32, u32 id) const { return entry((id - first) / 8 * 2 + id % 2); }
};

// What is left of a tile with a ban.
struct Lacking {
    u32 tile;
    Drawn drawn;
};

// `logits` are read for rows with a given token, and in tiles with bans.
extern "C" __global__ void __launch_bounds__(THREADS, 3) sample(const f32* __restrict__ logits, const SampleRow* __restrict__ rows,
                                                                const u32* __restrict__ all_banned, u32 vocab, u32 parts,
                                                                const SamplePart* __restrict__ scratch, u32* last_tokens, u32* seen, u32* counts,
                                                                Sampled* __restrict__ out) {
    wait_for_earlier_kernels();
    extern __shared__ f64 masses[];
    __shared__ Room<THREADS> room;
    __shared__ Lacking lacking[FEW];
    const SampleRow& row = rows[blockIdx.x];
    const SamplePart* of_row = scratch + (u64)blockIdx.x * parts;
    clear(out[blockIdx.x]);
    if (!draws_by_parts(row)) return;
    const u32 num_banned = row.banned_len, lane = threadIdx.x % 32;
    const u32* banned = all_banned + row.banned_start;
    const f32* of_logits = logits + (u64)row.logits_row * vocab;
    if (num_banned > 0 && threadIdx.x < 32) {
        // Four lanes a ban.
        const u32 tile = banned[min_u32(lane / 4, num_banned - 1)] / DRAW_TILE, first = tile * DRAW_TILE;
        Kept kept = {of_logits, vocab, first, 0};
        for (u32 b = 0; b < num_banned; b++) kept.ban(banned[b]);
        const Weights weights(of_row[tile].most, row.temperature);
        f32 runs[RUNS];
        sum_runs(runs, [&](u32 i) { return weights(kept.entry(i)); });
        const Drawn drawn = draw_entry(kept, runs, first, uniform_of(row.random[ENTRY_WORD]), [&](f32 x, u32) { return weights(x); });
        if (lane % 4 == 0) lacking[lane / 4] = {tile, drawn};
    }
    // Of a part: what may be drawn.
    auto left = [&](u32 i, const SamplePart& part) {
        Drawn drawn = {part.sum, part.logit, part.id};
        for (u32 b = 0; b < num_banned; b++) {
            if (lacking[b].tile == i) drawn = lacking[b].drawn;
        }
        return drawn;
    };
    // What is banned may be far above all that is left.
    auto has_mass = [&](u32 i) {
        bool has = true;
        for (u32 b = 0; b < num_banned; b++) has &= lacking[b].tile != i || lacking[b].drawn.mass > 0.0f;
        return has;
    };
    if (num_banned > 0) __syncthreads();
    const Merged merged(of_row, parts, row, room, has_mass, [&](u32 i, const SamplePart& part, f64 z) {
        const f32 of = left(i, part).mass;
        masses[i] = of > 0.0f ? (f64)expf((f32)z) * (f64)of : 0.0;
    });
    f64 mass;
    const u32 tile = choose(parts, row, room, mass, [&](u32 i) { return masses[i]; });
    if (threadIdx.x >= 32 || merged.corrupt || mass == 0.0) return;
    const Drawn drawn = left(tile, of_row[tile]);
    const bool greedy = row.temperature == 0.0f, forced = row.forced != NONE;
    const u32 token = forced ? row.forced : greedy ? merged.most_id : drawn.id;
    const f32 x = forced ? of_logits[token] : greedy ? merged.most : drawn.x;
    const f32 temperature = temperature_of(row);
    const f64 distance = over(x, temperature) - over(merged.base, temperature);
    if (num_banned == 0) mass = merged.sum;
    if (forced && contains(banned, num_banned, token)) mass = 0.0;
    State{last_tokens, seen, counts, vocab}.store(row, merged, token, x, distance, mass, out[blockIdx.x]);
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

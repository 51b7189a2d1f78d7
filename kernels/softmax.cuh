// A tile of 64 keys in the softmax of rows that a warp has, sixteen of them: what attention of all kinds does with the sums of mma. A row is among
// four lanes; `half` of an accumulator is one row.
#pragma once
#include "common.cuh"

// Scores of a row, the largest of all of which is `most`, become weights. m, l: the largest score and the sum of weights so far; a lane sums its
// own keys only. Returns what earlier sums are worth now.
__device__ __forceinline__ f32 weigh_row(f32 (&s)[8][4], u32 half, f32 most, f32& m, f32& l) {
    // A row that has seen nothing yet keeps -inf, and all its weights are 2^-inf.
    const f32 from = most == neg_inf() ? 0.0f : most;
    const f32 alpha = exp2_fast(__fsub_rn(m, from));
    m = most;
    f32 sum = 0.0f;
#pragma unroll
    for (u32 n = 0; n < 8; n++) {
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            f32& x = s[n][2 * half + e];
            x = exp2_fast(__fsub_rn(x, from));
            sum += x;
        }
    }
    l = fmaf(l, alpha, sum);
    return alpha;
}

// The weights of sixteen keys as operands: the layout of sums is that of operands, two eights of keys are one step.
__device__ __forceinline__ void weights_of(const f32 (&s)[8][4], u32 step, u32 (&a)[4]) {
    const f32(&low)[4] = s[2 * step];
    const f32(&high)[4] = s[2 * step + 1];
    a[0] = f2bf2(low[0], low[1]);
    a[1] = f2bf2(low[2], low[3]);
    a[2] = f2bf2(high[0], high[1]);
    a[3] = f2bf2(high[2], high[3]);
}

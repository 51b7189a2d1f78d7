// Random numbers that depend on nothing but what they are for: the twin of src/rng.rs.
#pragma once
#include "common.cuh"

struct Words {
    u32 w[4];
};

// Philox4x32-10 of the counter (c0, c1, c2, 0).
__device__ __forceinline__ Words philox(u32 c0, u32 c1, u32 c2, u32 k0, u32 k1) {
    u32 a = c0, b = c1, c = c2, d = 0;
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u64 p = (u64)0xD2511F53u * a;
        u64 q = (u64)0xCD9E8D57u * c;
        a = (u32)(q >> 32) ^ b ^ k0;
        b = (u32)q;
        c = (u32)(p >> 32) ^ d ^ k1;
        d = (u32)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{a, b, c, d}};
}

// -ln(-ln(1 - u)), u = (word + 1/2) / 2^32, in f32 within a few ulp of the f64 value (both halves keep the leading digits: for small u
// log1p, for large u the logarithm of 1 - u itself).
__device__ __forceinline__ f32 gumbel(u32 word) {
    f32 e;
    if (word < 0x80000000u) {
        f32 u = ((f32)word + 0.5f) * 2.3283064365386963e-10f;
        e = -log1pf(-u);
    } else {
        f32 rest = ((f32)(~word) + 0.5f) * 2.3283064365386963e-10f;
        e = -logf(rest);
    }
    return -logf(e);
}

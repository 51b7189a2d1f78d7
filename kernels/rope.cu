// Rotary embeddings: the table of a step, and what turns queries and keys by it on their way from the fused projection.
//
// `rope_table` computes cos and sin of the f32 product position · inv_freq, reduced and evaluated in f64 and rounded once, since angles
// reach the length of the context. `rope_qkv` adds the bias, turns queries and keys (pairs are i and i + head_dim / 2; M-RoPE is in the
// table) and writes keys and values to the paged cache; `rope_vision` does the same without a cache. One block a row; a thread takes four
// pairs (16-byte loads, 8-byte stores) where half a head is a multiple of four, else one.
// Bytes moved: the projection read once in f32, its bf16 form written once, the table row from L2.
#include "rotation.cuh"

constexpr u32 THREADS = 256;

// cos and sin of x >= 0, good to well below half an ulp of f32 for |x| < 2^31.
__device__ __forceinline__ void cos_sin(f64 x, f32& cos, f32& sin) {
    f64 n = rint(x * 0.63661977236758134308);
    f64 r = fma(-n, 1.57079632679489655800e+00, x);
    r = fma(-n, 6.12323399573676603587e-17, r);
    f64 z = r * r;
    f64 s = 1.58962301576546568060e-10;
    s = fma(s, z, -2.50507477628578072866e-8);
    s = fma(s, z, 2.75573136213857245213e-6);
    s = fma(s, z, -1.98412698295895385996e-4);
    s = fma(s, z, 8.33333333332211858878e-3);
    s = fma(s, z, -1.66666666666666307295e-1);
    s = fma(s * z, r, r);
    f64 c = -1.13585365213876817300e-11;
    c = fma(c, z, 2.08757008419747316778e-9);
    c = fma(c, z, -2.75573141792967388112e-7);
    c = fma(c, z, 2.48015872888517045348e-5);
    c = fma(c, z, -1.38888888888730564116e-3);
    c = fma(c, z, 4.16666666666665929218e-2);
    c = fma(c, z * z, fma(-0.5, z, 1.0));
    i32 quadrant = (i32)((long long)n & 3);
    f64 cs = quadrant & 1 ? s : c;
    f64 sn = quadrant & 1 ? c : s;
    cos = (f32)(quadrant == 1 || quadrant == 2 ? -cs : cs);
    sin = (f32)(quadrant >= 2 ? -sn : sn);
}

extern "C" __global__ void __launch_bounds__(256) rope_table(const i32* __restrict__ positions, const f32* __restrict__ inv_freq, const u32* __restrict__ axis,
                                                             u32 half, u32 rows, f32* __restrict__ out) {
    wait_for_earlier_kernels();
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= rows * half) return;
    u32 row = i / half, f = i % half;
    f32 angle = (f32)positions[axis[f] * rows + row] * inv_freq[f];
    f32 cos, sin;
    cos_sin((f64)angle, cos, sin);
    f32* table = out + (u64)row * 2 * half;
    table[f] = cos;
    table[half + f] = sin;
}

__device__ __forceinline__ float4 load4(const f32* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 add4(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ __forceinline__ void store4(u16* p, f32 a, f32 b, f32 c, f32 d) { *reinterpret_cast<uint2*>(p) = uint2{f2bf2(a, b), f2bf2(c, d)}; }

// Piece i (four pairs) of one head: x + bias, turned, to dst.
__device__ __forceinline__ void rotate4(const f32* x, const f32* bias, const f32* rope, u32 half, u32 i, u16* dst) {
    float4 a = add4(load4(x + 4 * i), load4(bias + 4 * i));
    float4 b = add4(load4(x + half + 4 * i), load4(bias + half + 4 * i));
    float4 c = load4(rope + 4 * i), s = load4(rope + half + 4 * i);
    store4(dst + 4 * i, turn_low(a.x, b.x, c.x, s.x), turn_low(a.y, b.y, c.y, s.y), turn_low(a.z, b.z, c.z, s.z), turn_low(a.w, b.w, c.w, s.w));
    store4(dst + half + 4 * i, turn_high(a.x, b.x, c.x, s.x), turn_high(a.y, b.y, c.y, s.y), turn_high(a.z, b.z, c.z, s.z),
           turn_high(a.w, b.w, c.w, s.w));
}

__device__ __forceinline__ void rotate1(const f32* x, const f32* bias, const f32* rope, u32 half, u32 i, u16* dst) {
    f32 a = x[i] + bias[i], b = x[half + i] + bias[half + i];
    dst[i] = f2bf(turn_low(a, b, rope[i], rope[half + i]));
    dst[half + i] = f2bf(turn_high(a, b, rope[i], rope[half + i]));
}

extern "C" __global__ void __launch_bounds__(256) rope_qkv(const f32* __restrict__ qkv, const f32* __restrict__ bias, const f32* __restrict__ rope,
                                                           const u32* __restrict__ slot_mapping, u32 num_heads, u32 num_kv_heads, u32 head_dim,
                                                           u32 padded_dim, u16* __restrict__ q, u16* __restrict__ kv) {
    wait_for_earlier_kernels();
    u32 row = blockIdx.x;
    u32 half = head_dim / 2;
    const f32* x = qkv + (u64)row * (num_heads + 2 * num_kv_heads) * head_dim;
    const f32* table = rope + (u64)row * head_dim;
    u16* queries = q + (u64)row * num_heads * head_dim;
    u32 slot = slot_mapping[row];
    u64 side = (u64)num_kv_heads * BLOCK_SIZE * padded_dim;
    u16* keys = kv + (u64)(slot / BLOCK_SIZE) * 2 * side + (slot % BLOCK_SIZE) * padded_dim;
    u16* values = keys + side;
    u32 head_stride = BLOCK_SIZE * padded_dim;
    bool wide = half % 4 == 0;
    u32 pieces = wide ? half / 4 : half;
    u32 turned = (num_heads + num_kv_heads) * pieces;
    for (u32 i = threadIdx.x; i < turned; i += THREADS) {
        u32 head = i / pieces, piece = i % pieces;
        if (head >= num_heads && slot == NONE) continue;
        u16* dst = head < num_heads ? queries + head * head_dim : keys + (head - num_heads) * head_stride;
        if (wide) {
            rotate4(x + head * head_dim, bias + head * head_dim, table, half, piece, dst);
        } else {
            rotate1(x + head * head_dim, bias + head * head_dim, table, half, piece, dst);
        }
    }
    if (slot == NONE) return;
    u32 first = (num_heads + num_kv_heads) * head_dim;
    u32 step = wide ? 4 : 1;
    for (u32 i = threadIdx.x; i < num_kv_heads * head_dim / step; i += THREADS) {
        u32 at = i * step;
        u16* dst = values + (at / head_dim) * head_stride + at % head_dim;
        if (wide) {
            float4 v = add4(load4(x + first + at), load4(bias + first + at));
            store4(dst, v.x, v.y, v.z, v.w);
        } else {
            *dst = f2bf(x[first + at] + bias[first + at]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) rope_vision(const f32* __restrict__ qkv, const f32* __restrict__ bias, const f32* __restrict__ rope,
                                                              u32 num_heads, u32 head_dim, u16* __restrict__ q, u16* __restrict__ k, u16* __restrict__ v) {
    wait_for_earlier_kernels();
    u32 row = blockIdx.x;
    u32 half = head_dim / 2;
    u32 width = num_heads * head_dim;
    const f32* x = qkv + (u64)row * 3 * width;
    const f32* table = rope + (u64)row * head_dim;
    bool wide = half % 4 == 0;
    u32 pieces = wide ? half / 4 : half;
    for (u32 i = threadIdx.x; i < 2 * num_heads * pieces; i += THREADS) {
        u32 head = i / pieces, piece = i % pieces;
        u16* dst = (head < num_heads ? q : k) + (u64)row * width + (head < num_heads ? head : head - num_heads) * head_dim;
        if (wide) {
            rotate4(x + head * head_dim, bias + head * head_dim, table, half, piece, dst);
        } else {
            rotate1(x + head * head_dim, bias + head * head_dim, table, half, piece, dst);
        }
    }
    u32 step = wide ? 4 : 1;
    for (u32 i = threadIdx.x; i < width / step; i += THREADS) {
        u32 at = i * step;
        u16* dst = v + (u64)row * width + at;
        if (wide) {
            float4 value = add4(load4(x + 2 * width + at), load4(bias + 2 * width + at));
            store4(dst, value.x, value.y, value.z, value.w);
        } else {
            *dst = f2bf(x[2 * width + at] + bias[2 * width + at]);
        }
    }
}

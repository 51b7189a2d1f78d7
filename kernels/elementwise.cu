// Rows between GEMMs: embedding, row moves, RMSNorm, SwiGLU, GELU, rounding. All arithmetic is f32 and is rounded to bf16 once, at the end.
//
// Decomposition: one block a row (embed, moves, norm) or a run of 1,024 elements a block, four elements a thread, 16-byte accesses where
// the width allows them and single elements where it does not. A row's sums have one order that depends on its width alone.
// Bytes moved: each input read once, each output written once (a norm keeps its row in registers up to 4,096 elements).
#include "common.cuh"

constexpr u32 THREADS = 256;

extern "C" __global__ void __launch_bounds__(256) embed(const u32* __restrict__ ids, const u32* __restrict__ slots, const u32* __restrict__ last_tokens,
                                                        const u16* __restrict__ table, u32 table_stride, u32 width, f32* __restrict__ out) {
    wait_for_earlier_kernels();
    u32 row = blockIdx.x;
    u32 slot = slots[row];
    u32 id = slot == NONE ? ids[row] : last_tokens[slot];
    const u16* src = table + (u64)id * table_stride;
    f32* dst = out + (u64)row * width;
    if (width % 8 == 0 && table_stride % 8 == 0) {
        for (u32 i = threadIdx.x; i < width / 8; i += THREADS) {
            uint4 x = reinterpret_cast<const uint4*>(src)[i];
            float4 lo = {__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xFFFF0000u), __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xFFFF0000u)};
            float4 hi = {__uint_as_float(x.z << 16), __uint_as_float(x.z & 0xFFFF0000u), __uint_as_float(x.w << 16), __uint_as_float(x.w & 0xFFFF0000u)};
            reinterpret_cast<float4*>(dst)[2 * i] = lo;
            reinterpret_cast<float4*>(dst)[2 * i + 1] = hi;
        }
    } else {
        for (u32 i = threadIdx.x; i < width; i += THREADS) dst[i] = bf2f(src[i]);
    }
}

__device__ __forceinline__ void copy_row(const f32* __restrict__ src, f32* __restrict__ dst, u32 width) {
    if (width % 4 == 0) {
        for (u32 i = threadIdx.x; i < width / 4; i += THREADS) reinterpret_cast<float4*>(dst)[i] = reinterpret_cast<const float4*>(src)[i];
    } else {
        for (u32 i = threadIdx.x; i < width; i += THREADS) dst[i] = src[i];
    }
}

extern "C" __global__ void __launch_bounds__(256) scatter_rows(const f32* __restrict__ src, const u32* __restrict__ pairs, u32 width, f32* __restrict__ out) {
    wait_for_earlier_kernels();
    u32 from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
    copy_row(src + (u64)from * width, out + (u64)to * width, width);
}

extern "C" __global__ void __launch_bounds__(256) gather_rows(const f32* __restrict__ src, const u32* __restrict__ index, u32 width, f32* __restrict__ out) {
    wait_for_earlier_kernels();
    copy_row(src + (u64)index[blockIdx.x] * width, out + (u64)blockIdx.x * width, width);
}

// Sum over the block, the same value in every thread: lanes by halves, then warps in order.
__device__ __forceinline__ f32 block_sum(f32 x) {
    __shared__ f32 sums[THREADS / 32];
#pragma unroll
    for (u32 offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    f32 total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < THREADS / 32; i++) total += sums[i];
    return total;
}

__device__ __forceinline__ uint2 norm4(float4 x, float4 w, f32 scale) {
    return {f2bf2(w.x * (x.x * scale), w.y * (x.y * scale)), f2bf2(w.z * (x.z * scale), w.w * (x.w * scale))};
}

extern "C" __global__ void __launch_bounds__(256) rms_norm(const f32* __restrict__ x, const f32* __restrict__ weight, f32 eps, u32 width, u16* __restrict__ out) {
    wait_for_earlier_kernels();
    constexpr u32 KEPT = 4;
    const f32* row = x + (u64)blockIdx.x * width;
    u16* dst = out + (u64)blockIdx.x * width;
    if (width % 4 != 0) {
        f32 squares = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += THREADS) squares = fmaf(row[i], row[i], squares);
        f32 scale = 1.0f / sqrtf(block_sum(squares) / (f32)width + eps);
        for (u32 i = threadIdx.x; i < width; i += THREADS) dst[i] = f2bf(weight[i] * (row[i] * scale));
        return;
    }
    const float4* row4 = reinterpret_cast<const float4*>(row);
    const float4* weight4 = reinterpret_cast<const float4*>(weight);
    uint2* dst4 = reinterpret_cast<uint2*>(dst);
    u32 pieces = width / 4;
    float4 kept[KEPT];
    f32 squares = 0.0f;
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
        u32 i = threadIdx.x + j * THREADS;
        kept[j] = i < pieces ? row4[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
        squares = fmaf(kept[j].x, kept[j].x, squares);
        squares = fmaf(kept[j].y, kept[j].y, squares);
        squares = fmaf(kept[j].z, kept[j].z, squares);
        squares = fmaf(kept[j].w, kept[j].w, squares);
    }
    for (u32 i = threadIdx.x + KEPT * THREADS; i < pieces; i += THREADS) {
        float4 v = row4[i];
        squares = fmaf(v.x, v.x, squares);
        squares = fmaf(v.y, v.y, squares);
        squares = fmaf(v.z, v.z, squares);
        squares = fmaf(v.w, v.w, squares);
    }
    f32 scale = 1.0f / sqrtf(block_sum(squares) / (f32)width + eps);
#pragma unroll
    for (u32 j = 0; j < KEPT; j++) {
        u32 i = threadIdx.x + j * THREADS;
        if (i < pieces) dst4[i] = norm4(kept[j], weight4[i], scale);
    }
    for (u32 i = threadIdx.x + KEPT * THREADS; i < pieces; i += THREADS) dst4[i] = norm4(row4[i], weight4[i], scale);
}

extern "C" __global__ void __launch_bounds__(256) silu_mul(const f32* __restrict__ gate_up, u32 rows, u32 width, u32 out_stride, u16* __restrict__ out) {
    wait_for_earlier_kernels();
    u32 first = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (first >= width) return;
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
        const f32* gate = gate_up + (u64)row * 2 * width;
        const f32* up = gate + width;
        u16* dst = out + (u64)row * out_stride;
        if (width % 4 == 0) {
            float4 g = *reinterpret_cast<const float4*>(gate + first);
            float4 u = *reinterpret_cast<const float4*>(up + first);
            uint2 y = {f2bf2(silu_times(g.x, u.x), silu_times(g.y, u.y)), f2bf2(silu_times(g.z, u.z), silu_times(g.w, u.w))};
            *reinterpret_cast<uint2*>(dst + first) = y;
        } else {
            for (u32 i = first; i < first + 4 && i < width; i++) dst[i] = f2bf(silu_times(gate[i], up[i]));
        }
    }
}

__device__ __forceinline__ f32 gelu_of(f32 x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

extern "C" __global__ void __launch_bounds__(256) gelu(const f32* __restrict__ x, u32 n, u16* __restrict__ out) {
    wait_for_earlier_kernels();
    u32 first = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (first + 4 <= n) {
        float4 v = *reinterpret_cast<const float4*>(x + first);
        uint2 y = {f2bf2(gelu_of(v.x), gelu_of(v.y)), f2bf2(gelu_of(v.z), gelu_of(v.w))};
        *reinterpret_cast<uint2*>(out + first) = y;
    } else {
        for (u32 i = first; i < n; i++) out[i] = f2bf(gelu_of(x[i]));
    }
}

// Takes the uploads of a step to their places: pieces in host memory, read over the bus where they are, one after the other. `end` is the sum
// of the sizes so far; sizes are multiples of 16 bytes.
struct Piece {
    u64 src, dst, end;
};
static_assert(sizeof(Piece) == 24, "Piece");

extern "C" __global__ void __launch_bounds__(256) deliver(const Piece* list, u32 num_pieces, u32 bytes) {
    constexpr u32 MOST = 32;
    __shared__ Piece pieces[MOST];
    wait_for_earlier_kernels();
    for (u32 i = threadIdx.x; i < num_pieces * 3; i += THREADS) reinterpret_cast<u64*>(pieces)[i] = reinterpret_cast<const u64*>(list)[i];
    __syncthreads();
    u32 piece = 0;
    for (u64 at = 16 * (blockIdx.x * THREADS + threadIdx.x); at < bytes; at += 16 * gridDim.x * THREADS) {
        while (pieces[piece].end <= at) piece++;
        u64 offset = at - (piece == 0 ? 0 : pieces[piece - 1].end);
        *reinterpret_cast<uint4*>(pieces[piece].dst + offset) = *reinterpret_cast<const uint4*>(pieces[piece].src + offset);
    }
}

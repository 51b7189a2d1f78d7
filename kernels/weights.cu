// Weights that lie in another process's memory on this device: checked where they are, then written into the server's own buffers.
//
// Decomposition: a stride over the grid, one element a thread and turn; rows of the destination over y. Bytes moved: each source read once
// for the check and once for the copy, each destination written once.
#include "common.cuh"

constexpr u32 TYPE_F32 = 0, TYPE_F16 = 1;

__device__ __forceinline__ u32 raw(const void* src, u32 type, u64 i) {
    return type == TYPE_F32 ? static_cast<const u32*>(src)[i] : (u32) static_cast<const u16*>(src)[i];
}

__device__ __forceinline__ f32 value(u32 raw, u32 type) {
    if (type == TYPE_F32) return __uint_as_float(raw);
    if (type != TYPE_F16) return bf2f((u16)raw);
    f32 x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)raw));
    return x;
}

__device__ __forceinline__ bool finite(f32 x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// Mixes position and bits, so that the sum of all elements depends on their order and not on the order of adding (splitmix64's finisher).
__device__ __forceinline__ u64 mix(u64 i, u32 raw) {
    u64 x = (i + 1) * 0x9E3779B97F4A7C15ull ^ ((u64)raw << 32 | raw);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// out[0] counts elements that are not finite (`rounds`: once rounded to bf16), out[1] sums up mixed elements. Both begin at 0.
extern "C" __global__ void __launch_bounds__(256) check_weight(const void* __restrict__ src, u32 type, u32 n, u32 rounds, u64* __restrict__ out) {
    wait_for_earlier_kernels();
    u64 sum = 0;
    u32 bad = 0;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += (u64)gridDim.x * 256) {
        u32 bits = raw(src, type, i);
        f32 x = value(bits, type);
        bad += !finite(rounds ? bf2f(f2bf(x)) : x);
        sum += mix(i, bits);
    }
    if (bad) atomicAdd(&out[0], (u64)bad);
    atomicAdd(&out[1], sum);
}

// src [rows, width] to rows of `stride` bf16 elements, of which those past `width` become 0.
extern "C" __global__ void __launch_bounds__(256) store_weight(const void* __restrict__ src, u32 type, u32 rows, u32 width, u32 stride, u16* __restrict__ dst) {
    wait_for_earlier_kernels();
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
        for (u32 i = blockIdx.x * 256 + threadIdx.x; i < stride; i += gridDim.x * 256) {
            u32 bits = i < width ? raw(src, type, (u64)row * width + i) : 0;
            dst[(u64)row * stride + i] = i >= width ? 0 : type > TYPE_F16 ? (u16)bits : f2bf(value(bits, type));
        }
    }
}

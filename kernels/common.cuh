// What every kernel shares: types, bf16 without CUDA's headers (they are not always there at run time), asynchronous copies, tensor core
// instructions of sm_80 and later, and the structures of src/backends/mod.rs.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef float f32;
typedef double f64;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "widths");

constexpr u32 NONE = 0xFFFFFFFFu;
constexpr u32 BLOCK_SIZE = 32;
constexpr u32 ATTENTION_CHUNK = 256;
constexpr u32 ATTENTION_TILE = 64;
constexpr u32 MAX_TOP_LOGPROBS = 20;
constexpr u32 FULL = 0xFFFFFFFFu;
constexpr f32 LOG2_E = 1.4426950408889634f;
constexpr f64 LN_2 = 0.69314718055994531;

// ---- structures of src/backends/mod.rs

struct SampleRow {
    u32 logits_row;
    u32 slot;
    u32 random[4];
    f32 temperature;
    u32 top_k;
    f32 top_p;
    f32 min_p;
    f32 repetition_penalty;
    f32 presence_penalty;
    f32 frequency_penalty;
    u32 counts_row;
    u32 banned_start;
    u32 banned_len;
    u32 bias_start;
    u32 bias_len;
    u32 top_logprobs;
    u32 forced;
};
static_assert(sizeof(SampleRow) == 80, "SampleRow");

struct Sampled {
    u32 token;
    f32 logp;
    f32 logp_raw;
    f32 logp_sampled;
    f32 entropy;
    u32 corrupt;
    u32 num_top;
    u32 top_ids[MAX_TOP_LOGPROBS];
    f32 top_logps[MAX_TOP_LOGPROBS];
};
static_assert(sizeof(Sampled) == 188, "Sampled");

// ---- numbers

__device__ __forceinline__ f32 neg_inf() { return __uint_as_float(0xFF800000u); }

__device__ __forceinline__ f32 bf2f(u16 x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ u16 f2bf(f32 x) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}

// Two bf16 in a word, `lo` in the low half.
__device__ __forceinline__ u32 f2bf2(f32 lo, f32 hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// 2^x, 0 for -inf.
__device__ __forceinline__ f32 exp2_fast(f32 x) {
    f32 r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// silu(gate) · up. Approximate to a few parts in a million, far below the bf16 that it is rounded to.
__device__ __forceinline__ f32 silu_times(f32 gate, f32 up) {
    f32 inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + exp2_fast(-LOG2_E * gate)));
    return gate * inverse * up;
}

__device__ __forceinline__ u32 cdiv(u32 a, u32 b) { return (a + b - 1) / b; }
__device__ __forceinline__ u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
__device__ __forceinline__ u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
// a - b, 0 when that is below 0.
__device__ __forceinline__ u32 minus(u32 a, u32 b) { return a > b ? a - b : 0; }

// ---- what other blocks of the same launch wrote: past the multiprocessor's own cache

__device__ __forceinline__ f32 load_shared_by_all(const f32* p) {
    f32 x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
    return x;
}
__device__ __forceinline__ float2 load_shared_by_all(const float2* p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}

// ---- programmatic dependent launch: a kernel may be put on the device while the one before it ends

// What the kernel before this one wrote is there when it returns. Every block calls it before it ends, so that the end of a kernel is the
// end of all before it.
__device__ __forceinline__ void wait_for_earlier_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may be put on once all blocks have said so. Said after the wait only: then everything before this kernel is there when the
// next one begins.
__device__ __forceinline__ void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// How most kernels begin.
__device__ __forceinline__ void wait_for_earlier_kernels() {
    wait_for_earlier_kernel();
    let_next_kernel_begin();
}

// ---- asynchronous copies to shared memory

__device__ __forceinline__ u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes, or writes 16 zero bytes when `bytes` is 0 (`src` must be a valid address all the same).
__device__ __forceinline__ void cp_async16(u32 dst, const void* src, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than N of the latest groups are under way.
template <u32 N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- tensor cores: m16n8k16, bf16 in, f32 out

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// c += a · b. Lane l, g = l / 4, t = l % 4: a = rows g, g + 8 and columns 2t, 2t + 8; c = (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma(f32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A tile of bf16 rows of DP elements in shared memory whose eight consecutive rows never meet in a bank when one 16-byte piece of each is
// read: pieces are permuted where a row fills the banks, else a row is followed by 16 bytes of padding (an odd number of pieces a row).
template <u32 DP>
struct Tile {
    static_assert(DP % 16 == 0, "a row is whole k steps");
    static constexpr bool SWIZZLED = DP % 64 == 0;
    static constexpr u32 ROW = SWIZZLED ? 2 * DP : 2 * DP + 16;
    // Byte offset of 16-byte piece `piece` of row `row`.
    static __device__ __forceinline__ u32 at(u32 row, u32 piece) { return row * ROW + ((SWIZZLED ? piece ^ (row & 7) : piece) << 4); }
};

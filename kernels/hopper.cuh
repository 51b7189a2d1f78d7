// What sm_90a adds: barriers that count bytes, copies of tiles by the tensor memory accelerator, copies to memory in bulk, products of 64 rows by
// a warpgroup.
#pragma once
#include "common.cuh"

// As the driver encodes one; lives in a kernel's parameters.
struct __align__(64) TensorMap {
    u8 bytes[128];
};

// ---- barriers in shared memory: a phase ends when as many have arrived as `init` says and all bytes that were promised have come

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes barriers known to the accelerator.
__device__ __forceinline__ void barriers_are_there() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and promises bytes.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// ---- copies of a box of a matrix; the barrier counts its bytes, those outside of the matrix come as zeros

__device__ __forceinline__ void copy_box(u32 dst, const TensorMap& map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(&map),
                 "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// ---- shared memory as the accelerator and the products of warpgroups see it

// What this thread wrote there, itself or by copies that it waited for, is there for them once threads have met.
__device__ __forceinline__ void written_for_accelerator() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void store_shared(u32 address, u32 value) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory"); }
__device__ __forceinline__ uint4 load_shared4(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

// A copy to memory, of a multiple of 16 bytes between multiples of 16.
__device__ __forceinline__ void store_bytes(void* dst, u32 src, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes) : "memory");
}
// The same of a box of a matrix, its rows without gaps from a multiple of 128 bytes on; what lies outside of the matrix stays here.
__device__ __forceinline__ void store_box(const TensorMap& map, u32 column, u32 row, u32 src) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column), "r"(row), "r"(src) : "memory");
}
// Until what this thread's copies read may be written again.
__device__ __forceinline__ void stores_are_read() {
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Until this thread's copies are in memory.
__device__ __forceinline__ void stores_wait() {
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}

// N threads of the block meet at one of its barriers; 0 is that of all.
template <u32 N>
__device__ __forceinline__ void threads_meet(u32 barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(N) : "memory");
}

// ---- registers of a warpgroup's threads

template <u32 N>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <u32 N>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- products of a warpgroup

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until no more than N groups are under way.
template <u32 N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Sums whose products were waited for: keeps what reads them behind the wait, which the compiler does not see that it depends on.
__device__ __forceinline__ void products_are_in(f32& sum) { asm volatile("" : "+f"(sum)::"memory"); }
template <class Sums, u32 N>
__device__ __forceinline__ void products_are_in(Sums (&sums)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) products_are_in(sums[i]);
}

// Rows of 64 bf16 one after the other, their pieces of 16 bytes permuted among eight rows as the accelerator does (128-byte swizzle), from a
// multiple of 1,024 bytes on. `+ 2`: sixteen columns on.
__device__ __forceinline__ u64 tile_descriptor(u32 address) { return (u64)((address & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

#define PLACES(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define SUMS_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_40(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24), SUMS_8(i + 32)

// c += a · bᵀ for 64 rows of a, twice as many of b as c has sums, and 16 columns. Lane l of warp w of the warpgroup has rows 16w + l / 4 and + 8,
// columns 8j + 2 (l % 4) and + 1: c[4j ..] are (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
__device__ __forceinline__ void add_products(f32 (&c)[32], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2)
                 "%30, %31}, %32, %33, 1, 1, 1, 0, 0;"
                 : SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void add_products(f32 (&c)[64], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2) PLACES(3) PLACES(4) PLACES(5)
                 "%60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"
                 : SUMS_40(0), SUMS_8(40), SUMS_8(48), SUMS_8(56)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void add_products(f32 (&c)[80], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2) PLACES(3) PLACES(4) PLACES(5) PLACES(6)
                 "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79}, %80, %81, 1, 1, 1, 0, 0;"
                 : SUMS_40(0), SUMS_40(40)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void add_products(f32 (&c)[88], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2) PLACES(3) PLACES(4) PLACES(5) PLACES(6) PLACES(7)
                 "%80, %81, %82, %83, %84, %85, %86, %87}, %88, %89, 1, 1, 1, 0, 0;"
                 : SUMS_40(0), SUMS_40(40), SUMS_8(80)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void add_products(f32 (&c)[96], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2) PLACES(3) PLACES(4) PLACES(5) PLACES(6) PLACES(7) PLACES(8)
                 "%90, %91, %92, %93, %94, %95}, %96, %97, 1, 1, 1, 0, 0;"
                 : SUMS_40(0), SUMS_40(40), SUMS_8(80), SUMS_8(88)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void add_products(f32 (&c)[128], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2) PLACES(3) PLACES(4) PLACES(5) PLACES(6) PLACES(7) PLACES(8) PLACES(9) PLACES(10) PLACES(11)
                 "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, 1, 1, 1, 0, 0;"
                 : SUMS_40(0), SUMS_40(40), SUMS_40(80), SUMS_8(120)
                 : "l"(a), "l"(b));
}

#define ROW_4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define ROWS_16(i) ROW_4(i), ROW_4(i + 1), ROW_4(i + 2), ROW_4(i + 3)

// c += a · bᵀ (or a · b where b's rows are BY_COLUMNS: sixteen of 64 columns) for 64 rows of a, which come as operands of mma, sixteen a warp;
// 64 columns of c, as above, four sums a row of it.
template <bool BY_COLUMNS>
__device__ __forceinline__ void add_products(f32 (*c)[4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2)
                 "%30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                 : ROWS_16(0), ROWS_16(4)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(BY_COLUMNS));
}
// The same with a in shared memory, as `tile_descriptor` says.
template <bool BY_COLUMNS>
__device__ __forceinline__ void add_products(f32 (*c)[4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES(1) PLACES(2)
                 "%30, %31}, %32, %33, 1, 1, 1, 0, %34;"
                 : ROWS_16(0), ROWS_16(4)
                 : "l"(a), "l"(b), "n"(BY_COLUMNS));
}

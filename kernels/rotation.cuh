// A pair of a head turned by its angle: products rounded one by one, as on the CPU.
#pragma once
#include "common.cuh"

__device__ __forceinline__ f32 turn_low(f32 a, f32 b, f32 cos, f32 sin) { return __fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin)); }
__device__ __forceinline__ f32 turn_high(f32 a, f32 b, f32 cos, f32 sin) { return __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin)); }

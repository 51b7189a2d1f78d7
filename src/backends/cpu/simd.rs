//! Vector instructions, chosen at run time.
//!
//! A kernel is written once over [`Simd`], vectors of 16 f32 lanes: one AVX-512 register, two of AVX2, or an array. All three
//! give the same bits, because every operation here is exact or correctly rounded, and `fma` rounds once.

#![allow(unsafe_code)]

pub const LANES: usize = 16;

/// Sixteen f32 lanes and what can be done with them. A value of the type proves that the processor has the instructions.
pub trait Simd: Copy {
    type F: Copy;
    type U: Copy;
    /// Whether a kernel may hold 16 accumulators beside its operands.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`, so a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`
    fn min(self, a: Self::F, b: Self::F) -> Self::F;

    fn splat_bits(self, x: u32) -> Self::U;
    fn load_bits(self, x: &[u32; LANES]) -> Self::U;
    fn bits(self, x: Self::F) -> Self::U;
    fn float(self, x: Self::U) -> Self::F;
    /// Wrapping.
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U;
    /// Wrapping.
    fn sub_bits(self, a: Self::U, b: Self::U) -> Self::U;
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    fn shift_left<const N: u32>(self, a: Self::U) -> Self::U;
    /// Arithmetic.
    fn shift_right<const N: u32>(self, a: Self::U) -> Self::U;

    /// Sum over lanes, as a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane, by the same tree.
    fn largest(self, a: Self::F) -> f32;
    /// Asks for the cache line `ahead` elements behind this one, which need not exist.
    fn prefetch<T>(self, x: &T, ahead: usize);
}

/// A piece of work written over [`Simd`]; `run` and all it calls must be `#[inline(always)]` to be compiled for the instructions.
pub trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Instructions that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    pub fn best() -> Self {
        Isa::all()[0]
    }

    /// All that this processor has, best first.
    pub fn all() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512cd");
            if fma && wide {
                all.push(Isa(Level::Avx512));
            }
            if fma {
                all.push(Isa(Level::Avx2));
            }
        }
        all.push(Isa(Level::Portable));
        all
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            Level::Portable => "portable",
        }
    }

    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: `Isa` values come from `all`, which has asked the processor.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::run_avx2(kernel) },
            Level::Portable => kernel.run(Portable),
        }
    }
}

/// Arrays and the compiler's own idea of how to add them.
#[derive(Clone, Copy)]
pub struct Portable;

macro_rules! lanes {
    ($i:ident => $e:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $e;
        }
        out
    }};
}

#[inline(always)]
fn fold(mut x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            x[i] = f(x[i], x[i + width]);
        }
    }
    x[0]
}

impl Simd for Portable {
    type F = [f32; LANES];
    type U = [u32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(i => a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        fold(a, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn prefetch<T>(self, _x: &T, _ahead: usize) {}
    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::U {
        [x; LANES]
    }
    #[inline(always)]
    fn load_bits(self, x: &[u32; LANES]) -> Self::U {
        *x
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::U {
        lanes!(i => x[i].to_bits())
    }
    #[inline(always)]
    fn float(self, x: Self::U) -> Self::F {
        lanes!(i => f32::from_bits(x[i]))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U {
        lanes!(i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub_bits(self, a: Self::U, b: Self::U) -> Self::U {
        lanes!(i => a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        lanes!(i => a[i] & b[i])
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: Self::U) -> Self::U {
        lanes!(i => a[i] << N)
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: Self::U) -> Self::U {
        lanes!(i => ((a[i] as i32) >> N) as u32)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, LANES, Simd};

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    #[derive(Clone, Copy)]
    pub struct Avx512(());

    #[derive(Clone, Copy)]
    pub struct Avx2(());

    /// Two halves of sixteen lanes.
    #[derive(Clone, Copy)]
    pub struct Pair<T>(T, T);

    /// Methods that are one instruction each.
    // SAFETY: the token was made inside `run_*`, so the processor has the instructions; loads and stores go through references to
    // sixteen lanes and need no alignment.
    macro_rules! instructions {
        ($($name:ident($($a:ident: $t:ty),*) -> $r:ty = $e:expr;)*) => {
            $(#[inline(always)]
            fn $name(self, $($a: $t),*) -> $r {
                unsafe { $e }
            })*
        };
    }

    impl Simd for Avx512 {
        type F = __m512;
        type U = __m512i;
        const WIDE: bool = true;

        instructions! {
            splat(x: f32) -> __m512 = _mm512_set1_ps(x);
            load(x: &[f32; LANES]) -> __m512 = _mm512_loadu_ps(x.as_ptr());
            store(x: __m512, out: &mut [f32; LANES]) -> () = _mm512_storeu_ps(out.as_mut_ptr(), x);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
                        splat_bits(x: u32) -> __m512i = _mm512_set1_epi32(x as i32);
            load_bits(x: &[u32; LANES]) -> __m512i = _mm512_loadu_si512(x.as_ptr().cast());
            bits(x: __m512) -> __m512i = _mm512_castps_si512(x);
            float(x: __m512i) -> __m512 = _mm512_castsi512_ps(x);
            add_bits(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
            sub_bits(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
            and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        }

        #[inline(always)]
        fn sum(self, a: __m512) -> f32 {
            Avx2(()).sum(split(a))
        }
        #[inline(always)]
        fn largest(self, a: __m512) -> f32 {
            Avx2(()).largest(split(a))
        }
        #[inline(always)]
        fn prefetch<T>(self, x: &T, ahead: usize) {
            prefetch(x, ahead);
        }
        #[inline(always)]
        fn shift_left<const N: u32>(self, a: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_slli_epi32::<N>(a) }
        }
        #[inline(always)]
        fn shift_right<const N: u32>(self, a: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_srai_epi32::<N>(a) }
        }
    }

    #[inline(always)]
    fn split(a: __m512) -> F2 {
        // SAFETY: only `Avx512` has such a vector.
        unsafe { Pair(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)) }
    }

    #[inline(always)]
    fn prefetch<T>(x: &T, ahead: usize) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).wrapping_add(ahead).cast()) }
    }

    type F2 = Pair<__m256>;
    type U2 = Pair<__m256i>;

    impl Simd for Avx2 {
        type F = F2;
        type U = U2;
        const WIDE: bool = false;

        instructions! {
            splat(x: f32) -> F2 = Pair(_mm256_set1_ps(x), _mm256_set1_ps(x));
            load(x: &[f32; LANES]) -> F2 = Pair(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr()));
            store(x: F2, out: &mut [f32; LANES]) -> () = {
                _mm256_storeu_ps(out.as_mut_ptr(), x.0);
                _mm256_storeu_ps(out[8..].as_mut_ptr(), x.1)
            };
            add(a: F2, b: F2) -> F2 = Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1));
            sub(a: F2, b: F2) -> F2 = Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1));
            mul(a: F2, b: F2) -> F2 = Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1));
            div(a: F2, b: F2) -> F2 = Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1));
            fma(a: F2, b: F2, c: F2) -> F2 = Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1));
            max(a: F2, b: F2) -> F2 = Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1));
            min(a: F2, b: F2) -> F2 = Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1));
            sum(a: F2) -> f32 = {
                let x = _mm256_add_ps(a.0, a.1);
                let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
            };
            largest(a: F2) -> f32 = {
                let x = _mm256_max_ps(a.0, a.1);
                let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
            };
            splat_bits(x: u32) -> U2 = Pair(_mm256_set1_epi32(x as i32), _mm256_set1_epi32(x as i32));
            load_bits(x: &[u32; LANES]) -> U2 =
                Pair(_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[8..].as_ptr().cast()));
            bits(x: F2) -> U2 = Pair(_mm256_castps_si256(x.0), _mm256_castps_si256(x.1));
            float(x: U2) -> F2 = Pair(_mm256_castsi256_ps(x.0), _mm256_castsi256_ps(x.1));
            add_bits(a: U2, b: U2) -> U2 = Pair(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1));
            sub_bits(a: U2, b: U2) -> U2 = Pair(_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1));
            and(a: U2, b: U2) -> U2 = Pair(_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1));
        }

        #[inline(always)]
        fn prefetch<T>(self, x: &T, ahead: usize) {
            prefetch(x, ahead);
        }
        #[inline(always)]
        fn shift_left<const N: u32>(self, a: U2) -> U2 {
            // SAFETY: as above.
            unsafe { Pair(_mm256_sll_epi32(a.0, _mm_cvtsi32_si128(N as i32)), _mm256_sll_epi32(a.1, _mm_cvtsi32_si128(N as i32))) }
        }
        #[inline(always)]
        fn shift_right<const N: u32>(self, a: U2) -> U2 {
            // SAFETY: as above.
            unsafe { Pair(_mm256_sra_epi32(a.0, _mm_cvtsi32_si128(N as i32)), _mm256_sra_epi32(a.1, _mm_cvtsi32_si128(N as i32))) }
        }
    }
}

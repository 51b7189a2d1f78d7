//! Functions on f32 that the kernels share, with the same bits on every instruction set.

use half::bf16;

use super::simd::{Kernel, LANES, Simd};
use crate::backends::Element;

/// What enters GEMMs: f32 as it is, or rounded to bf16.
pub trait Float: Element {
    const NAME: &'static str;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    /// As `bf16::from_f32`, without its branch, so that loops over it become vector code.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded } as u16)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Added to a number below 2²² it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few enough bits that its products are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// (e^r - 1 - r) / r² on |r| ≤ ln 2 / 2 (Cephes, expf).
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// e^x within 2 ulp: 0 for −∞ and below −104, ∞ above 88.73, NaN for NaN.
///
/// `x = n ln 2 + r`, e^r by a polynomial, 2ⁿ in two factors, which reaches the subnormals and 2¹²⁸.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let shifted = s.fma(x, s.splat(LOG2_E), s.splat(ROUND));
    let n = s.sub_bits(s.bits(shifted), s.splat_bits(ROUND.to_bits()));
    let whole = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(whole, s.splat(-LN2_HIGH), x);
    let r = s.fma(whole, s.splat(-LN2_LOW), r);
    let mut p = s.splat(EXP[0]);
    for i in 1..EXP.len() {
        p = s.fma(p, r, s.splat(EXP[i]));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    let half = s.shift_right::<1>(n);
    let bias = s.splat_bits(127);
    let first = s.float(s.shift_left::<23>(s.add_bits(half, bias)));
    let second = s.float(s.shift_left::<23>(s.add_bits(s.sub_bits(n, half), bias)));
    s.mul(s.mul(p, first), second)
}

/// [`exp`] of one number, with the same bits.
#[inline(always)]
pub fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    let mut out = [0.0; LANES];
    s.store(exp(s, s.splat(x)), &mut out);
    out[0]
}

/// [`exp_one`] as a kernel.
pub struct ExpOne(pub f32);

impl Kernel for ExpOne {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        exp_one(s, self.0)
    }
}

/// Natural logarithm, the same on every machine.
pub fn ln(x: f32) -> f32 {
    libm::logf(x)
}

/// Exact GELU: `x · Φ(x)`.
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::cpu::simd::{Isa, Kernel};

    struct Exp<'a>(&'a [[f32; LANES]], &'a mut [[f32; LANES]]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, out) in self.0.iter().zip(self.1) {
                s.store(exp(s, s.load(x)), out);
                assert_eq!(exp_one(s, x[3]).to_bits(), out[3].to_bits());
            }
        }
    }

    #[test]
    fn exp_is_accurate_and_the_same_everywhere() {
        let mut x: Vec<f32> = (0..160_000).map(|i| -104.5 + i as f32 * 0.00121).collect();
        x.extend([
            0.0,
            -0.0,
            1e-30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            88.72,
            88.73,
            1e30,
            -1e30,
            -87.4,
            -103.9,
            -104.1,
            1.0,
            -1.0,
            0.5,
        ]);
        let x = x.as_chunks::<LANES>().0;
        let mut first: Option<Vec<[f32; LANES]>> = None;
        for isa in Isa::all() {
            let mut out = vec![[0.0; LANES]; x.len()];
            isa.run(Exp(x, &mut out));
            for (x, got) in x.iter().flatten().zip(out.iter().flatten()) {
                let want = f64::from(*x).exp();
                if x.is_nan() {
                    assert!(got.is_nan());
                } else if *x < -104.0 {
                    assert_eq!(*got, 0.0, "exp({x})");
                } else if want > f64::from(f32::MAX) {
                    assert_eq!(*got, f32::INFINITY, "exp({x})");
                } else {
                    let ulp = want.max(f64::from(f32::MIN_POSITIVE)) * 2f64.powi(-23);
                    assert!((f64::from(*got) - want).abs() <= 1.6 * ulp, "exp({x}) = {got}, not {want}");
                }
            }
            let bits = |v: &[[f32; LANES]]| v.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            match &first {
                None => first = Some(out),
                Some(first) => assert!(bits(first) == bits(&out), "{}", isa.name()),
            }
        }
    }

    #[test]
    fn bf16_rounds_like_the_library() {
        let mut bits: Vec<u32> = (0..100_000u32).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
        bits.extend([0, 0x8000_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 0x3F80_8000, 0x3F81_8000, 0x7F7F_FFFF]);
        for bits in bits {
            let x = f32::from_bits(bits);
            assert_eq!(<bf16 as Float>::from_f32(x).to_bits(), bf16::from_f32(x).to_bits(), "{bits:x}");
        }
    }

    #[test]
    fn gelu_is_exact() {
        for (x, want) in [(0.0, 0.0), (1.0, 0.841_344_8), (-1.0, -0.158_655_25), (3.0, 2.995_950_3), (-6.0, -5.919_e-9)] {
            assert!((gelu(x) - want).abs() < 2e-7, "{x}: {}", gelu(x));
        }
    }
}

//! Double-double arithmetic: an unevaluated sum of two doubles, about 31 digits.
//!
//! Knuth's and Dekker's error-free transformations; functions as in Hida, Li and Bailey,
//! "Library for double-double and quad-double arithmetic" (2007).

use std::ops::{Add, Div, Mul, Neg, Sub};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dd {
    pub hi: f64,
    pub lo: f64,
}

/// The relative error of one operation, rounded up.
pub(crate) const EPS: f64 = 1e-31;

pub(crate) const PI: Dd = Dd { hi: std::f64::consts::PI, lo: 1.2246467991473532e-16 };
pub(crate) const FRAC_PI_2: Dd = Dd { hi: std::f64::consts::FRAC_PI_2, lo: 6.123233995736766e-17 };
pub(crate) const E: Dd = Dd { hi: std::f64::consts::E, lo: 1.4456468917292502e-16 };
const LN_2: Dd = Dd { hi: std::f64::consts::LN_2, lo: 2.3190468138462996e-17 };

fn two_sum(a: f64, b: f64) -> Dd {
    let s = a + b;
    let bb = s - a;
    Dd { hi: s, lo: (a - (s - bb)) + (b - bb) }
}

fn quick_two_sum(a: f64, b: f64) -> Dd {
    let s = a + b;
    Dd { hi: s, lo: b - (s - a) }
}

fn two_prod(a: f64, b: f64) -> Dd {
    let p = a * b;
    // Dekker's splitting: `mul_add` is a slow library call where the target has no fused instruction.
    let split = |x: f64| {
        let t = 134_217_729.0 * x;
        let hi = t - (t - x);
        (hi, x - hi)
    };
    if p.abs() > 1e290 {
        return Dd { hi: p, lo: 0.0 };
    }
    let ((ah, al), (bh, bl)) = (split(a), split(b));
    Dd { hi: p, lo: ((ah * bh - p) + ah * bl + al * bh) + al * bl }
}

impl Dd {
    pub const ZERO: Dd = Dd { hi: 0.0, lo: 0.0 };
    pub const ONE: Dd = Dd { hi: 1.0, lo: 0.0 };

    pub fn new(hi: f64, lo: f64) -> Self {
        quick_two_sum(hi, lo)
    }

    pub fn is_finite(self) -> bool {
        self.hi.is_finite() && self.lo.is_finite()
    }

    pub fn is_zero(self) -> bool {
        self.hi == 0.0
    }

    pub fn abs(self) -> Self {
        if self.hi < 0.0 { -self } else { self }
    }

    pub fn floor(self) -> Self {
        let hi = self.hi.floor();
        if hi == self.hi { quick_two_sum(hi, self.lo.floor()) } else { Dd { hi, lo: 0.0 } }
    }

    pub fn scale(self, by: f64) -> Self {
        Dd { hi: self.hi * by, lo: self.lo * by }
    }

    pub fn sqrt(self) -> Self {
        if self.hi <= 0.0 {
            return if self.hi == 0.0 { Dd::ZERO } else { Dd::from(f64::NAN) };
        }
        let x = 1.0 / self.hi.sqrt();
        let ax = Dd::from(self.hi * x);
        ax + Dd::from((self - ax * ax).hi * (x * 0.5))
    }

    pub fn exp(self) -> Self {
        if self.hi > 709.0 {
            return Dd::from(f64::INFINITY);
        }
        if self.hi < -709.0 {
            return Dd::ZERO;
        }
        let k = (self.hi / LN_2.hi).round();
        let r = (self - LN_2 * Dd::from(k)).scale(1.0 / 512.0);
        // expm1 of the reduced argument by Taylor, then nine doublings of expm1.
        let mut term = r;
        let mut sum = r;
        for n in 2..=9 {
            term = term * r / Dd::from(f64::from(n));
            sum = sum + term;
        }
        for _ in 0..9 {
            sum = sum.scale(2.0) + sum * sum;
        }
        (sum + Dd::ONE).scale(2f64.powi(k as i32))
    }

    /// The natural logarithm of a positive number.
    pub fn ln(self) -> Self {
        if self.hi <= 0.0 {
            return Dd::from(f64::NAN);
        }
        if self.hi == 1.0 && self.lo == 0.0 {
            return Dd::ZERO;
        }
        // The exponent apart, so that neither end of the range overflows in Newton's step.
        let k = self.hi.log2().round().clamp(-1000.0, 1000.0);
        let m = self.scale(2f64.powi(-k as i32));
        let y = Dd::from(m.hi.ln());
        let y = y + m * (-y).exp() - Dd::ONE;
        y + LN_2 * Dd::from(k)
    }

    /// Sine and cosine; the argument should be below 1e15 in size.
    pub fn sin_cos(self) -> (Self, Self) {
        let k = (self.hi / FRAC_PI_2.hi).round();
        let r = self - FRAC_PI_2 * Dd::from(k);
        let r2 = r * r;
        let (mut s, mut c) = (r, Dd::ONE);
        let (mut ts, mut tc) = (r, Dd::ONE);
        let mut n = 1.0;
        for _ in 0..14 {
            tc = -(tc * r2) / Dd::from(n * (n + 1.0));
            ts = -(ts * r2) / Dd::from((n + 1.0) * (n + 2.0));
            c = c + tc;
            s = s + ts;
            n += 2.0;
        }
        match (k.rem_euclid(4.0)) as u8 {
            0 => (s, c),
            1 => (c, -s),
            2 => (-s, -c),
            _ => (-c, s),
        }
    }

    /// The angle of the point (x, y), as `f64::atan2`.
    pub fn atan2(y: Dd, x: Dd) -> Self {
        let r2 = x * x + y * y;
        if r2.is_zero() {
            return Dd::ZERO;
        }
        if y.is_zero() {
            return if x.hi < 0.0 { PI } else { Dd::ZERO };
        }
        let r = r2.sqrt();
        let (x, y) = (x / r, y / r);
        let t = Dd::from(y.hi.atan2(x.hi));
        let (s, c) = t.sin_cos();
        // sin(θ − t) = y cos t − x sin t, and the difference is about 1e-16.
        t + (y * c - x * s)
    }
}

impl From<f64> for Dd {
    fn from(x: f64) -> Self {
        Dd { hi: x, lo: 0.0 }
    }
}

impl From<(f64, f64)> for Dd {
    fn from((hi, lo): (f64, f64)) -> Self {
        Dd::new(hi, lo)
    }
}

impl Neg for Dd {
    type Output = Dd;
    fn neg(self) -> Dd {
        Dd { hi: -self.hi, lo: -self.lo }
    }
}

impl Add for Dd {
    type Output = Dd;
    fn add(self, other: Dd) -> Dd {
        let s = two_sum(self.hi, other.hi);
        let t = two_sum(self.lo, other.lo);
        let s = quick_two_sum(s.hi, s.lo + t.hi);
        quick_two_sum(s.hi, s.lo + t.lo)
    }
}

impl Sub for Dd {
    type Output = Dd;
    fn sub(self, other: Dd) -> Dd {
        self + -other
    }
}

impl Mul for Dd {
    type Output = Dd;
    fn mul(self, other: Dd) -> Dd {
        let p = two_prod(self.hi, other.hi);
        quick_two_sum(p.hi, p.lo + (self.hi * other.lo + self.lo * other.hi))
    }
}

impl Div for Dd {
    type Output = Dd;
    fn div(self, other: Dd) -> Dd {
        let q1 = self.hi / other.hi;
        let r = self - other * Dd::from(q1);
        let q2 = r.hi / other.hi;
        let r = r - other * Dd::from(q2);
        let q3 = r.hi / other.hi;
        quick_two_sum(q1, q2) + Dd::from(q3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: Dd, b: Dd) {
        let difference = (a - b).hi.abs();
        assert!(difference <= 1e-29 * b.hi.abs().max(1.0), "{a:?} is not {b:?}: {difference}");
    }

    #[test]
    fn functions_are_inverse_to_thirty_digits() {
        for x in [0.1, 0.5, 1.0, 2.0, 3.7, 10.0, 123.456, 1e-5] {
            let x = Dd::from(x);
            close(x.sqrt() * x.sqrt(), x);
            close(x.ln().exp(), x);
            let (s, c) = x.sin_cos();
            close(s * s + c * c, Dd::ONE);
        }
        close(Dd::ONE.exp(), E);
        close(Dd::atan2(Dd::ONE, Dd::ONE).scale(4.0), PI);
        close(Dd::atan2(Dd::ONE, -Dd::ONE).scale(4.0), PI.scale(3.0));
        let (s, c) = (PI / Dd::from(3.0)).sin_cos();
        close(s * s, Dd::from(0.75));
        close(c, Dd::from(0.5));
    }
}

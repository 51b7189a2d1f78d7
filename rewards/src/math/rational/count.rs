//! Factorials, binomials, residues and doubles of rational numbers.

use num_bigint::{BigInt, Sign};
use num_integer::Integer;
use num_traits::{One, ToPrimitive, Zero};

use super::Rational::{self, Big, Small};
use crate::math::budget::{Budget, Stop};

impl Rational {
    /// n! for 0 ≤ n ≤ 2000.
    pub fn factorial(n: i64, budget: &mut Budget) -> Result<Self, Stop> {
        if !(0..=2000).contains(&n) {
            return Err(if n < 0 { Stop::Undefined } else { Stop::Limit });
        }
        budget.spend(n as u32)?;
        let mut product = BigInt::one();
        let mut chunk = 1u64;
        for k in 2..=n as u64 {
            match chunk.checked_mul(k) {
                Some(c) => chunk = c,
                None => {
                    product *= chunk;
                    chunk = k;
                }
            }
        }
        Ok(Self::from_big(product * chunk, BigInt::one()))
    }

    /// n(n−1)…(n−k+1)/k! for a whole 0 ≤ k ≤ 2000.
    pub fn binomial(&self, k: i64, budget: &mut Budget) -> Result<Self, Stop> {
        if k < 0 {
            return Ok(Self::ZERO);
        }
        let mut k = k;
        if let Some(n) = self.as_i64()
            && n >= 0
        {
            if k > n {
                return Ok(Self::ZERO);
            }
            k = k.min(n - k);
        }
        if k > 2000 {
            return Err(Stop::Limit);
        }
        // Numerator and denominator apart: one reduction at the end and not one a factor.
        let mut product = Self::ONE;
        for j in 0..k {
            product = product.mul(&self.sub(&Self::int(j), budget)?, budget)?;
        }
        product.div(&Self::factorial(k, budget)?, budget)
    }

    /// The residue modulo a prime below 2^63.
    pub fn residue(&self, p: u64) -> (u64, u64) {
        match self {
            Small(n, d) => (n.rem_euclid(p as i64) as u64, *d as u64 % p),
            Big(b) => {
                let p = BigInt::from(p);
                let part = |x: &BigInt| x.mod_floor(&p).to_u64().unwrap_or(0);
                (part(&b.0), part(&b.1))
            }
        }
    }

    /// The two leading doubles of the value: `hi + lo` is right to about 106 bits.
    pub fn to_double_double(&self) -> (f64, f64) {
        match self {
            Small(n, 1) => split_int(*n),
            Small(..) | Big(_) => {
                let (n, d) = self.parts();
                big_ratio(&n, &d)
            }
        }
    }
}

fn split_int(n: i64) -> (f64, f64) {
    let hi = n as f64;
    (hi, (i128::from(n) - hi as i128) as f64)
}

/// n/d as a double-double: 120 bits of the quotient, then a power of two.
fn big_ratio(n: &BigInt, d: &BigInt) -> (f64, f64) {
    if n.is_zero() {
        return (0.0, 0.0);
    }
    let shift = 120 + d.bits() as i64 - n.bits() as i64;
    let quotient = if shift >= 0 { (n << shift as u64) / d } else { n / (d << (-shift) as u64) };
    let (sign, digits) = (quotient.sign(), quotient.magnitude());
    let hi_bits = digits.bits().saturating_sub(53);
    let hi_int = digits >> hi_bits;
    let lo_int = digits - (&hi_int << hi_bits);
    let scale = |x: f64, e: i64| {
        // Two steps, so that a result in range is not lost to an intermediate overflow.
        let half = e / 2;
        x * 2f64.powi(half.clamp(-2000, 2000) as i32) * 2f64.powi((e - half).clamp(-2000, 2000) as i32)
    };
    let hi = scale(hi_int.to_f64().unwrap_or(0.0), hi_bits as i64 - shift);
    let lo = scale(lo_int.to_f64().unwrap_or(0.0), -shift);
    if sign == Sign::Minus { (-hi, -lo) } else { (hi, lo) }
}

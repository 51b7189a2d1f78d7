//! Exact rational numbers: machine words while they fit, big integers beyond, bounded in size.

mod count;

use std::cmp::Ordering;

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

use crate::math::budget::{Budget, Stop};

/// The largest numerator or denominator, in bits.
const MAX_BITS: u64 = 65_536;

/// A rational number in lowest terms with a positive denominator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rational {
    Small(i64, i64),
    /// At least one part does not fit an `i64`.
    Big(Box<(BigInt, BigInt)>),
}

use Rational::{Big, Small};

/// Steps that one operation on numbers of this many bits costs.
fn cost(bits: u64) -> u32 {
    1 + u32::try_from(bits / 512).unwrap_or(u32::MAX)
}

/// Steps of a greatest common divisor, whose work is quadratic: about a bit and all words a round.
fn gcd_cost(bits: u64, other: u64) -> u32 {
    let smaller = bits.min(other);
    if smaller <= 64 { 1 } else { u32::try_from(smaller * smaller / 4000).unwrap_or(u32::MAX) }
}

fn greatest_common_divisor(a: &BigInt, b: &BigInt) -> BigInt {
    // One division makes both the size of the smaller; the binary method alone goes down bit by bit.
    let (large, small) = if a.bits() >= b.bits() { (a, b) } else { (b, a) };
    if small.is_zero() || large.bits() < small.bits() + 64 {
        return large.gcd(small);
    }
    small.gcd(&(large % small))
}

impl Rational {
    pub const ZERO: Rational = Small(0, 1);
    pub const ONE: Rational = Small(1, 1);

    pub fn int(n: i64) -> Self {
        if n == i64::MIN { Self::from_big(BigInt::from(n), BigInt::one()) } else { Small(n, 1) }
    }

    fn small(n: i128, d: i128) -> Self {
        debug_assert!(d != 0);
        let (n, d) = if d < 0 { (-n, -d) } else { (n, d) };
        if d == 1
            && let Ok(n) = i64::try_from(n)
            && n != i64::MIN
        {
            return Small(n, 1);
        }
        let g = gcd(n.unsigned_abs(), d.unsigned_abs()).max(1) as i128;
        let (n, d) = (n / g, d / g);
        match (i64::try_from(n), i64::try_from(d)) {
            (Ok(n), Ok(d)) if n != i64::MIN => Small(n, d),
            _ => Big(Box::new((BigInt::from(n), BigInt::from(d)))),
        }
    }

    /// n/d in lowest terms; `d` must not be zero.
    pub fn from_big(n: BigInt, d: BigInt) -> Self {
        if let (Some(n), Some(d)) = (n.to_i64(), d.to_i64()) {
            return Self::small(n.into(), d.into());
        }
        if d.is_one() {
            return Big(Box::new((n, d)));
        }
        let g = greatest_common_divisor(&n, &d);
        let (mut n, mut d) = if g.is_one() { (n, d) } else { (n / &g, d / &g) };
        if d.is_negative() {
            n = -n;
            d = -d;
        }
        match (n.to_i64(), d.to_i64()) {
            (Some(n), Some(d)) if n != i64::MIN => Small(n, d),
            _ => Big(Box::new((n, d))),
        }
    }

    fn parts(&self) -> (BigInt, BigInt) {
        match self {
            Small(n, d) => (BigInt::from(*n), BigInt::from(*d)),
            Big(b) => (b.0.clone(), b.1.clone()),
        }
    }

    fn bits(&self) -> u64 {
        match self {
            Small(..) => 64,
            Big(b) => b.0.bits() + b.1.bits(),
        }
    }

    /// n/d in lowest terms, paid for and within bounds.
    fn reduced(n: BigInt, d: BigInt, budget: &mut Budget) -> Result<Self, Stop> {
        if n.bits().max(d.bits()) > 2 * MAX_BITS {
            return Err(Stop::Limit);
        }
        budget.spend(gcd_cost(n.bits(), d.bits()))?;
        Self::from_big(n, d).bounded()
    }

    fn bounded(self) -> Result<Self, Stop> {
        if let Big(b) = &self
            && b.0.bits().max(b.1.bits()) > MAX_BITS
        {
            return Err(Stop::Limit);
        }
        Ok(self)
    }

    /// A number written in decimal digits with `places` of them after the point.
    pub fn from_digits(digits: &[u8], places: usize, budget: &mut Budget) -> Result<Self, Stop> {
        if digits.len() <= 18 {
            let n = digits.iter().fold(0i64, |n, d| n * 10 + i64::from(d - b'0'));
            return if places <= 18 { Ok(Self::small(n.into(), 10i128.pow(places as u32))) } else { Self::shift(n, places) };
        }
        if digits.len() as u64 * 10 / 3 > MAX_BITS {
            return Err(Stop::Limit);
        }
        budget.spend(cost(digits.len() as u64 * digits.len() as u64 / 16))?;
        let n = BigUint::parse_bytes(digits, 10).ok_or(Stop::Unsupported)?;
        let n = BigInt::from_biguint(Sign::Plus, n);
        if places == 0 {
            return Ok(Self::from_big(n, BigInt::one()));
        }
        Self::from_big(n, BigInt::from(10).pow(places as u32)).bounded()
    }

    fn shift(n: i64, places: usize) -> Result<Self, Stop> {
        let places = u32::try_from(places).ok().filter(|p| *p < 19_000).ok_or(Stop::Limit)?;
        Self::from_big(BigInt::from(n), BigInt::from(10).pow(places)).bounded()
    }

    /// The same number times 10^`exponent`.
    pub fn scale10(self, exponent: i64, budget: &mut Budget) -> Result<Self, Stop> {
        let power = Self::int(10).pow(exponent, budget)?;
        self.mul(&power, budget)
    }

    pub fn is_zero(&self) -> bool {
        matches!(self, Small(0, _))
    }

    pub fn is_integer(&self) -> bool {
        match self {
            Small(_, d) => *d == 1,
            Big(b) => b.1.is_one(),
        }
    }

    pub fn is_negative(&self) -> bool {
        match self {
            Small(n, _) => *n < 0,
            Big(b) => b.0.is_negative(),
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Small(n, 1) => Some(*n),
            _ => None,
        }
    }

    /// Numerator and denominator when both are machine words.
    pub fn as_fraction(&self) -> Option<(i64, i64)> {
        match self {
            Small(n, d) => Some((*n, *d)),
            Big(_) => None,
        }
    }

    pub fn neg(&self) -> Self {
        match self {
            Small(n, d) => Small(-n, *d),
            Big(b) => Self::from_big(-&b.0, b.1.clone()),
        }
    }

    pub fn abs(&self) -> Self {
        if self.is_negative() { self.neg() } else { self.clone() }
    }

    pub fn add(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        if let (Small(a, b), Small(c, d)) = (self, other) {
            budget.spend(1)?;
            let (a, b, c, d) = (i128::from(*a), i128::from(*b), i128::from(*c), i128::from(*d));
            if b == d {
                return Ok(Self::small(a + c, b));
            }
            return Ok(match (a * d).checked_add(c * b) {
                Some(n) => Self::small(n, b * d),
                None => Self::from_big(BigInt::from(a * d) + BigInt::from(c * b), BigInt::from(b * d)),
            });
        }
        budget.spend(cost(self.bits() + other.bits()))?;
        let ((a, b), (c, d)) = (self.parts(), other.parts());
        Self::reduced(&a * &d + &c * &b, b * d, budget)
    }

    pub fn sub(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        self.add(&other.neg(), budget)
    }

    pub fn mul(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        if let (Small(a, b), Small(c, d)) = (self, other) {
            budget.spend(1)?;
            return Ok(Self::small(i128::from(*a) * i128::from(*c), i128::from(*b) * i128::from(*d)));
        }
        if self.bits() + other.bits() > 2 * MAX_BITS {
            return Err(Stop::Limit);
        }
        budget.spend(cost(self.bits() + other.bits()))?;
        let ((a, b), (c, d)) = (self.parts(), other.parts());
        Self::reduced(a * c, b * d, budget)
    }

    pub fn recip(&self) -> Result<Self, Stop> {
        match self {
            Small(0, _) => Err(Stop::Undefined),
            Small(n, d) => Ok(if *n < 0 { Small(-d, -n) } else { Small(*d, *n) }),
            Big(b) => Ok(Self::from_big(b.1.clone(), b.0.clone())),
        }
    }

    pub fn div(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        self.mul(&other.recip()?, budget)
    }

    /// An integer power; 0 to a negative power is undefined, 0^0 is 1.
    pub fn pow(&self, exponent: i64, budget: &mut Budget) -> Result<Self, Stop> {
        budget.spend(1)?;
        if exponent < 0 {
            return self.recip()?.pow(exponent.checked_neg().ok_or(Stop::Limit)?, budget);
        }
        match self {
            Small(1, 1) => return Ok(Self::ONE),
            Small(0, _) => return Ok(if exponent == 0 { Self::ONE } else { Self::ZERO }),
            Small(-1, 1) => return Ok(Self::int(if exponent % 2 == 0 { 1 } else { -1 })),
            _ => {}
        }
        let (n, d) = self.parts();
        // The size of the result is known before a digit of it is computed.
        let bits = n.bits().max(d.bits()).saturating_sub(1).max(1);
        if bits.saturating_mul(exponent as u64) > MAX_BITS {
            return Err(Stop::Limit);
        }
        let exponent = exponent as u32;
        budget.spend(cost(bits * u64::from(exponent)) * 4)?;
        Self::from_big(n.pow(exponent), d.pow(exponent)).bounded()
    }

    /// The exact n-th root, if it is rational; real roots only.
    pub fn root(&self, n: u32, budget: &mut Budget) -> Result<Option<Self>, Stop> {
        if n == 0 {
            return Err(Stop::Undefined);
        }
        if n == 1 || self.is_zero() {
            return Ok(Some(self.clone()));
        }
        if self.is_negative() && n.is_multiple_of(2) {
            return Ok(None);
        }
        budget.spend(cost(self.bits()) * 8)?;
        if let Small(a, b) = self {
            let root = |x: u64| {
                let r = (x as f64).powf(1.0 / f64::from(n)).round() as u64;
                (r.saturating_sub(1)..=r + 1).find(|r| r.checked_pow(n) == Some(x))
            };
            let sign = if *a < 0 { -1 } else { 1 };
            return Ok(match (root(a.unsigned_abs()), root(*b as u64)) {
                (Some(a), Some(b)) => Some(Self::small(sign * i128::from(a), i128::from(b))),
                _ => None,
            });
        }
        let (a, b) = self.parts();
        let (ra, rb) = (a.nth_root(n), b.nth_root(n));
        Ok((ra.pow(n) == a && rb.pow(n) == b).then(|| Self::from_big(ra, rb)))
    }

    pub fn floor(&self) -> Self {
        match self {
            Small(n, d) => Small(n.div_euclid(*d), 1),
            Big(b) => Self::from_big(b.0.div_floor(&b.1), BigInt::one()),
        }
    }

    pub fn ceil(&self) -> Self {
        self.neg().floor().neg()
    }

    /// The remainder of the floored division, with the divisor's sign.
    pub fn modulo(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        if other.is_zero() {
            return Err(Stop::Undefined);
        }
        let quotient = self.div(other, budget)?.floor();
        self.sub(&quotient.mul(other, budget)?, budget)
    }

    /// The greatest common divisor of two integers.
    pub fn gcd(&self, other: &Self, budget: &mut Budget) -> Result<Self, Stop> {
        if !self.is_integer() || !other.is_integer() {
            return Err(Stop::Undefined);
        }
        budget.spend(gcd_cost(self.bits(), other.bits()))?;
        Ok(Self::from_big(greatest_common_divisor(&self.parts().0, &other.parts().0), BigInt::one()))
    }

    pub fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Small(a, b), Small(c, d)) => (i128::from(*a) * i128::from(*d)).cmp(&(i128::from(*c) * i128::from(*b))),
            _ => {
                let ((a, b), (c, d)) = (self.parts(), other.parts());
                (a * d).cmp(&(c * b))
            }
        }
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    // Words divide several times faster than 128-bit numbers.
    while b != 0 {
        if let (Ok(x), Ok(y)) = (u64::try_from(a), u64::try_from(b)) {
            return gcd64(x, y).into();
        }
        (a, b) = (b, a % b);
    }
    a
}

fn gcd64(mut a: u64, mut b: u64) -> u64 {
    if a == 0 || b == 0 {
        return a | b;
    }
    let shift = (a | b).trailing_zeros();
    a >>= a.trailing_zeros();
    while b != 0 {
        b >>= b.trailing_zeros();
        if a > b {
            std::mem::swap(&mut a, &mut b);
        }
        b -= a;
    }
    a << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget::new(1_000_000)
    }

    #[test]
    fn arithmetic_crosses_from_words_to_big_integers() {
        let b = &mut budget();
        let third = Rational::int(1).div(&Rational::int(3), b).unwrap();
        assert_eq!(third.add(&third, b).unwrap(), Small(2, 3));
        let huge = Rational::int(10).pow(40, b).unwrap();
        let back = huge.div(&Rational::int(10).pow(38, b).unwrap(), b).unwrap();
        assert_eq!(back, Small(100, 1));
        assert_eq!(huge.add(&Rational::ONE, b).unwrap().sub(&huge, b).unwrap(), Rational::ONE);
        assert_eq!(Rational::int(-7).floor(), Small(-7, 1));
        assert_eq!(Small(-7, 2).floor(), Small(-4, 1));
        assert_eq!(Small(-7, 2).ceil(), Small(-3, 1));
    }

    #[test]
    fn sizes_are_known_before_they_are_computed() {
        let b = &mut budget();
        assert_eq!(Rational::int(10).pow(100_000_000, b), Err(Stop::Limit));
        assert_eq!(Rational::int(0).pow(-1, b), Err(Stop::Undefined));
        assert_eq!(Rational::factorial(5, b).unwrap(), Small(120, 1));
        assert_eq!(Rational::int(10).binomial(3, b).unwrap(), Small(120, 1));
    }

    #[test]
    fn roots() {
        let b = &mut budget();
        assert_eq!(Small(9, 16).root(2, b).unwrap(), Some(Small(3, 4)));
        assert_eq!(Small(-27, 1).root(3, b).unwrap(), Some(Small(-3, 1)));
        assert_eq!(Small(2, 1).root(2, b).unwrap(), None);
        let big = Rational::int(7).pow(60, b).unwrap();
        assert_eq!(big.root(30, b).unwrap(), Some(Small(49, 1)));
    }

    #[test]
    fn double_double_of_a_ratio() {
        let (hi, lo) = Small(1, 3).to_double_double();
        assert_eq!(hi, 1.0 / 3.0);
        assert!((lo - 1.850371707708594e-17).abs() < 1e-30);
        let b = &mut budget();
        let (hi, lo) = Rational::int(10).pow(300, b).unwrap().to_double_double();
        assert_eq!(hi + lo, 1e300);
    }
}

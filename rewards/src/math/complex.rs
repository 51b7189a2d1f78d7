//! Complex numbers of about 31 digits that carry a bound on their own error.
//!
//! The bound is a first-order running error analysis: each operation adds the error that its operands
//! pass on and its own rounding. Two values are equal when they differ by less than both bounds, so
//! cancellation (√1000001 − √1000000) widens the test exactly as far as it must.

use super::budget::Stop;
use super::dd::{Dd, EPS, FRAC_PI_2, PI};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Complex {
    pub re: Dd,
    pub im: Dd,
    /// A bound on the absolute error.
    pub err: f64,
}

/// Beyond this an angle has no digits left to reduce by 2π.
const HUGE_ANGLE: f64 = 1e14;

impl Complex {
    pub const ZERO: Complex = Complex { re: Dd::ZERO, im: Dd::ZERO, err: 0.0 };
    pub const ONE: Complex = Complex { re: Dd::ONE, im: Dd::ZERO, err: 0.0 };
    pub const I: Complex = Complex { re: Dd::ZERO, im: Dd::ONE, err: 0.0 };

    pub fn real(re: Dd) -> Self {
        Complex { re, im: Dd::ZERO, err: re.hi.abs() * EPS }
    }

    /// An exactly known real number.
    pub fn exact(x: f64) -> Self {
        Complex { re: Dd::from(x), im: Dd::ZERO, err: 0.0 }
    }

    pub fn is_real(self) -> bool {
        self.im.is_zero() || self.im.hi.abs() <= 4.0 * self.err
    }

    pub fn abs(self) -> f64 {
        self.re.hi.hypot(self.im.hi)
    }

    /// Whether the value cannot be told from zero.
    pub fn is_zeroish(self) -> bool {
        self.abs() <= 8.0 * self.err
    }

    fn checked(self) -> Result<Self, Stop> {
        if self.re.is_finite() && self.im.is_finite() && self.err.is_finite() { Ok(self) } else { Err(Stop::Limit) }
    }

    pub fn neg(self) -> Self {
        Complex { re: -self.re, im: -self.im, err: self.err }
    }

    pub fn conj(self) -> Self {
        Complex { im: -self.im, ..self }
    }

    pub fn add(self, other: Self) -> Self {
        let sum = Complex { re: self.re + other.re, im: self.im + other.im, err: 0.0 };
        Complex { err: self.err + other.err + sum.abs() * EPS, ..sum }
    }

    pub fn sub(self, other: Self) -> Self {
        self.add(other.neg())
    }

    pub fn mul(self, other: Self) -> Self {
        let (a, b) = (self.abs(), other.abs());
        let err = a * other.err + b * self.err + self.err * other.err + a * b * EPS;
        if self.im.is_zero() && other.im.is_zero() {
            return Complex { re: self.re * other.re, im: Dd::ZERO, err };
        }
        Complex { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re, err }
    }

    pub fn scale(self, by: f64) -> Self {
        self.mul(Complex::exact(by))
    }

    pub fn div(self, other: Self) -> Result<Self, Stop> {
        if other.is_zeroish() {
            return Err(Stop::Undefined);
        }
        let b = other.abs();
        let quotient = if self.im.is_zero() && other.im.is_zero() {
            Complex { re: self.re / other.re, im: Dd::ZERO, err: 0.0 }
        } else {
            let norm = other.re * other.re + other.im * other.im;
            Complex { re: (self.re * other.re + self.im * other.im) / norm, im: (self.im * other.re - self.re * other.im) / norm, err: 0.0 }
        };
        let err = (self.err + quotient.abs() * other.err) / b + quotient.abs() * 2.0 * EPS;
        Complex { err, ..quotient }.checked()
    }

    pub fn modulus(self) -> Self {
        if self.im.is_zero() {
            return Complex { re: self.re.abs(), im: Dd::ZERO, err: self.err };
        }
        let re = (self.re * self.re + self.im * self.im).sqrt();
        Complex { re, im: Dd::ZERO, err: self.err + re.hi * 2.0 * EPS }
    }

    pub fn powi(self, n: i64) -> Result<Self, Stop> {
        if n < 0 {
            return Complex::ONE.div(self.powi(n.checked_neg().ok_or(Stop::Limit)?)?);
        }
        let (mut base, mut n, mut result) = (self, n, Complex::ONE);
        while n > 0 {
            if n & 1 == 1 {
                result = result.mul(base);
            }
            n >>= 1;
            if n > 0 {
                base = base.mul(base).checked()?;
            }
        }
        result.checked()
    }

    pub fn sqrt(self) -> Self {
        if self.is_zeroish() {
            return Complex { err: self.err.sqrt(), ..Complex::ZERO };
        }
        let err = self.err / (2.0 * self.abs().sqrt()) + self.abs().sqrt() * 2.0 * EPS;
        if self.im.is_zero() {
            let root = self.re.abs().sqrt();
            return if self.re.hi < 0.0 { Complex { re: Dd::ZERO, im: root, err } } else { Complex { re: root, im: Dd::ZERO, err } };
        }
        // The larger of the two parts first, so that nothing cancels.
        let modulus = self.modulus().re;
        let large = ((modulus + self.re.abs()).scale(0.5)).sqrt();
        let small = self.im / large.scale(2.0);
        if self.re.hi >= 0.0 {
            Complex { re: large, im: small, err }
        } else if self.im.hi >= 0.0 {
            Complex { re: small.abs(), im: large, err }
        } else {
            Complex { re: small.abs(), im: -large, err }
        }
    }

    pub fn exp(self) -> Result<Self, Stop> {
        let size = self.re.exp();
        let error = |abs: f64| abs * (self.err + (2.0 + self.abs()) * EPS);
        if self.im.is_zero() {
            return Complex { re: size, im: Dd::ZERO, err: error(size.hi) }.checked();
        }
        if self.im.hi.abs() > HUGE_ANGLE {
            return Err(Stop::Limit);
        }
        let (s, c) = self.im.sin_cos();
        Complex { re: size * c, im: size * s, err: error(size.hi) }.checked()
    }

    /// The principal logarithm.
    pub fn ln(self) -> Result<Self, Stop> {
        if self.is_zeroish() {
            return Err(Stop::Undefined);
        }
        let log = Complex { re: self.modulus().re.ln(), im: self.arg(), err: 0.0 };
        Complex { err: self.err / self.abs() + (log.abs() + 1.0) * EPS, ..log }.checked()
    }

    fn arg(self) -> Dd {
        if self.im.is_zero() { if self.re.hi < 0.0 { PI } else { Dd::ZERO } } else { Dd::atan2(self.im, self.re) }
    }

    pub fn pow(self, exponent: Self) -> Result<Self, Stop> {
        if self.is_zeroish() {
            return if exponent.re.hi > 0.0 && exponent.is_real() && self.err == 0.0 { Ok(Complex::ZERO) } else { Err(Stop::Undefined) };
        }
        self.ln()?.mul(exponent).exp()
    }

    pub fn sin_cos(self) -> Result<(Self, Self), Stop> {
        if self.im.is_zero() {
            let (angle, err) = if self.re.hi.abs() > HUGE_ANGLE {
                // No digits are left, but equal arguments must still have equal sines: any fixed angle will do.
                (stand_in_angle(self.re), 0.0)
            } else {
                (self.re, self.err)
            };
            let (s, c) = angle.sin_cos();
            let error = |slope: f64| slope.abs() * err + err * err + (1.0 + angle.hi.abs()) * EPS;
            return Ok((Complex { re: s, im: Dd::ZERO, err: error(c.hi) }, Complex { re: c, im: Dd::ZERO, err: error(s.hi) }));
        }
        // sin z = (e^{iz} − e^{−iz})/2i
        let iz = self.mul(Complex::I);
        let (plus, minus) = (iz.exp()?, iz.neg().exp()?);
        let sin = plus.sub(minus).scale(0.5).mul(Complex::I).neg();
        Ok((sin, plus.add(minus).scale(0.5)))
    }

    pub fn sinh_cosh(self) -> Result<(Self, Self), Stop> {
        let (plus, minus) = (self.exp()?, self.neg().exp()?);
        Ok((plus.sub(minus).scale(0.5), plus.add(minus).scale(0.5)))
    }

    /// arctan z = (ln(1 + iz) − ln(1 − iz))/2i; on the real line by atan2.
    pub fn atan(self) -> Result<Self, Stop> {
        if self.im.is_zero() {
            let angle = Dd::atan2(self.re, Dd::ONE);
            let err = self.err / (1.0 + self.re.hi * self.re.hi) + (1.0 + angle.hi.abs()) * EPS;
            return Ok(Complex { re: angle, im: Dd::ZERO, err });
        }
        let iz = self.mul(Complex::I);
        let difference = Complex::ONE.add(iz).ln()?.sub(Complex::ONE.sub(iz).ln()?);
        Ok(difference.scale(0.5).mul(Complex::I).neg())
    }

    /// arcsin z = −i ln(iz + √(1 − z²))
    pub fn asin(self) -> Result<Self, Stop> {
        let root = Complex::ONE.sub(self.mul(self)).sqrt();
        if self.im.is_zero() && self.re.hi.abs() <= 1.0 && root.im.is_zero() {
            let angle = Dd::atan2(self.re, root.re);
            let err = self.err / root.re.hi.max(1e-15) + 4.0 * EPS + root.err;
            return Ok(Complex { re: angle, im: Dd::ZERO, err });
        }
        Ok(self.mul(Complex::I).add(root).ln()?.mul(Complex::I).neg())
    }

    pub fn acos(self) -> Result<Self, Stop> {
        Ok(Complex::real(FRAC_PI_2).sub(self.asin()?))
    }
}

fn stand_in_angle(x: Dd) -> Dd {
    let mut hash = x.hi.abs().to_bits() ^ x.lo.abs().to_bits().rotate_left(17);
    hash = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    let angle = Dd::from(0.1 + (hash >> 11) as f64 / (1u64 << 53) as f64 * 6.0);
    if x.hi < 0.0 { -angle } else { angle }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: Complex, b: Complex) {
        let difference = a.sub(b).abs();
        assert!(difference <= 8.0 * (a.err + b.err), "{a:?} is not {b:?}: {difference:e}");
        assert!(a.err < 1e-27, "{a:?}");
    }

    #[test]
    fn identities_hold_within_the_bounds() {
        let z = Complex { re: Dd::from(0.3), im: Dd::from(-1.7), err: 0.0 };
        close(z.sqrt().mul(z.sqrt()), z);
        close(z.ln().unwrap().exp().unwrap(), z);
        let (s, c) = z.sin_cos().unwrap();
        close(s.mul(s).add(c.mul(c)), Complex::ONE);
        close(s.asin().unwrap().sin_cos().unwrap().0, s);
        close(z.atan().unwrap().sin_cos().map(|(s, c)| s.div(c).unwrap()).unwrap(), z);
        close(Complex::exact(0.5).asin().unwrap().scale(6.0), Complex::real(PI));
        let euler = Complex { re: Dd::ZERO, im: PI, err: 4.0 * EPS }.exp().unwrap();
        close(euler.add(Complex::ONE), Complex::ZERO);
    }

    #[test]
    fn cancellation_widens_the_bound_only_as_far_as_it_must() {
        let a = Complex::exact(1_000_001.0).sqrt().sub(Complex::exact(1_000_000.0).sqrt());
        assert!(a.sub(Complex::exact(0.0005)).abs() > 1e6 * a.err);
    }
}

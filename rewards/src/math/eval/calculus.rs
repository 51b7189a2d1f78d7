//! Infinite sums, integrals, limits and derivatives, by extrapolation with an error estimate.

use std::sync::LazyLock;

use super::numeric::Numeric;
use crate::math::ast::{Id, Node, Sym};
use crate::math::budget::Stop;
use crate::math::complex::Complex;
use crate::math::dd::{Dd, FRAC_PI_2};

type Value = Result<Complex, Stop>;

/// Terms of an infinite sum, which must by then have died away like a geometric series.
const SERIES_TERMS: i64 = 2000;

/// Points and weights of the tanh-sinh rule on [−1, 1], with steps of 1/8 and 1/16.
static NODES: LazyLock<[Vec<(Complex, Complex)>; 2]> = LazyLock::new(|| [nodes(0.125), nodes(0.0625)]);

fn nodes(h: f64) -> Vec<(Complex, Complex)> {
    let steps = (3.5 / h) as i32;
    let node = |k: i32| -> Result<(Complex, Complex), Stop> {
        let (sinh, cosh) = Complex::exact(f64::from(k) * h).sinh_cosh()?;
        let (s, c) = sinh.mul(Complex::real(FRAC_PI_2)).sinh_cosh()?;
        let weight = cosh.mul(Complex::real(FRAC_PI_2)).div(c.mul(c))?.scale(h);
        Ok((s.div(c)?, weight))
    };
    // Points that round to an end of the interval carry no weight that counts.
    (-steps..=steps).filter_map(|k| node(k).ok()).filter(|(x, w)| w.abs() >= 1e-34 && (Dd::ONE - x.re.abs()).hi > 0.0).collect()
}

impl Numeric<'_> {
    pub(super) fn series(&mut self, variable: Sym, from: i64, body: Id) -> Value {
        let mut sum = Complex::ZERO;
        let mut small = 0;
        for k in from..from.saturating_add(SERIES_TERMS) {
            self.budget.spend(16)?;
            let term = self.with(variable, Complex::exact(k as f64), body)?;
            sum = sum.add(term);
            if term.abs() <= 1e-33 * sum.abs().max(1e-30) {
                small += 1;
                if small == 4 {
                    sum.err += 1e-31 * sum.abs();
                    return Ok(sum);
                }
            } else {
                small = 0;
            }
        }
        Err(Stop::Limit)
    }

    /// The tanh-sinh rule (Takahasi and Mori 1974), which end point singularities do not trouble.
    pub(super) fn integral(&mut self, variable: Sym, from: Id, to: Id, body: Id) -> Value {
        let infinite = |id: Id| self.arena.any(id, &|node| matches!(node, Node::Infinity));
        if infinite(from) || infinite(to) {
            return Err(Stop::Unsupported);
        }
        let (a, b) = (self.eval(from)?, self.eval(to)?);
        let (centre, half) = (a.add(b).scale(0.5), b.sub(a).scale(0.5));
        let mut estimates = [Complex::ZERO; 2];
        // The same rule at two step widths: the difference bounds the error.
        for (nodes, estimate) in NODES.iter().zip(&mut estimates) {
            for (x, weight) in nodes {
                self.budget.spend(4)?;
                match self.with(variable, centre.add(half.mul(*x)), body) {
                    Ok(value) => *estimate = estimate.add(value.mul(*weight)),
                    // An end point at which the integrand has no value.
                    Err(Stop::Undefined) => {}
                    Err(stop) => return Err(stop),
                }
            }
        }
        let difference = estimates[1].sub(estimates[0]).abs();
        let mut value = estimates[1].mul(half);
        // Halving the step squares the error.
        let difference = difference * half.abs() / value.abs().max(1e-300);
        value.err += (100.0 * difference * difference + 1e-26) * value.abs();
        Ok(value)
    }

    /// Richardson's extrapolation of f(target ± h) as h is halved.
    pub(super) fn limit(&mut self, variable: Sym, target: Id, body: Id, side: i8) -> Value {
        let (infinite, sign) = match self.arena.node(target) {
            Node::Infinity => (true, 1.0),
            Node::Neg(inner) if matches!(self.arena.node(*inner), Node::Infinity) => (true, -1.0),
            _ => (false, 1.0),
        };
        let centre = if infinite { Complex::ZERO } else { self.eval(target)? };
        const LEVELS: usize = 12;
        let mut row = [Complex::ZERO; LEVELS];
        let mut previous = Complex::ZERO;
        let mut best = (f64::INFINITY, Complex::ZERO);
        for level in 0..LEVELS {
            let h = Complex::exact(0.125 / f64::from(1u32 << level));
            let sample = if infinite {
                self.with(variable, Complex::exact(sign * 8.0 * f64::from(1u32 << level)), body)?
            } else if side == 0 {
                let above = self.with(variable, centre.add(h), body)?;
                above.add(self.with(variable, centre.sub(h), body)?).scale(0.5)
            } else {
                let step = if side < 0 { h.neg() } else { h };
                self.with(variable, centre.add(step), body)?
            };
            // The mean of both sides is even in h, so its expansion is in h².
            let ratio = if side == 0 && !infinite { 4.0 } else { 2.0 };
            let mut value = sample;
            let mut factor = ratio;
            for entry in row.iter_mut().take(level) {
                let better = value.add(value.sub(*entry).scale(1.0 / (factor - 1.0)));
                *entry = value;
                value = better;
                factor *= ratio;
            }
            row[level] = value;
            if level > 0 {
                let change = value.sub(previous).abs();
                if change < best.0 {
                    best = (change, value);
                }
            }
            previous = value;
        }
        let (change, mut value) = best;
        value.err += 4.0 * change;
        if value.err > 1e-8 * value.abs().max(1e-3) { Err(Stop::Limit) } else { Ok(value) }
    }

    pub(super) fn derivative(&mut self, variable: Sym, body: Id) -> Value {
        let x = match self.bound.iter().rev().find(|(sym, _)| *sym == variable) {
            Some((_, value)) => *value,
            None => self.point[variable as usize],
        };
        let slope = |numeric: &mut Self, h: f64| -> Value {
            let above = numeric.with(variable, x.add(Complex::exact(h)), body)?;
            let below = numeric.with(variable, x.sub(Complex::exact(h)), body)?;
            above.sub(below).div(Complex::exact(2.0 * h))
        };
        // Two central differences, extrapolated; what the extrapolation changed bounds the error.
        let h = 1.0 / f64::from(1 << 16);
        let (wide, narrow) = (slope(self, 2.0 * h)?, slope(self, h)?);
        let change = narrow.sub(wide).scale(1.0 / 3.0);
        let mut value = narrow.add(change);
        value.err += change.abs() * 1e-6 + 1e-22 * value.abs();
        Ok(value)
    }
}

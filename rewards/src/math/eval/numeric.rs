//! Evaluation at a point, in complex numbers of 31 digits with error bounds.

use super::{MAX_TERMS, is_product, mix};
use crate::math::ast::{Arena, Const, Func, Id, ManyFunc, Node, Sym};
use crate::math::budget::{Budget, Stop};
use crate::math::complex::Complex;
use crate::math::dd::{self, Dd};
use crate::math::rational::Rational;

pub(crate) struct Numeric<'a> {
    pub arena: &'a Arena,
    pub budget: &'a mut Budget,
    /// What stands for each symbol.
    pub point: &'a [Complex],
    /// Variables of sums, integrals and limits, innermost last.
    pub bound: Vec<(Sym, Complex)>,
    pub sign: i8,
}

type Value = Result<Complex, Stop>;

pub(crate) fn from_rational(value: &Rational) -> Complex {
    let re = Dd::from(value.to_double_double());
    let exact = matches!(value.as_fraction(), Some((_, 1)));
    Complex { re, im: Dd::ZERO, err: if exact { 0.0 } else { re.hi.abs() * dd::EPS } }
}

impl Numeric<'_> {
    pub fn eval(&mut self, id: Id) -> Value {
        self.budget.spend(2)?;
        let arena = self.arena;
        match arena.node(id) {
            Node::Num(value) => Ok(from_rational(value)),
            Node::Sym(sym) => Ok(self.symbol(*sym)),
            Node::Const(Const::Pi) => Ok(Complex::real(dd::PI)),
            Node::Const(Const::E) => Ok(Complex::real(dd::E)),
            Node::Const(Const::I) => Ok(Complex::I),
            Node::Based(digits, base) => Ok(opaque(mix(mix(5, u64::from(*digits)), u64::from(*base)))),
            Node::Text(text) => Ok(opaque(mix(7, u64::from(*text)))),
            Node::Neg(a) => Ok(self.eval(*a)?.neg()),
            Node::Add(ids) => {
                let mut sum = Complex::ZERO;
                for id in arena.list(*ids) {
                    sum = sum.add(self.eval(*id)?);
                }
                Ok(sum)
            }
            Node::Mul(ids) => {
                let mut product = Complex::ONE;
                for id in arena.list(*ids) {
                    product = product.mul(self.eval(*id)?);
                }
                Ok(product)
            }
            Node::Div(a, b) => {
                let a = self.eval(*a)?;
                a.div(self.eval(*b)?)
            }
            Node::Pow(a, b) => self.power(*a, *b),
            Node::Root(index, radicand) => {
                let index = self.eval(*index)?;
                let radicand = self.eval(*radicand)?;
                self.budget.spend(20)?;
                match as_whole(index) {
                    Some(n) => root(radicand, n),
                    None => radicand.pow(Complex::ONE.div(index)?),
                }
            }
            Node::Factorial(a) => {
                let n = self.whole(*a)?;
                if !(0..=170).contains(&n) {
                    return Err(if n < 0 { Stop::Undefined } else { Stop::Limit });
                }
                Ok((2..=n).fold(Complex::ONE, |product, k| product.mul(Complex::exact(k as f64))))
            }
            Node::Binomial(n, k) => {
                let k = self.whole(*k)?;
                let n = self.eval(*n)?;
                if k > 1000 {
                    return Err(Stop::Limit);
                }
                let mut product = if k < 0 { Complex::ZERO } else { Complex::ONE };
                for j in 0..k.max(0) {
                    self.budget.spend(4)?;
                    let factor = n.sub(Complex::exact(j as f64)).div(Complex::exact((j + 1) as f64))?;
                    product = product.mul(factor);
                }
                Ok(product)
            }
            Node::PlusMinus(a, b, minus_first) => {
                let a = self.eval(*a)?;
                let b = self.eval(*b)?;
                Ok(if (self.sign < 0) != *minus_first { a.sub(b) } else { a.add(b) })
            }
            Node::Mod(a, b) => {
                let (a, b) = (self.whole(*a)?, self.whole(*b)?);
                a.checked_rem_euclid(b).map(|r| Complex::exact(r as f64)).ok_or(Stop::Undefined)
            }
            Node::Fn(func, a) => {
                let x = self.eval(*a)?;
                self.budget.spend(30)?;
                function(*func, x)
            }
            Node::Log(base, a) => {
                let base = self.eval(*base)?;
                let a = self.eval(*a)?;
                self.budget.spend(60)?;
                a.ln()?.div(base.ln()?)
            }
            Node::Many(many, ids) => self.many(*many, arena.list(*ids)),
            Node::Percent(a) => self.eval(*a)?.div(Complex::exact(100.0)),
            Node::Degree(a) => self.eval(*a)?.mul(Complex::real(dd::PI)).div(Complex::exact(180.0)),
            Node::Apply(name, ids) => {
                let mut hash = mix(11, u64::from(*name));
                for id in arena.list(*ids) {
                    // Equal arguments differ in their last digits, which therefore do not count.
                    let value = self.eval(*id)?;
                    for part in [value.re, value.im] {
                        hash = mix(hash, ((part.hi * 1e10).round() as i64) as u64);
                    }
                }
                Ok(opaque(hash))
            }
            Node::Over(over, variable, [from, to, body]) => {
                let from = self.whole(*from)?;
                if matches!(arena.node(*to), Node::Infinity) {
                    return if is_product(*over) { Err(Stop::Unsupported) } else { self.series(*variable, from, *body) };
                }
                let to = self.whole(*to)?;
                if to.saturating_sub(from) > MAX_TERMS {
                    return Err(Stop::Limit);
                }
                let mut result = if is_product(*over) { Complex::ONE } else { Complex::ZERO };
                for k in from..=to {
                    let term = self.with(*variable, Complex::exact(k as f64), *body)?;
                    result = if is_product(*over) { result.mul(term) } else { result.add(term) };
                }
                Ok(result)
            }
            Node::Integral(variable, [from, to, body]) => self.integral(*variable, *from, *to, *body),
            Node::Limit(variable, [target, body], side) => self.limit(*variable, *target, *body, *side),
            Node::Derivative(variable, body) => self.derivative(*variable, *body),
            Node::Infinity => Err(Stop::Undefined),
            _ => Err(Stop::Unsupported),
        }
    }

    fn symbol(&self, sym: Sym) -> Complex {
        match self.bound.iter().rev().find(|(s, _)| *s == sym) {
            Some((_, value)) => *value,
            None => self.point[sym as usize],
        }
    }

    /// The value of `body` with `variable` at `value`.
    pub(super) fn with(&mut self, variable: Sym, value: Complex, body: Id) -> Value {
        self.bound.push((variable, value));
        let result = self.eval(body);
        self.bound.pop();
        result
    }

    fn whole(&mut self, id: Id) -> Result<i64, Stop> {
        as_whole(self.eval(id)?).ok_or(Stop::Unsupported)
    }

    fn power(&mut self, base: Id, exponent: Id) -> Value {
        // e^z is the exponential, which needs no logarithm.
        if matches!(self.arena.node(base), Node::Const(Const::E)) {
            let z = self.eval(exponent)?;
            self.budget.spend(30)?;
            return z.exp();
        }
        let fraction = self.rational_exponent(exponent);
        let b = self.eval(base)?;
        if let Some((p, q)) = fraction {
            self.budget.spend(20)?;
            // The real root of a real number, as ∛ is read: (−8)^{1/3} = −2.
            if q == 1 {
                return b.powi(p);
            }
            if q == 2 {
                return b.sqrt().powi(p);
            }
            if b.is_real() && q % 2 == 1 {
                return root(b, q)?.powi(p);
            }
        }
        let e = self.eval(exponent)?;
        if let Some(n) = as_whole(e) {
            return b.powi(n);
        }
        self.budget.spend(60)?;
        b.pow(e)
    }

    /// The exponent as p/q in lowest terms when it is written as a number.
    fn rational_exponent(&mut self, id: Id) -> Option<(i64, i64)> {
        if let Node::Sym(_) = self.arena.node(id) {
            return None;
        }
        let mut exact = super::exact::Exact { arena: self.arena, budget: self.budget, bound: Vec::new(), sign: self.sign };
        exact.eval(id).ok()?.as_fraction()
    }

    fn many(&mut self, many: ManyFunc, ids: &[Id]) -> Value {
        let mut result: Option<Complex> = None;
        for id in ids {
            let item = self.eval(*id)?;
            let Some(best) = result else {
                result = Some(item);
                continue;
            };
            if !item.is_real() || !best.is_real() {
                return Err(Stop::Undefined);
            }
            let larger = item.sub(best).re.hi > 0.0;
            result = Some(match many {
                ManyFunc::Max if larger => item,
                ManyFunc::Min if !larger => item,
                ManyFunc::Max | ManyFunc::Min => best,
                ManyFunc::Gcd | ManyFunc::Lcm => return Err(Stop::Unsupported),
            });
        }
        result.ok_or(Stop::Undefined)
    }
}

/// A number of no meaning between 0.5 and 2, for an unknown function's value.
fn opaque(hash: u64) -> Complex {
    Complex::exact(0.5 + (hash >> 11) as f64 / (1u64 << 53) as f64 * 1.5)
}

/// The whole number that a value is, if it is one for sure.
pub(super) fn as_whole(value: Complex) -> Option<i64> {
    if !value.is_real() || value.re.hi.abs() > 1e15 {
        return None;
    }
    let rounded = value.re.hi.round();
    let distance = (value.re - Dd::from(rounded)).hi.abs();
    (distance <= 8.0 * value.err + 1e-25).then_some(rounded as i64)
}

/// The n-th root: real for an odd root of a real number, principal otherwise.
fn root(radicand: Complex, n: i64) -> Value {
    if n == 0 {
        return Err(Stop::Undefined);
    }
    if n < 0 {
        return Complex::ONE.div(root(radicand, -n)?);
    }
    match n {
        1 => Ok(radicand),
        2 => Ok(radicand.sqrt()),
        _ if radicand.is_zeroish() => Ok(Complex { err: radicand.err.powf(1.0 / n as f64), ..Complex::ZERO }),
        _ => {
            let negative = n % 2 == 1 && radicand.is_real() && radicand.re.hi < 0.0;
            let base = if negative { radicand.neg() } else { radicand };
            let value = base.ln()?.div(Complex::exact(n as f64))?.exp()?;
            Ok(if negative { value.neg() } else { value })
        }
    }
}

fn function(func: Func, x: Complex) -> Value {
    let real_only = |f: fn(Dd) -> Dd| {
        if !x.is_real() {
            return Err(Stop::Undefined);
        }
        // Next to a whole number the floor is that number only if the error says so.
        let whole = as_whole(x).map(|n| Dd::from(n as f64));
        Ok(Complex { re: whole.unwrap_or_else(|| f(x.re)), im: Dd::ZERO, err: 0.0 })
    };
    match func {
        Func::Abs => Ok(x.modulus()),
        Func::Floor => real_only(Dd::floor),
        Func::Ceil => real_only(|x| -(-x).floor()),
        Func::Sign => {
            if !x.is_real() {
                return Err(Stop::Undefined);
            }
            Ok(Complex::exact(if x.is_zeroish() { 0.0 } else { x.re.hi.signum() }))
        }
        Func::Conj => Ok(x.conj()),
        Func::Re => Ok(Complex { im: Dd::ZERO, ..x }),
        Func::Im => Ok(Complex { re: x.im, im: Dd::ZERO, err: x.err }),
        Func::Exp => x.exp(),
        Func::Ln => x.ln(),
        Func::Log10 => x.ln()?.div(Complex::exact(10.0).ln()?),
        Func::Sin => Ok(x.sin_cos()?.0),
        Func::Cos => Ok(x.sin_cos()?.1),
        Func::Tan => x.sin_cos().and_then(|(s, c)| s.div(c)),
        Func::Cot => x.sin_cos().and_then(|(s, c)| c.div(s)),
        Func::Sec => x.sin_cos().and_then(|(_, c)| Complex::ONE.div(c)),
        Func::Csc => x.sin_cos().and_then(|(s, _)| Complex::ONE.div(s)),
        Func::Arcsin => x.asin(),
        Func::Arccos => x.acos(),
        Func::Arctan => x.atan(),
        Func::Sinh => Ok(x.sinh_cosh()?.0),
        Func::Cosh => Ok(x.sinh_cosh()?.1),
        Func::Tanh => x.sinh_cosh().and_then(|(s, c)| s.div(c)),
        Func::Arcsinh => x.add(x.mul(x).add(Complex::ONE).sqrt()).ln(),
        Func::Arccosh => x.add(x.mul(x).sub(Complex::ONE).sqrt()).ln(),
        Func::Arctanh => Complex::ONE.add(x).div(Complex::ONE.sub(x))?.ln().map(|l| l.scale(0.5)),
    }
}

//! Evaluation modulo the prime 2^61 − 1, for identities of polynomials and rational functions.
//!
//! Two different rational functions of degree d agree at a random point with probability at most d/p
//! (Schwartz and Zippel), and nothing ever grows: 2^100, (x+1)^3000 and 20000! are one word each. π and e
//! stand for random residues, which is exact for identities that hold for all numbers and loses only those
//! that need what π and e are, such as sin π = 0; these are left to the numeric evaluator.

use super::exact::Exact;
use super::{MAX_TERMS, is_product, mix};
use crate::math::ast::{Arena, Const, Id, Node, Sym};
use crate::math::budget::{Budget, Stop};
use crate::math::rational::Rational;

pub(crate) const P: u64 = (1 << 61) - 1;

pub(crate) struct Modular<'a> {
    pub arena: &'a Arena,
    pub budget: &'a mut Budget,
    /// The residue that stands for each symbol.
    pub residues: &'a [u64],
    /// The whole numbers that stand for counts and exponents, as in `residues`; inner bindings come last.
    pub whole: Vec<(Sym, Rational)>,
    pub sign: i8,
}

fn reduce(x: u128) -> u64 {
    let x = (x & u128::from(P)) as u64 + (x >> 61) as u64;
    if x >= P { x - P } else { x }
}

pub(crate) fn mul(a: u64, b: u64) -> u64 {
    reduce(u128::from(a) * u128::from(b))
}

pub(crate) fn add(a: u64, b: u64) -> u64 {
    let s = a + b;
    if s >= P { s - P } else { s }
}

pub(crate) fn neg(a: u64) -> u64 {
    if a == 0 { 0 } else { P - a }
}

pub(crate) fn pow(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = mul(result, base);
        }
        base = mul(base, base);
        exponent >>= 1;
    }
    result
}

pub(crate) fn inverse(a: u64) -> Result<u64, Stop> {
    if a == 0 { Err(Stop::Undefined) } else { Ok(pow(a, P - 2)) }
}

impl Modular<'_> {
    pub fn eval(&mut self, id: Id) -> Result<u64, Stop> {
        self.budget.spend(1)?;
        let arena = self.arena;
        Ok(match arena.node(id) {
            Node::Num(value) => self.residue(value)?,
            Node::Sym(sym) => match self.whole.iter().rev().find(|(s, _)| s == sym) {
                Some((_, value)) => {
                    let value = value.clone();
                    self.residue(&value)?
                }
                None => self.residues[*sym as usize],
            },
            Node::Const(Const::Pi) => mix(3, 1) % P,
            Node::Const(Const::E) => mix(3, 2) % P,
            Node::Based(digits, base) => mix(mix(5, u64::from(*digits)), u64::from(*base)) % P,
            Node::Text(text) => mix(7, u64::from(*text)) % P,
            Node::Neg(a) => neg(self.eval(*a)?),
            Node::Add(ids) => {
                let mut sum = 0;
                for id in arena.list(*ids) {
                    sum = add(sum, self.eval(*id)?);
                }
                sum
            }
            Node::Mul(ids) => {
                let mut product = 1;
                for id in arena.list(*ids) {
                    product = mul(product, self.eval(*id)?);
                }
                product
            }
            Node::Div(a, b) => {
                let a = self.eval(*a)?;
                let b = self.eval(*b)?;
                self.budget.spend(8)?;
                mul(a, inverse(b)?)
            }
            Node::Pow(a, b) => {
                let exponent = self.exactly(*b)?;
                let base = self.eval(*a)?;
                self.power(base, &exponent)?
            }
            Node::PlusMinus(a, b, minus_first) => {
                let a = self.eval(*a)?;
                let b = self.eval(*b)?;
                if (self.sign < 0) != *minus_first { add(a, neg(b)) } else { add(a, b) }
            }
            Node::Factorial(a) => {
                let n = self.exactly(*a)?.as_i64().ok_or(Stop::Unsupported)?;
                let n = u32::try_from(n).map_err(|_| if n < 0 { Stop::Undefined } else { Stop::Limit })?;
                self.budget.spend(n / 4)?;
                (2..=u64::from(n)).fold(1, mul)
            }
            Node::Binomial(n, k) => {
                let k = self.exactly(*k)?.as_i64().ok_or(Stop::Unsupported)?;
                let n = match self.exactly(*n) {
                    Ok(n) => {
                        // The symmetric half is shorter.
                        let other = n.as_i64().filter(|n| *n >= k).map_or(k, |n| n - k);
                        (self.residue(&n)?, k.min(other))
                    }
                    Err(_) => (self.eval(*n)?, k),
                };
                self.binomial(n.0, n.1)?
            }
            Node::Percent(a) => mul(self.eval(*a)?, inverse(100)?),
            Node::Degree(a) => mul(mul(self.eval(*a)?, mix(3, 1) % P), inverse(180)?),
            Node::Apply(name, ids) => {
                let mut hash = mix(11, u64::from(*name));
                for id in arena.list(*ids) {
                    hash = mix(hash, self.eval(*id)?);
                }
                hash % P
            }
            Node::Over(over, variable, [from, to, body]) => {
                let (from, to) = (self.exactly(*from)?, self.exactly(*to)?);
                let (Some(from), Some(to)) = (from.as_i64(), to.as_i64()) else { return Err(Stop::Unsupported) };
                if to.saturating_sub(from) > MAX_TERMS {
                    return Err(Stop::Limit);
                }
                let mut result = u64::from(is_product(*over));
                for k in from..=to {
                    self.whole.push((*variable, Rational::int(k)));
                    let term = self.eval(*body);
                    self.whole.pop();
                    let term = term?;
                    result = if is_product(*over) { mul(result, term) } else { add(result, term) };
                }
                result
            }
            // Remainders, roots, absolute values: only of known rationals.
            Node::Mod(..) | Node::Root(..) | Node::Fn(..) | Node::Many(..) => {
                let value = self.exactly(id)?;
                self.residue(&value)?
            }
            _ => return Err(Stop::Unsupported),
        })
    }

    fn residue(&mut self, value: &Rational) -> Result<u64, Stop> {
        let (n, d) = value.residue(P);
        if d == 1 {
            return Ok(n);
        }
        self.budget.spend(8)?;
        Ok(mul(n, inverse(d)?))
    }

    fn exactly(&mut self, id: Id) -> Result<Rational, Stop> {
        if let Node::Num(value) = self.arena.node(id) {
            return Ok(value.clone());
        }
        let mut exact = Exact { arena: self.arena, budget: self.budget, bound: std::mem::take(&mut self.whole), sign: self.sign };
        let result = exact.eval(id);
        self.whole = exact.bound;
        result
    }

    fn power(&mut self, base: u64, exponent: &Rational) -> Result<u64, Stop> {
        if !exponent.is_integer() {
            return Err(Stop::Unsupported);
        }
        self.budget.spend(8)?;
        if exponent.is_zero() {
            return Ok(1);
        }
        if base == 0 {
            return if exponent.is_negative() { Err(Stop::Undefined) } else { Ok(0) };
        }
        // Fermat: exponents count modulo p − 1.
        let (e, _) = exponent.residue(P - 1);
        Ok(pow(base, e))
    }

    fn binomial(&mut self, n: u64, k: i64) -> Result<u64, Stop> {
        if k < 0 {
            return Ok(0);
        }
        let k = u32::try_from(k).map_err(|_| Stop::Limit)?;
        self.budget.spend(k)?;
        let (mut above, mut below) = (1, 1);
        for j in 0..u64::from(k) {
            above = mul(above, add(n, neg(j)));
            below = mul(below, j + 1);
        }
        Ok(mul(above, inverse(below)?))
    }
}

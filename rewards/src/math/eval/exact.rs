//! Exact evaluation over the rationals.

use super::{MAX_TERMS, is_product};
use crate::math::ast::{Arena, Func, Id, ManyFunc, Node, Sym};
use crate::math::budget::{Budget, Stop};
use crate::math::rational::Rational;

pub(crate) struct Exact<'a> {
    pub arena: &'a Arena,
    pub budget: &'a mut Budget,
    /// Numbers that stand for symbols; the last entry of a symbol counts.
    pub bound: Vec<(Sym, Rational)>,
    /// The sign that ± stands for.
    pub sign: i8,
}

type Value = Result<Rational, Stop>;

impl Exact<'_> {
    /// The rational value; `Unsupported` when it is irrational or has free symbols.
    pub fn eval(&mut self, id: Id) -> Value {
        self.budget.spend(1)?;
        let arena = self.arena;
        match arena.node(id) {
            Node::Num(value) => Ok(value.clone()),
            Node::Sym(sym) => match self.bound.iter().rev().find(|(s, _)| s == sym) {
                Some((_, value)) => Ok(value.clone()),
                None => Err(Stop::Unsupported),
            },
            Node::Neg(a) => Ok(self.eval(*a)?.neg()),
            Node::Add(ids) => {
                let mut sum = Rational::ZERO;
                for id in arena.list(*ids) {
                    sum = sum.add(&self.eval(*id)?, self.budget)?;
                }
                Ok(sum)
            }
            Node::Mul(ids) => {
                let mut product = Rational::ONE;
                for id in arena.list(*ids) {
                    product = product.mul(&self.eval(*id)?, self.budget)?;
                }
                Ok(product)
            }
            Node::Div(a, b) => {
                let a = self.eval(*a)?;
                a.div(&self.eval(*b)?, self.budget)
            }
            Node::Pow(a, b) => {
                // A tower is read from the top: the exponent decides whether the base may be raised at all.
                let exponent = self.eval(*b)?;
                let base = self.eval(*a)?;
                self.power(&base, &exponent)
            }
            Node::Root(index, radicand) => {
                let index = self.eval(*index)?.as_i64().ok_or(Stop::Unsupported)?;
                let radicand = self.eval(*radicand)?;
                self.root(&radicand, index)
            }
            Node::Factorial(a) => {
                let n = self.eval(*a)?.as_i64().ok_or(Stop::Unsupported)?;
                Rational::factorial(n, self.budget)
            }
            Node::Binomial(n, k) => {
                let k = self.eval(*k)?.as_i64().ok_or(Stop::Unsupported)?;
                self.eval(*n)?.binomial(k, self.budget)
            }
            Node::PlusMinus(a, b, minus_first) => {
                let a = self.eval(*a)?;
                let b = self.eval(*b)?;
                let minus = (self.sign < 0) != *minus_first;
                if minus { a.sub(&b, self.budget) } else { a.add(&b, self.budget) }
            }
            Node::Mod(a, b) => {
                let a = self.eval(*a)?;
                a.modulo(&self.eval(*b)?, self.budget)
            }
            Node::Percent(a) => self.eval(*a)?.div(&Rational::int(100), self.budget),
            Node::Fn(func, a) => self.function(*func, *a),
            Node::Many(many, ids) => {
                let mut items = arena.list(*ids).iter();
                let mut result = self.eval(*items.next().ok_or(Stop::Undefined)?)?;
                for id in items {
                    let item = self.eval(*id)?;
                    result = self.fold(*many, result, item)?;
                }
                Ok(result)
            }
            Node::Over(over, variable, [from, to, body]) => {
                let (from, to) = (self.whole(*from)?, self.whole(*to)?);
                if to.saturating_sub(from) > MAX_TERMS {
                    return Err(Stop::Limit);
                }
                let mut result = if is_product(*over) { Rational::ONE } else { Rational::ZERO };
                for k in from..=to {
                    self.bound.push((*variable, Rational::int(k)));
                    let term = self.eval(*body);
                    self.bound.pop();
                    let term = term?;
                    result = if is_product(*over) { result.mul(&term, self.budget)? } else { result.add(&term, self.budget)? };
                }
                Ok(result)
            }
            _ => Err(Stop::Unsupported),
        }
    }

    fn whole(&mut self, id: Id) -> Result<i64, Stop> {
        let value = self.eval(id)?;
        value.as_i64().ok_or(if value.is_integer() { Stop::Limit } else { Stop::Undefined })
    }

    fn power(&mut self, base: &Rational, exponent: &Rational) -> Value {
        if let Some(n) = exponent.as_i64() {
            return base.pow(n, self.budget);
        }
        if exponent.is_integer() {
            // Beyond a word only 0, 1 and −1 can be raised.
            let last_is_even = exponent.modulo(&Rational::int(2), self.budget)?.is_zero();
            return match base.as_i64() {
                Some(0 | 1) if !exponent.is_negative() => Ok(base.clone()),
                Some(-1) => Ok(Rational::int(if last_is_even { 1 } else { -1 })),
                _ => Err(Stop::Limit),
            };
        }
        let Some((p, q)) = exponent.as_fraction() else { return Err(Stop::Unsupported) };
        let root = self.root(base, q)?;
        root.pow(p, self.budget)
    }

    fn root(&mut self, radicand: &Rational, index: i64) -> Value {
        match u32::try_from(index.unsigned_abs()) {
            Ok(n) => {
                let root = radicand.root(n, self.budget)?.ok_or(Stop::Unsupported)?;
                if index < 0 { root.recip() } else { Ok(root) }
            }
            Err(_) => Err(Stop::Unsupported),
        }
    }

    fn function(&mut self, func: Func, argument: Id) -> Value {
        if !matches!(func, Func::Abs | Func::Floor | Func::Ceil | Func::Sign | Func::Conj | Func::Re) {
            return Err(Stop::Unsupported);
        }
        let x = self.eval(argument)?;
        Ok(match func {
            Func::Abs => x.abs(),
            Func::Floor => x.floor(),
            Func::Ceil => x.ceil(),
            Func::Sign => Rational::int(if x.is_zero() {
                0
            } else if x.is_negative() {
                -1
            } else {
                1
            }),
            _ => x,
        })
    }

    fn fold(&mut self, many: ManyFunc, a: Rational, b: Rational) -> Value {
        use std::cmp::Ordering::Less;
        match many {
            ManyFunc::Max => Ok(if a.cmp(&b) == Less { b } else { a }),
            ManyFunc::Min => Ok(if a.cmp(&b) == Less { a } else { b }),
            ManyFunc::Gcd => a.gcd(&b, self.budget),
            ManyFunc::Lcm => {
                let gcd = a.gcd(&b, self.budget)?;
                if gcd.is_zero() {
                    return Ok(Rational::ZERO);
                }
                Ok(a.mul(&b, self.budget)?.div(&gcd, self.budget)?.abs())
            }
        }
    }
}

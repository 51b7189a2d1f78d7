//! Sets of real numbers and conditions on one, compared as predicates.
//!
//! Both sides are asked about the same numbers: every constant that either of them mentions, the roots of
//! linear conditions, numbers between and beyond them. Two unions of intervals whose ends are among these
//! numbers are equal exactly when they agree on all of them, so |x| ≤ 3, x² ≤ 9 and [−3, 3] need no algebra.

use super::{Comparison, Kind, Outcome};
use crate::Reason;
use crate::math::ast::{Bracket, Id, Joint, NamedSet, Node, RelOp, SetOp, Sym};
use crate::math::budget::Stop;
use crate::math::complex::Complex;
use crate::math::dd::Dd;

/// The most numbers that both sides are asked about.
const MAX_SAMPLES: usize = 600;
const MAX_CONSTANTS: usize = 24;

impl Comparison<'_> {
    pub(super) fn regions(&mut self, g: Id, p: Id) -> Outcome {
        if let Some(outcome) = self.builders(g, p) {
            return outcome;
        }
        let (ours, theirs) = (self.variable(g), self.variable(p));
        let (Ok(ours), Ok(theirs)) = (ours, theirs) else { return Outcome::Different };
        // x > 2 says nothing about k; a set has no variable, and that of a set builder is its own.
        let own = |id: Id| matches!(self.arena.node(id), Node::Builder(..));
        if ours.is_some() && theirs.is_some() && ours != theirs && !own(g) && !own(p) {
            return Outcome::Different;
        }
        let mut constants = Vec::new();
        for (id, variable) in [(g, ours), (p, theirs)] {
            if self.constants(id, variable, &mut constants).is_none() {
                return Outcome::Different;
            }
        }
        let samples = samples(&constants);
        for x in samples {
            let a = self.contains(g, ours, x);
            let b = self.contains(p, theirs, x);
            match (a, b) {
                (Ok(a), Ok(b)) if a == b => {}
                (Ok(_), Ok(_)) => return Outcome::Different,
                (Err(Stop::Limit), _) | (_, Err(Stop::Limit)) => return Outcome::Limit,
                _ => return Outcome::Different,
            }
        }
        Outcome::Same(Reason::EqualNumeric)
    }

    /// The number that a region is a condition on; `Err` when it has several unknowns.
    fn variable(&self, id: Id) -> Result<Option<Sym>, ()> {
        let mut uses = Vec::new();
        crate::math::eval::uses(self.arena, id, &mut uses);
        let mut symbols = uses.iter().enumerate().filter(|(_, u)| u.occurs).map(|(sym, _)| sym as Sym);
        match (symbols.next(), symbols.next()) {
            (first, None) => Ok(first),
            _ => Err(()),
        }
    }

    /// `{2πk : k ∈ ℤ}` against the same under another name.
    fn builders(&mut self, g: Id, p: Id) -> Option<Outcome> {
        let (&Node::Builder(a, c), &Node::Builder(b, d)) = (self.arena.node(g), self.arena.node(p)) else { return None };
        if matches!(self.arena.node(a), Node::Sym(_) | Node::Chain(..)) && matches!(self.arena.node(b), Node::Sym(_) | Node::Chain(..)) {
            return None;
        }
        let names = |this: &mut Self, condition: Id| -> Option<Id> {
            let Node::Chain(items, _) = this.arena.node(condition) else { return None };
            Some(this.arena.list(*items)[0])
        };
        let (Some(x), Some(y)) = (names(self, c), names(self, d)) else { return Some(self.equal(a, b)) };
        let outcome = self.under_new_names(&[x], &[y], |this| {
            let elements = this.equal(a, b);
            if elements.is_same() { this.equal(c, d) } else { elements }
        });
        Some(outcome.unwrap_or(Outcome::Different))
    }

    /// Numbers at which the region may begin or end.
    fn constants(&mut self, id: Id, variable: Option<Sym>, out: &mut Vec<f64>) -> Option<()> {
        self.budget.spend(8).ok()?;
        if out.len() > MAX_CONSTANTS {
            return Some(());
        }
        match *self.arena.node(id) {
            Node::Chain(items, _) => {
                let items = self.arena.list(items).to_vec();
                if let Some(variable) = variable {
                    for pair in items.windows(2) {
                        self.linear_root(pair[0], pair[1], variable, out);
                    }
                }
                for item in items {
                    self.constants(item, variable, out)?;
                }
            }
            ref node => {
                let closed = !matches!(
                    node,
                    Node::Group(..) | Node::List(..) | Node::SetOp(..) | Node::Builder(..) | Node::Named(_) | Node::Infinity
                );
                if closed
                    && let Ok(value) = self.number(id)
                    && value.is_real()
                {
                    out.push(value.re.hi);
                    return Some(());
                }
                let mut children = Vec::new();
                let node = self.arena.node(id).clone();
                self.arena.for_each_child(&node, |child| children.push(child));
                for child in children {
                    self.constants(child, variable, out)?;
                }
            }
        }
        Some(())
    }

    /// The value of an expression without symbols.
    fn number(&mut self, id: Id) -> Result<Complex, Stop> {
        let mut uses = Vec::new();
        crate::math::eval::uses(self.arena, id, &mut uses);
        if uses.iter().any(|u| u.occurs) {
            return Err(Stop::Unsupported);
        }
        let numbers = vec![Complex::ZERO; self.arena.num_syms()];
        self.at((id, 1), &numbers)
    }

    fn with_variable(&mut self, id: Id, variable: Option<Sym>, x: Complex) -> Result<Complex, Stop> {
        let mut numbers = vec![Complex::ZERO; self.arena.num_syms()];
        if let Some(variable) = variable {
            numbers[variable as usize] = x;
        }
        self.at((id, 1), &numbers)
    }

    fn linear_root(&mut self, a: Id, b: Id, variable: Sym, out: &mut Vec<f64>) {
        let mut f = |x: f64| -> Option<f64> {
            let x = Complex::exact(x);
            let left = self.with_variable(a, Some(variable), x).ok()?;
            let right = self.with_variable(b, Some(variable), x).ok()?;
            Some(left.sub(right).re.hi)
        };
        for (x, y) in [(0.0, 1.0), (64.0, 65.0), (-64.0, -65.0)] {
            if let (Some(u), Some(v)) = (f(x), f(y))
                && u != v
            {
                out.push(x - u * (y - x) / (v - u));
            }
        }
    }

    /// Whether the set holds the number, or the condition holds for it.
    fn contains(&mut self, id: Id, variable: Option<Sym>, x: Complex) -> Result<bool, Stop> {
        self.budget.spend(4)?;
        match *self.arena.node(id) {
            Node::Group(Bracket::Curly, _, items) => {
                let items = self.arena.list(items).to_vec();
                for item in items {
                    if self.is_at(item, variable, x)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Node::Group(open, close, items) => {
                let [low, high] = *self.arena.list(items) else { return Err(Stop::Unsupported) };
                let closed = |bracket: Bracket| bracket == Bracket::Square;
                let above = self.compare_to_end(low, variable, x)?;
                let below = self.compare_to_end(high, variable, x)?;
                Ok((above > 0 || above == 0 && closed(open)) && (below < 0 || below == 0 && closed(close)))
            }
            Node::SetOp(op, a, b) => {
                let (a, b) = (self.contains(a, variable, x)?, self.contains(b, variable, x)?);
                Ok(match op {
                    SetOp::Union => a || b,
                    SetOp::Intersection => a && b,
                    SetOp::Difference => a && !b,
                })
            }
            Node::Named(set) => Ok(match set {
                NamedSet::Empty => false,
                NamedSet::Naturals => x.re.lo == 0.0 && x.re.hi.fract() == 0.0 && x.re.hi >= 1.0,
                NamedSet::Integers => x.re.lo == 0.0 && x.re.hi.fract() == 0.0,
                // Of the samples all are written in digits; those that are not rational cannot be told.
                NamedSet::Rationals => return Err(Stop::Unsupported),
                NamedSet::Reals => true,
                NamedSet::Complexes => return Err(Stop::Unsupported),
            }),
            Node::Builder(element, condition) => {
                match self.arena.node(element) {
                    Node::Sym(_) => {}
                    Node::Chain(..) => {
                        if !self.contains(element, variable, x)? {
                            return Ok(false);
                        }
                    }
                    // {2πk : k ∈ ℤ} is no condition on its elements.
                    _ => return Err(Stop::Unsupported),
                }
                self.contains(condition, variable, x)
            }
            Node::List(joint, items) => {
                let items = self.arena.list(items).to_vec();
                let any = joint == Joint::Or
                    || items.iter().all(|id| matches!(self.arena.node(*id), Node::Group(..) | Node::SetOp(..)))
                    || items.iter().all(|id| !matches!(self.kind(*id), Kind::Region));
                for item in &items {
                    let holds =
                        if self.kind(*item) == Kind::Scalar { self.is_at(*item, variable, x)? } else { self.contains(*item, variable, x)? };
                    if holds == any {
                        return Ok(any);
                    }
                }
                Ok(!any)
            }
            Node::Chain(items, ops) => {
                let ops = self.arena.chain_ops(ops, items).to_vec();
                let items = self.arena.list(items).to_vec();
                for (pair, op) in items.windows(2).zip(ops) {
                    let holds = match op {
                        RelOp::In => self.contains(pair[1], variable, x)?,
                        _ => {
                            let order = match self.order(pair[0], pair[1], variable, x) {
                                Ok(order) => order,
                                // Outside the domain nothing holds.
                                Err(Stop::Undefined) => return Ok(false),
                                Err(stop) => return Err(stop),
                            };
                            match op {
                                RelOp::Lt => order < 0,
                                RelOp::Le => order <= 0,
                                RelOp::Gt => order > 0,
                                RelOp::Ge => order >= 0,
                                RelOp::Ne => order != 0,
                                RelOp::Eq => order == 0,
                                _ => return Err(Stop::Unsupported),
                            }
                        }
                    };
                    if !holds {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Err(Stop::Unsupported),
        }
    }

    fn is_at(&mut self, id: Id, variable: Option<Sym>, x: Complex) -> Result<bool, Stop> {
        Ok(self.compare_to_end(id, variable, x)? == 0)
    }

    /// The sign of x − end.
    fn compare_to_end(&mut self, end: Id, variable: Option<Sym>, x: Complex) -> Result<i8, Stop> {
        match self.arena.node(end) {
            Node::Infinity => return Ok(-1),
            Node::Neg(inner) if matches!(self.arena.node(*inner), Node::Infinity) => return Ok(1),
            _ => {}
        }
        let end = self.with_variable(end, variable, x)?;
        sign(x.sub(end), x.abs())
    }

    fn order(&mut self, a: Id, b: Id, variable: Option<Sym>, x: Complex) -> Result<i8, Stop> {
        for (id, sign) in [(a, 1), (b, -1)] {
            match self.arena.node(id) {
                Node::Infinity => return Ok(sign),
                Node::Neg(inner) if matches!(self.arena.node(*inner), Node::Infinity) => return Ok(-sign),
                _ => {}
            }
        }
        let a = self.with_variable(a, variable, x)?;
        let b = self.with_variable(b, variable, x)?;
        sign(a.sub(b), a.abs().max(b.abs()))
    }
}

fn sign(difference: Complex, size: f64) -> Result<i8, Stop> {
    if !difference.is_real() {
        return Err(Stop::Undefined);
    }
    // Samples are doubles next to ends that need not be: what agrees to 15 digits is an end.
    if difference.re.hi.abs() <= 16.0 * difference.err + 4e-15 * size.min(1e12) + 1e-15 {
        return Ok(0);
    }
    Ok(if difference.re.hi > 0.0 { 1 } else { -1 })
}

/// The numbers to ask about: ends, and numbers between and beyond them.
fn samples(constants: &[f64]) -> Vec<Complex> {
    let mut ends: Vec<f64> = vec![0.0, 1.0, -1.0, 2.0];
    for c in constants.iter().take(MAX_CONSTANTS).filter(|c| c.is_finite() && c.abs() < 1e12) {
        ends.extend([*c, -c, c.abs().sqrt(), -c.abs().sqrt()]);
    }
    if constants.len() <= 8 {
        for a in constants {
            for b in constants {
                ends.extend([a + b, a - b]);
            }
        }
    }
    ends.sort_by(f64::total_cmp);
    ends.dedup_by(|a, b| (*a - *b).abs() <= 1e-15 * b.abs());
    let mut samples = Vec::with_capacity(2 * ends.len() + 4);
    let number = |x: f64| Complex { re: Dd::from(x), im: Dd::ZERO, err: 0.0 };
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    samples.extend([number(first - 1.37), number(first - 1e6 - 0.5), number(last + 1.37), number(last + 1e6 + 0.5)]);
    for pair in ends.windows(2) {
        samples.push(number(pair[0] + (pair[1] - pair[0]) * 0.4871));
    }
    samples.extend(ends.iter().map(|x| number(*x)));
    samples.truncate(MAX_SAMPLES);
    samples
}

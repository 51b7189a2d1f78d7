//! Numbers and expressions: exactly, then modulo a prime, then to 31 digits.

use super::{Comparison, Outcome, Value};
use crate::Reason;
use crate::math::ast::{Id, Node, Sym};
use crate::math::budget::Stop;
use crate::math::complex::Complex;
use crate::math::eval::exact::Exact;
use crate::math::eval::modular::{Modular, P};
use crate::math::eval::numeric::{Numeric, from_rational};
use crate::math::eval::{Use, uses};
use crate::math::rational::Rational;

/// Points for expressions with symbols, and how many must agree.
const POINTS: usize = 8;
const ENOUGH_POINTS: usize = 5;
/// Points modulo the prime.
const RESIDUES: usize = 3;
/// And where symbols stand for whole numbers, whose parity may matter.
const WHOLE_POINTS: usize = 8;
/// Digits of agreement beyond those that a rational number has itself.
const SPARE_DIGITS: f64 = 14.0;

/// A pseudo-random number that is the same everywhere.
pub(super) fn random(point: usize, sym: Sym) -> u64 {
    let mut x = (point as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(sym) + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Comparison<'_> {
    pub(super) fn exact(&mut self, value: Value) -> Result<Rational, Stop> {
        Exact { arena: self.arena, budget: self.budget, bound: Vec::new(), sign: value.1 }.eval(value.0)
    }

    fn infinity(&self, id: Id) -> Option<bool> {
        match self.arena.node(id) {
            Node::Infinity => Some(true),
            Node::Neg(inner) if matches!(self.arena.node(*inner), Node::Infinity) => Some(false),
            _ => None,
        }
    }

    pub(super) fn scalar(&mut self, g: Value, p: Value) -> Outcome {
        match (self.infinity(g.0), self.infinity(p.0)) {
            (None, None) => {}
            (a, b) if a == b => return Outcome::Same(Reason::EqualExact),
            _ => return Outcome::Different,
        }
        let (a, b) = (self.exact(g), self.exact(p));
        match (&a, &b) {
            (Ok(a), Ok(b)) => {
                if a == b {
                    return Outcome::Same(Reason::EqualExact);
                }
                return self.within_tolerance(from_rational(a), from_rational(b));
            }
            (Err(Stop::Undefined), _) | (_, Err(Stop::Undefined)) => return Outcome::Different,
            _ => {}
        }
        let how = self.uses_of(g.0, p.0);
        match self.modular(g, p, &how) {
            Some(outcome @ (Outcome::Same(_) | Outcome::Different)) => {
                if outcome.is_same() || how.iter().any(|u| u.occurs) {
                    return outcome;
                }
                return match (self.at_point(g, &how, 0), self.at_point(p, &how, 0)) {
                    (Ok(a), Ok(b)) => self.within_tolerance(a, b),
                    _ => outcome,
                };
            }
            Some(outcome) => return outcome,
            None => {}
        }
        self.numeric(g, p, &how, [a.ok(), b.ok()])
    }

    fn within_tolerance(&self, a: Complex, b: Complex) -> Outcome {
        let tolerance = self.policy.tolerance;
        if tolerance.abs == 0.0 && tolerance.rel == 0.0 {
            return Outcome::Different;
        }
        let difference = a.sub(b).abs();
        // A hair more than asked for, so that 0.1 ± 0.01 includes 0.11.
        let allowed = tolerance.abs.max(tolerance.rel * a.abs()) * (1.0 + 1e-12);
        if difference <= allowed { Outcome::Same(Reason::EqualWithinTolerance) } else { Outcome::Different }
    }

    /// The uses of symbols in both, the answer's under the gold's names.
    pub(super) fn uses_of(&self, g: Id, p: Id) -> Vec<Use> {
        let mut how = Vec::new();
        uses(self.arena, g, &mut how);
        let mut theirs = Vec::new();
        uses(self.arena, p, &mut theirs);
        for (sym, u) in theirs.iter().enumerate() {
            let name = self.renamed.iter().find(|(theirs, _)| *theirs == sym as Sym).map_or(sym, |(_, ours)| *ours as usize);
            let entry = &mut how[name];
            entry.occurs |= u.occurs;
            entry.exponent |= u.exponent;
            entry.count |= u.count;
        }
        how
    }

    /// The symbol whose number stands for `sym` on the given side.
    pub(super) fn name(&self, sym: Sym, is_gold: bool) -> Sym {
        if is_gold { sym } else { self.renamed.iter().find(|(theirs, _)| *theirs == sym).map_or(sym, |(_, ours)| *ours) }
    }

    /// The residue of a value at a point, whose symbols stand for the given numbers.
    pub(super) fn residue(
        &mut self,
        value: Value,
        how: &[Use],
        point: usize,
        is_gold: bool,
        fixed: Option<(Sym, u64)>,
    ) -> Result<u64, Stop> {
        let num_syms = self.arena.num_syms();
        self.budget.spend(num_syms as u32)?;
        let mut residues = Vec::with_capacity(num_syms);
        let mut whole = Vec::new();
        for sym in 0..num_syms as Sym {
            let name = self.name(sym, is_gold);
            if let Some((fixed, residue)) = fixed
                && fixed == sym
            {
                residues.push(residue);
                continue;
            }
            let u = how.get(name as usize).copied().unwrap_or_default();
            let r = random(point, name);
            residues.push(r % P);
            if u.count || u.exponent {
                // Even and odd in turns, for each of three symbols apart: (−1)^n is not 1.
                let parity = (point >> (name % 3)) & 1;
                whole.push((sym, Rational::int(3 + 2 * (r % 18) as i64 + parity as i64)));
            }
        }
        Modular { arena: self.arena, budget: self.budget, residues: &residues, whole, sign: value.1 }.eval(value.0)
    }

    /// A verdict when both are rational functions of their symbols.
    fn modular(&mut self, g: Value, p: Value, how: &[Use]) -> Option<Outcome> {
        let symbols = how.iter().any(|u| u.occurs);
        let wanted = if how.iter().any(|u| u.exponent || u.count) { WHOLE_POINTS } else { RESIDUES };
        let mut agreed = 0;
        for point in 0..wanted + 3 {
            let a = self.residue(g, how, point, true, None);
            if matches!(a, Err(Stop::Unsupported)) {
                return None;
            }
            let b = self.residue(p, how, point, false, None);
            match (a, b) {
                (Ok(a), Ok(b)) if a == b => agreed += 1,
                (Ok(_), Ok(_)) => return Some(Outcome::Different),
                (_, Err(Stop::Unsupported)) => return None,
                (Err(Stop::Limit), _) | (_, Err(Stop::Limit)) => return Some(Outcome::Limit),
                _ => {}
            }
            if agreed >= wanted || !symbols {
                break;
            }
        }
        Some(if agreed >= if symbols { wanted } else { 1 } { Outcome::Same(Reason::EqualSymbolic) } else { Outcome::Different })
    }

    /// The numbers that stand for the symbols at a point.
    fn point(&self, how: &[Use], point: usize, is_gold: bool) -> Vec<Complex> {
        (0..self.arena.num_syms() as Sym)
            .map(|sym| {
                let name = self.name(sym, is_gold);
                let r = random(point + 16, name);
                let u = how.get(name as usize).copied().unwrap_or_default();
                if u.count {
                    return Complex::exact(3.0 + (r % 10) as f64);
                }
                let size = 0.2 + (r >> 12) as f64 / (1u64 << 52) as f64 * 3.0;
                // Half of the points are all positive, where every root and logarithm is real.
                let negative = point % 2 == 1 && r & 1 == 1;
                Complex::exact(if negative { -size } else { size })
            })
            .collect()
    }

    pub(super) fn at_point(&mut self, value: Value, how: &[Use], point: usize) -> Result<Complex, Stop> {
        let numbers = self.point(how, point, true);
        self.at(value, &numbers)
    }

    /// The point for the answer's side, which may name its variables otherwise.
    pub(super) fn answer_point(&self, how: &[Use], point: usize) -> Vec<Complex> {
        self.point(how, point, false)
    }

    pub(super) fn at(&mut self, value: Value, numbers: &[Complex]) -> Result<Complex, Stop> {
        Numeric { arena: self.arena, budget: self.budget, point: numbers, bound: Vec::new(), sign: value.1 }.eval(value.0)
    }

    fn numeric(&mut self, g: Value, p: Value, how: &[Use], rational: [Option<Rational>; 2]) -> Outcome {
        let symbols = how.iter().any(|u| u.occurs);
        let points = if symbols { POINTS } else { 1 };
        let mut agreed = 0;
        let mut limited = false;
        for point in 0..points {
            let ours = self.point(how, point, true);
            let a = match &rational[0] {
                Some(value) => Ok(from_rational(value)),
                None => self.at(g, &ours),
            };
            let theirs = if self.renamed.is_empty() { ours } else { self.point(how, point, false) };
            let b = match &rational[1] {
                Some(value) => Ok(from_rational(value)),
                None => self.at(p, &theirs),
            };
            match (a, b) {
                (Err(Stop::Unsupported), _) | (_, Err(Stop::Unsupported)) => return self.structural(g.0, p.0),
                (Err(Stop::Limit), _) | (_, Err(Stop::Limit)) => limited = true,
                (Ok(a), Ok(b)) => {
                    match agree(a, b, &rational) {
                        Some(true) => agreed += 1,
                        Some(false) if symbols => return Outcome::Different,
                        Some(false) => return self.within_tolerance(a, b),
                        None => limited = true,
                    };
                }
                (Err(_), Err(_)) => {}
                _ => return Outcome::Different,
            }
            if self.budget.is_spent() {
                return Outcome::Limit;
            }
        }
        if agreed >= if symbols { ENOUGH_POINTS } else { 1 } {
            Outcome::Same(Reason::EqualNumeric)
        } else if limited {
            Outcome::Limit
        } else {
            Outcome::Different
        }
    }

    /// Equal node by node, for what no evaluator covers.
    fn structural(&mut self, g: Id, p: Id) -> Outcome {
        let (a, b) = (self.arena.node(g).clone(), self.arena.node(p).clone());
        if std::mem::discriminant(&a) != std::mem::discriminant(&b) {
            return Outcome::Different;
        }
        let alike = match (&a, &b) {
            (Node::Fn(f, _), Node::Fn(h, _)) => f == h,
            (Node::Many(f, _), Node::Many(h, _)) => f == h,
            (Node::Over(f, x, _), Node::Over(h, y, _)) => f == h && x == y,
            (Node::Integral(x, _), Node::Integral(y, _)) => x == y,
            (Node::Limit(x, _, s), Node::Limit(y, _, t)) => x == y && s == t,
            (Node::Derivative(x, _), Node::Derivative(y, _)) => x == y,
            (Node::Apply(f, _), Node::Apply(h, _)) => f == h,
            (Node::Neg(_), _) | (Node::Add(_), _) | (Node::Mul(_), _) | (Node::Div(..), _) | (Node::Pow(..), _) | (Node::Root(..), _) => {
                true
            }
            (Node::Dots, _) => true,
            _ => false,
        };
        let mut children = [Vec::new(), Vec::new()];
        self.arena.for_each_child(&a, |id| children[0].push(id));
        self.arena.for_each_child(&b, |id| children[1].push(id));
        let [ours, theirs] = children;
        if !alike || ours.len() != theirs.len() {
            return Outcome::Different;
        }
        for (a, b) in ours.into_iter().zip(theirs) {
            let outcome = self.equal(a, b);
            if !outcome.is_same() {
                return outcome;
            }
        }
        Outcome::Same(Reason::EqualSymbolic)
    }
}

/// Whether two values agree; `None` when too few digits are left to tell.
fn agree(a: Complex, b: Complex, rational: &[Option<Rational>; 2]) -> Option<bool> {
    let difference = a.sub(b).abs();
    let err = a.err + b.err;
    if difference > 16.0 * err {
        return Some(false);
    }
    let size = a.abs().max(b.abs());
    if size <= 64.0 * err {
        // Both vanish, as far as the digits go; a rational that is not zero only seems to.
        let seems = rational.iter().flatten().any(|value| !value.is_zero());
        return if seems { Some(false) } else { (err < 1e-22).then_some(true) };
    }
    if err > 1e-11 * size {
        return None;
    }
    // e^{π√163} is a whole number to 30 digits: a rational must agree to more digits than it has itself.
    if let [Some(value), None] | [None, Some(value)] = rational {
        let own = match value.as_fraction() {
            Some((n, d)) => (n.unsigned_abs().max(1) as f64).log10() + (d as f64).log10(),
            None => return None,
        };
        if -(err / size).log10() < own + SPARE_DIGITS {
            return None;
        }
    }
    Some(true)
}

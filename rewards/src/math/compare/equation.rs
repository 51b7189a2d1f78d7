//! Equations: equal up to a constant factor, solved for an unknown, or by their solutions.

use super::scalar::random;
use super::{Comparison, Kind, Outcome};
use crate::Reason;
use crate::math::ast::{Id, Node, RelOp, Sym};
use crate::math::budget::Stop;
use crate::math::eval::Use;
use crate::math::eval::modular::{P, add, inverse, mul, neg};

impl Comparison<'_> {
    /// The value of `x = 3`, `f(x) = …` or `S = 1 + 2 = 3`: the last side, when all sides before it name it or equal it.
    pub(super) fn value_of_equation(&mut self, id: Id) -> Option<Id> {
        let &Node::Chain(items, ops) = self.arena.node(id) else { return None };
        if !self.arena.chain_ops(ops, items).iter().all(|op| matches!(op, RelOp::Eq | RelOp::Approx)) {
            return None;
        }
        let items = self.arena.list(items).to_vec();
        let (last, before) = items.split_last()?;
        // "3 = x"
        if let [value] = before
            && matches!(self.arena.node(*last), Node::Sym(_))
            && !self.is_name(*value)
        {
            return Some(*value);
        }
        for (i, side) in before.iter().enumerate() {
            let names = i == 0 && self.is_name(*side);
            if !names && !self.equal(*side, *last).is_same() {
                return None;
            }
        }
        Some(*last)
    }

    fn sides(&self, id: Id) -> Option<(Id, Id)> {
        let &Node::Chain(items, _) = self.arena.node(id) else { return None };
        match self.arena.list(items) {
            [a, b] => Some((*a, *b)),
            _ => None,
        }
    }

    pub(super) fn equations(&mut self, g: Id, p: Id) -> Outcome {
        if self.kind(g) == Kind::System || self.kind(p) == Kind::System {
            return self.systems(g, p);
        }
        let names = |this: &Self, id: Id| {
            let &Node::Chain(items, _) = this.arena.node(id) else { return None };
            let items = this.arena.list(items);
            Some((items[0], *items.last()?))
        };
        let (Some((left, value)), Some((other_left, other_value))) = (names(self, g), names(self, p)) else { return Outcome::Different };
        // The same function under another name of its variable.
        if let (&Node::Apply(f, args), &Node::Apply(h, others)) = (self.arena.node(left), self.arena.node(other_left)) {
            if f != h {
                return Outcome::Different;
            }
            let (args, others) = (self.arena.list(args).to_vec(), self.arena.list(others).to_vec());
            return self.under_new_names(&args, &others, |this| this.equal(value, other_value)).unwrap_or(Outcome::Different);
        }
        if self.is_name(left) && self.is_name(other_left) && self.equal(left, other_left).is_same() {
            let outcome = self.equal(value, other_value);
            if outcome.is_same() || self.kind(value) != Kind::Scalar {
                return outcome;
            }
        }
        // `(x, y) = (1, 2)` against `(1, 2) = (x, y)` and the like.
        if self.kind(value) != Kind::Scalar || self.kind(other_value) != Kind::Scalar {
            let (a, b) = (self.value_of_equation(g), self.value_of_equation(p));
            if self.kind(value) == Kind::Many || self.kind(other_value) == Kind::Many {
                return self.solutions_of_both(g, p);
            }
            return match (a, b) {
                (Some(a), Some(b)) if self.equal(left, other_left).is_same() => self.equal(a, b),
                _ => Outcome::Different,
            };
        }
        let (Some(ours), Some(theirs)) = (self.sides(g), self.sides(p)) else {
            return match (self.value_of_equation(g), self.value_of_equation(p)) {
                (Some(a), Some(b)) if self.equal(left, other_left).is_same() => self.equal(a, b),
                _ => Outcome::Different,
            };
        };
        let outcome = self.proportional(ours, theirs, false);
        if outcome.is_same() {
            return outcome;
        }
        for (solved, whole, gold_solved) in [(ours, theirs, true), (theirs, ours, false)] {
            if self.solved_form(solved, whole, gold_solved) {
                return Outcome::Same(Reason::EqualSymbolic);
            }
        }
        outcome
    }

    /// Systems of equations: a matching of equal equations.
    fn systems(&mut self, g: Id, p: Id) -> Outcome {
        let items = |this: &Self, id: Id| match this.arena.node(id) {
            Node::List(_, ids) => this.arena.list(*ids).to_vec(),
            _ => vec![id],
        };
        let (ours, mut theirs) = (items(self, g), items(self, p));
        if ours.len() != theirs.len() || ours.len() > 16 {
            return Outcome::Different;
        }
        for equation in ours {
            let mut found = None;
            for (i, other) in theirs.iter().enumerate() {
                if self.equal(equation, *other).is_same() {
                    found = Some(i);
                    break;
                }
            }
            match found {
                Some(i) => theirs.swap_remove(i),
                None => return Outcome::Different,
            };
        }
        Outcome::Same(Reason::EqualSymbolic)
    }

    /// Runs a comparison in which the answer's variables go by the gold's names.
    pub(super) fn under_new_names<T>(&mut self, ours: &[Id], theirs: &[Id], f: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if ours.len() != theirs.len() {
            return None;
        }
        let depth = self.renamed.len();
        for (a, b) in ours.iter().zip(theirs) {
            match (self.arena.node(*a), self.arena.node(*b)) {
                (Node::Sym(a), Node::Sym(b)) => {
                    if a != b {
                        self.renamed.push((*b, *a));
                    }
                }
                _ => {
                    if !self.equal(*a, *b).is_same() {
                        self.renamed.truncate(depth);
                        return None;
                    }
                }
            }
        }
        let result = f(self);
        self.renamed.truncate(depth);
        Some(result)
    }

    /// Whether lhs − rhs of one is a constant times that of the other, a positive one if asked.
    pub(super) fn proportional(&mut self, ours: (Id, Id), theirs: (Id, Id), positive: bool) -> Outcome {
        let (Some(f), Some(h)) = (self.difference(ours), self.difference(theirs)) else { return Outcome::Limit };
        let how = self.uses_of(f, h);
        if !how.iter().any(|u| u.occurs) {
            return Outcome::Different;
        }
        if !positive {
            match self.proportional_residues(f, h, &how) {
                Ok(true) => return Outcome::Same(Reason::EqualSymbolic),
                Ok(false) => return Outcome::Different,
                Err(Stop::Limit) => return Outcome::Limit,
                Err(_) => {}
            }
        }
        let mut ratio = None;
        let mut agreed = 0;
        for point in 0..6 {
            let (Ok(a), Ok(b)) = (self.at_point((f, 1), &how, point), self.at_point_of_answer((h, 1), &how, point)) else { continue };
            if a.is_zeroish() || b.is_zeroish() {
                continue;
            }
            let Ok(quotient) = a.div(b) else { continue };
            if positive && (!quotient.is_real() || quotient.re.hi <= 0.0) {
                return Outcome::Different;
            }
            match ratio {
                None => ratio = Some(quotient),
                Some(known) => {
                    let difference = known.sub(quotient);
                    if difference.abs() > 16.0 * difference.err {
                        return Outcome::Different;
                    }
                }
            }
            agreed += 1;
        }
        if agreed >= 4 { Outcome::Same(Reason::EqualNumeric) } else { Outcome::Different }
    }

    fn at_point_of_answer(&mut self, value: super::Value, how: &[Use], point: usize) -> Result<crate::math::complex::Complex, Stop> {
        let numbers = self.answer_point(how, point);
        self.at(value, &numbers)
    }

    fn proportional_residues(&mut self, f: Id, h: Id, how: &[Use]) -> Result<bool, Stop> {
        let mut ratio = None;
        let mut agreed = 0;
        for point in 0..6 {
            let a = self.residue((f, 1), how, point, true, None);
            let b = self.residue((h, 1), how, point, false, None);
            let (a, b) = match (a, b) {
                (Ok(a), Ok(b)) => (a, b),
                (Err(Stop::Undefined), _) | (_, Err(Stop::Undefined)) => continue,
                (Err(stop), _) | (_, Err(stop)) => return Err(stop),
            };
            if a == 0 || b == 0 {
                // Both vanish everywhere, or only one does: no equation in either case.
                return Ok(false);
            }
            let quotient = mul(a, inverse(b)?);
            if *ratio.get_or_insert(quotient) != quotient {
                return Ok(false);
            }
            agreed += 1;
            if agreed == 4 {
                break;
            }
        }
        Ok(agreed >= 3)
    }

    fn difference(&mut self, (a, b): (Id, Id)) -> Option<Id> {
        let minus = self.arena.push(Node::Neg(b))?;
        let ids = self.arena.ids(&[a, minus]);
        self.arena.push(Node::Add(ids))
    }

    /// Whether `v = expression` solves the other equation for v, which that equation then says and no more.
    fn solved_form(&mut self, solved: (Id, Id), whole: (Id, Id), gold_solved: bool) -> bool {
        let (unknown, expression) = match (self.arena.node(solved.0), self.arena.node(solved.1)) {
            (Node::Sym(v), _) => (*v, solved.1),
            (_, Node::Sym(v)) => (*v, solved.0),
            _ => return false,
        };
        let mut inside = Vec::new();
        crate::math::eval::uses(self.arena, expression, &mut inside);
        if inside.get(unknown as usize).is_some_and(|u| u.occurs) {
            return false;
        }
        let Some(f) = self.difference(whole) else { return false };
        let how = self.uses_of(expression, f);
        if !how.get(unknown as usize).is_some_and(|u| u.occurs) {
            return false;
        }
        // v must not divide anything away: its coefficient is a constant, or what the expression divides by.
        let divides = self.arena.any(expression, &|node| matches!(node, Node::Div(..)));
        let mut coefficient = None;
        let mut constant = true;
        let mut agreed = 0;
        for point in 0..5 {
            let Ok(value) = self.residue((expression, 1), &how, point, gold_solved, None) else { return false };
            let mut at = |v: u64| self.residue((f, 1), &how, point, !gold_solved, Some((unknown, v)));
            let (r, s) = (random(point + 100, unknown) % P, random(point + 200, unknown) % P);
            let (Ok(zero), Ok(x), Ok(y)) = (at(value), at(r), at(s)) else { return false };
            if zero != 0 {
                return false;
            }
            // Linear in v: the slopes from the root to two other points are one.
            let slope = |fv: u64, v: u64| inverse(add(v, neg(value))).map(|i| mul(fv, i));
            let (Ok(a), Ok(b)) = (slope(x, r), slope(y, s)) else { return false };
            if a != b || a == 0 {
                return false;
            }
            constant &= *coefficient.get_or_insert(a) == a;
            agreed += 1;
        }
        agreed >= 3 && (constant || divides)
    }

    /// Whether a polynomial equation in one unknown has exactly the given solutions.
    pub(super) fn solutions(&mut self, equation: Id, values: Id) -> Outcome {
        if self.kind(values) != Kind::Many {
            return Outcome::Different;
        }
        let Some(sides) = self.sides(equation) else { return Outcome::Different };
        let Some(unknown) = self.one_symbol(equation) else { return Outcome::Different };
        let Some(f) = self.difference(sides) else { return Outcome::Limit };
        let mut members = Vec::new();
        if self.members(values, &mut members).is_none() || members.len() > 8 {
            return Outcome::Limit;
        }
        let Some(degree) = self.degree(f, unknown) else { return Outcome::Different };
        let mut distinct: Vec<super::Value> = Vec::new();
        for member in members {
            let mut known = false;
            for other in &distinct {
                known = known || self.scalar(*other, member).is_same();
            }
            if known {
                continue;
            }
            let how = self.uses_of(f, member.0);
            let Ok(root) = self.at_point(member, &how, 0) else { return Outcome::Different };
            let mut numbers = vec![root; self.arena.num_syms()];
            numbers[unknown as usize] = root;
            match self.at((f, 1), &numbers) {
                Ok(value) if value.is_zeroish() => distinct.push(member),
                _ => return Outcome::Different,
            }
        }
        if distinct.len() == degree { Outcome::Same(Reason::EqualNumeric) } else { Outcome::Different }
    }

    /// `x² = 4` against `x = ±2`, either way round.
    fn solutions_of_both(&mut self, g: Id, p: Id) -> Outcome {
        let assigned = |this: &Self, id: Id| this.assigned(id);
        match (assigned(self, g), assigned(self, p)) {
            (Some((a, x)), Some((b, y))) if a == b => self.equal(x, y),
            (Some((a, x)), None) if self.one_symbol(p) == Some(a) => self.solutions(p, x),
            (None, Some((b, y))) if self.one_symbol(g) == Some(b) => self.solutions(g, y),
            _ => Outcome::Different,
        }
    }

    /// The degree of a polynomial in one symbol, at most 8, by finite differences modulo the prime.
    fn degree(&mut self, f: Id, unknown: Sym) -> Option<usize> {
        const MAX: usize = 8;
        let how = self.uses_of(f, f);
        let mut row = Vec::with_capacity(MAX + 3);
        for k in 0..MAX as u64 + 3 {
            row.push(self.residue((f, 1), &how, 0, true, Some((unknown, 1000 + k))).ok()?);
        }
        let mut degree = 0;
        let mut order = 0;
        while row.len() > 1 {
            if row.iter().any(|r| *r != 0) {
                degree = order;
            }
            row = row.windows(2).map(|w| add(w[1], neg(w[0]))).collect();
            order += 1;
        }
        (1..=MAX).contains(&degree).then_some(degree)
    }
}

//! Whether two answers are the same, by the type of what they are.

mod collection;
mod equation;
mod kind;
mod matrix;
mod region;
mod scalar;

use super::answer::Answer;
use super::ast::{Arena, Id, Node, Sym};
use super::budget::Budget;
use super::rational::Rational;
use super::text;
use super::units::{self, Measure, Units};
use crate::Reason;
use kind::Kind;

/// What a comparison of two parts costs beside the arithmetic in it.
const EQUAL_STEPS: u32 = 16;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Same(Reason),
    Different,
    /// Several values where one is wanted.
    Hedged,
    WrongUnit,
    Limit,
}

impl Outcome {
    pub fn is_same(self) -> bool {
        matches!(self, Outcome::Same(_))
    }
}

/// How near a number must come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

/// What counts as equal beyond mathematics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Policy {
    pub tolerance: Tolerance,
    /// A percent sign may be missing.
    pub percent_either: bool,
    pub units: UnitPolicy,
    /// One right value among several is right.
    pub hedging: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitPolicy {
    /// Units do not count.
    Ignore,
    /// A missing unit is fine, a convertible one is converted, another one is wrong.
    Convert,
    /// Both or neither must have a unit, and the same.
    Same,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { tolerance: Tolerance::default(), percent_either: true, units: UnitPolicy::Convert, hedging: false }
    }
}

/// A value: an expression and the sign that its ± stands for.
type Value = (Id, i8);

pub(crate) struct Comparison<'a> {
    pub arena: &'a mut Arena,
    pub budget: &'a mut Budget,
    pub policy: Policy,
    /// Variables of the answer under the names that the gold answer gives them.
    renamed: Vec<(Sym, Sym)>,
    depth: u32,
}
impl<'a> Comparison<'a> {
    pub fn new(arena: &'a mut Arena, budget: &'a mut Budget, policy: Policy) -> Self {
        Comparison { arena, budget, policy, renamed: Vec::new(), depth: 0 }
    }

    /// Whether an expression, or the value of `x = …`, is a number.
    pub fn is_number(&mut self, id: Id) -> bool {
        let id = self.value_of_equation(id).unwrap_or(id);
        if self.kind(id) != Kind::Scalar {
            return false;
        }
        let how = self.uses_of(id, id);
        !how.iter().any(|u| u.occurs) && self.at_point((id, 1), &how, 0).is_ok()
    }

    /// Compares a gold answer with another.
    pub fn answers(&mut self, gold: &Answer, other: &Answer) -> Outcome {
        if !gold.normal.is_empty() && gold.normal == other.normal {
            return Outcome::Same(Reason::EqualText);
        }
        let given = match (gold.choice, other.choice) {
            (Some(wanted), None) if wanted.letters.count_ones() > 1 => text::choices_in_one_word(&other.plain, false),
            (_, given) => given,
        };
        if let Some(wanted) = gold.choice
            && let Some(given) = given
        {
            let single = wanted.letters.count_ones() == 1;
            if given == wanted {
                return Outcome::Same(Reason::EqualText);
            }
            if single && given.letters.count_ones() > 1 {
                return Outcome::Hedged;
            }
            if text::choice(&gold.plain, true).is_some() && given.letters == wanted.letters && !given.hedged {
                return Outcome::Same(Reason::EqualText);
            }
        }
        let outcome = match (gold.root, other.root) {
            (Some(g), Some(p)) => self.quantities(gold, g, other, p),
            _ => Outcome::Different,
        };
        if outcome.is_same() || gold.plain.is_empty() || other.plain.is_empty() {
            return outcome;
        }
        let words = |answer: &Answer, arena: &Arena| {
            answer.words || answer.root.is_none_or(|root| arena.any(root, &|node| matches!(node, Node::Text(_))))
        };
        if (words(gold, self.arena) || words(other, self.arena)) && text::same_words(&gold.plain, &other.plain) {
            return Outcome::Same(Reason::EqualText);
        }
        outcome
    }

    fn quantities(&mut self, gold: &Answer, g: Id, other: &Answer, p: Id) -> Outcome {
        if gold.clock.is_some() || other.clock.is_some() {
            return match (self.clock(gold, g), self.clock(other, p)) {
                (Some(a), Some(b)) if a == b => Outcome::Same(Reason::EqualExact),
                _ => Outcome::Different,
            };
        }
        // A letter after a number is a variable when the other answer has it too.
        for (with_letter, other_root, gold_has) in [(gold.with_letter, p, true), (other.with_letter, g, false)] {
            if let Some(product) = with_letter {
                let (a, b) = if gold_has { (product, other_root) } else { (other_root, product) };
                if self.equal(a, b).is_same() {
                    return Outcome::Same(Reason::EqualExact);
                }
            }
        }
        let relation = match self.policy.units {
            UnitPolicy::Ignore => Units::Same,
            UnitPolicy::Convert => units::relate(&gold.measure, &other.measure),
            UnitPolicy::Same if gold.measure == other.measure => Units::Same,
            UnitPolicy::Same => Units::Clash,
        };
        match relation {
            Units::Same => {
                // "5 days" is no 5%.
                let bare = matches!((&gold.measure, &other.measure), (Measure::Bare, Measure::Bare));
                self.with_dropped_signs(g, p, bare)
            }
            Units::Clash if self.equal(g, p).is_same() => Outcome::WrongUnit,
            Units::Clash => Outcome::Different,
            Units::Scaled(f, h) => {
                let mut scaled = |id: Id, factor: Rational| {
                    let factor = self.arena.push(Node::Num(factor))?;
                    let ids = self.arena.ids(&[factor, id]);
                    self.arena.push(Node::Mul(ids))
                };
                match (scaled(g, f), scaled(p, h)) {
                    (Some(a), Some(b)) if self.equal(a, b).is_same() => Outcome::Same(Reason::EqualExact),
                    _ if self.equal(g, p).is_same() => Outcome::WrongUnit,
                    _ => Outcome::Different,
                }
            }
        }
    }

    /// Minutes since midnight of a time of day.
    fn clock(&self, answer: &Answer, root: Id) -> Option<i64> {
        answer.clock.or_else(|| {
            let Node::Ratio(ids) = self.arena.node(root) else { return None };
            let [hours, minutes] = self.arena.list(*ids) else { return None };
            match (self.arena.node(*hours), self.arena.node(*minutes)) {
                (Node::Num(h), Node::Num(m)) => Some(h.as_i64()?.checked_mul(60)?.checked_add(m.as_i64()?)?),
                _ => None,
            }
        })
    }

    /// Equal as they stand, or but for a percent or degree sign that one of them leaves out.
    fn with_dropped_signs(&mut self, g: Id, p: Id, percent_may_drop: bool) -> Outcome {
        let outcome = self.equal(g, p);
        if outcome.is_same() {
            return outcome;
        }
        let (g, p) = (self.value_of_equation(g).unwrap_or(g), self.value_of_equation(p).unwrap_or(p));
        let bare = |arena: &mut Arena, id: Id, percent: bool| -> Option<Id> {
            match *arena.node(id) {
                Node::Percent(inner) if percent => Some(inner),
                Node::Degree(inner) if !percent => Some(inner),
                Node::Neg(inner) => match *arena.node(inner) {
                    Node::Percent(inner) if percent => arena.push(Node::Neg(inner)),
                    Node::Degree(inner) if !percent => arena.push(Node::Neg(inner)),
                    _ => None,
                },
                _ => None,
            }
        };
        for percent in [false, true] {
            if percent && !(self.policy.percent_either && percent_may_drop) {
                continue;
            }
            let (a, b) = (bare(self.arena, g, percent), bare(self.arena, p, percent));
            if a.is_some() != b.is_some() {
                let (a, b) = (a.unwrap_or(g), b.unwrap_or(p));
                let again = self.equal(a, b);
                // 28 may mean 28%, but 0.28 means no 0.28%.
                let fraction = percent && self.exact((a, 1)).is_ok_and(|n| n.abs().cmp(&Rational::ONE).is_lt());
                if again.is_same() && !fraction {
                    return again;
                }
            }
        }
        outcome
    }

    /// Compares two expressions of any kind.
    pub(crate) fn equal(&mut self, g: Id, p: Id) -> Outcome {
        if g == p {
            return Outcome::Same(Reason::EqualExact);
        }
        // Members of members multiply, so every comparison costs, and a spent budget ends all of them.
        if self.depth > 64 || self.budget.spend(EQUAL_STEPS).is_err() {
            return Outcome::Limit;
        }
        self.depth += 1;
        let outcome = self.equal_kinds(g, p);
        self.depth -= 1;
        outcome
    }

    fn equal_kinds(&mut self, g: Id, p: Id) -> Outcome {
        let (g, p) = (self.reduced(g), self.reduced(p));
        let (kind, other) = (self.kind(g), self.kind(p));
        use Kind::*;
        match (kind, other) {
            (Scalar, Scalar) => self.scalar((g, 1), (p, 1)),
            (Text, Text) => {
                let name = |id: Id| match self.arena.node(id) {
                    Node::Text(sym) => self.arena.name(*sym),
                    _ => "",
                };
                if text::same_words(name(g), name(p)) { Outcome::Same(Reason::EqualText) } else { Outcome::Different }
            }
            (Matrix, _) | (_, Matrix) => self.matrices(g, p),
            (Equation | System, Equation | System) => self.equations(g, p),
            (Assignments, Assignments) => self.assignments(g, p),
            (Equation, _) => match self.value_of_equation(g) {
                Some(value) => self.equal(value, p),
                None => self.solutions(g, p),
            },
            (_, Equation) => match self.value_of_equation(p) {
                Some(value) => self.equal(g, value),
                None => self.solutions(p, g),
            },
            (Assignments, Pair | Tuple | Many) => self.assignments_in_order(g, p, false),
            (Pair | Tuple | Many, Assignments) => self.assignments_in_order(p, g, true),
            (Region, Region | Interval | Pair | Many) | (Interval | Pair | Many, Region) => self.regions(g, p),
            (Interval, Interval | Pair) | (Pair, Interval) => self.brackets(g, p),
            (Pair | Tuple, Pair | Tuple) => self.tuples(g, p),
            (Scalar | Many, Scalar | Many) | (Many, _) | (_, Many) => self.collections(g, p, kind, other),
            (Relation, Relation) => self.relations(g, p),
            (Region, Relation) | (Relation, Region) => Outcome::Different,
            (Congruence, Congruence) => self.congruences(g, p),
            (Ratio, Ratio) => self.ratios(g, p),
            (Interval | Tuple, Interval | Tuple) => self.tuples(g, p),
            _ => Outcome::Different,
        }
    }
}

//! Whether two answers are the same, by the type of what they are.

mod collection;
mod equation;
mod matrix;
mod region;
mod scalar;

use super::answer::Answer;
use super::ast::{Arena, Bracket, Const, Func, Id, Joint, NamedSet, Node, RelOp, Sym};
use super::budget::Budget;
use super::rational::Rational;
use super::text;
use super::units::{self, Units};
use crate::Reason;

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

/// What an expression is, as far as that decides how to compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    /// A finite collection without order.
    Many,
    /// Values for named unknowns.
    Assignments,
    /// An ordered pair or an open interval.
    Pair,
    Tuple,
    Interval,
    /// A set of numbers that is not finite, or a condition on one number.
    Region,
    Equation,
    /// Several equations at once.
    System,
    /// Any other relation.
    Relation,
    Congruence,
    Ratio,
    Matrix,
    Text,
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
            Units::Same => self.with_dropped_signs(g, p),
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
    fn with_dropped_signs(&mut self, g: Id, p: Id) -> Outcome {
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
            if percent && !self.policy.percent_either {
                continue;
            }
            let (a, b) = (bare(self.arena, g, percent), bare(self.arena, p, percent));
            if a.is_some() != b.is_some() {
                let outcome = self.equal(a.unwrap_or(g), b.unwrap_or(p));
                if outcome.is_same() {
                    return outcome;
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
        if self.depth > 64 {
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

    /// The expression without what only labels it: `x \in S`, `A(1,2)`.
    fn reduced(&mut self, id: Id) -> Id {
        let mut id = id;
        for _ in 0..8 {
            match self.arena.node(id) {
                Node::Chain(items, ops) if self.arena.chain_ops(*ops, *items) == [RelOp::In] => {
                    let [element, set] = *self.arena.list(*items) else { return id };
                    if !matches!(self.arena.node(element), Node::Sym(_)) {
                        return id;
                    }
                    id = set;
                }
                Node::Mul(ids) => {
                    let [name, group] = *self.arena.list(*ids) else { return id };
                    let named = matches!(self.arena.node(name), Node::Sym(_));
                    let pair = matches!(self.arena.node(group), Node::Group(Bracket::Round, Bracket::Round, items) if items.len() > 1);
                    if !named || !pair {
                        return id;
                    }
                    id = group;
                }
                Node::Group(Bracket::Square, Bracket::Square, items) if items.len() == 1 => {
                    let inner = self.arena.list(*items)[0];
                    if matches!(self.arena.node(inner), Node::Group(..)) {
                        return id;
                    }
                    id = inner;
                }
                _ => return id,
            }
        }
        id
    }

    fn has_plus_minus(&self, id: Id) -> bool {
        self.arena.any(id, &|node| matches!(node, Node::PlusMinus(..)))
    }

    fn kind(&self, id: Id) -> Kind {
        match self.arena.node(id) {
            Node::Text(_) => Kind::Text,
            Node::Matrix(..) => Kind::Matrix,
            Node::Congruence(_) => Kind::Congruence,
            Node::Ratio(_) => Kind::Ratio,
            Node::Named(NamedSet::Empty) => Kind::Many,
            Node::Named(_) => Kind::Region,
            Node::Builder(..) => Kind::Region,
            Node::SetOp(_, a, b) => {
                let finite = |id: Id| self.kind(id) == Kind::Many;
                if finite(*a) && finite(*b) { Kind::Many } else { Kind::Region }
            }
            Node::Group(open, close, items) => self.group_kind(*open, *close, self.arena.list(*items)),
            Node::List(joint, items) => self.list_kind(*joint, self.arena.list(*items)),
            Node::Chain(items, ops) => self.chain_kind(self.arena.list(*items), self.arena.chain_ops(*ops, *items), id),
            Node::Mul(ids) | Node::Add(ids) if self.arena.list(*ids).iter().any(|id| self.kind(*id) == Kind::Matrix) => Kind::Matrix,
            Node::Div(a, _) | Node::Neg(a) if self.kind(*a) == Kind::Matrix => Kind::Matrix,
            _ if self.has_plus_minus(id) => Kind::Many,
            _ => Kind::Scalar,
        }
    }

    fn group_kind(&self, open: Bracket, close: Bracket, items: &[Id]) -> Kind {
        let rows = |id: &Id| matches!(self.arena.node(*id), Node::Group(Bracket::Square, Bracket::Square, _));
        match (open, close) {
            (Bracket::Curly, _) => Kind::Many,
            (Bracket::Square, Bracket::Square) if !items.is_empty() && items.iter().all(rows) => Kind::Matrix,
            (Bracket::Round, Bracket::Round) if items.len() == 2 => Kind::Pair,
            (Bracket::Round, Bracket::Round) | (Bracket::Angle, _) => Kind::Tuple,
            _ if items.len() == 2 => Kind::Interval,
            _ => Kind::Tuple,
        }
    }

    fn list_kind(&self, joint: Joint, items: &[Id]) -> Kind {
        let kinds = |test: &dyn Fn(Kind) -> bool| items.iter().all(|id| test(self.kind(*id)));
        let unknowns: Vec<Option<Sym>> = items.iter().map(|id| self.assigned(*id).map(|(sym, _)| sym)).collect();
        if unknowns.iter().all(Option::is_some) {
            let same = unknowns.iter().all(|u| *u == unknowns[0]);
            let distinct = unknowns.iter().enumerate().all(|(i, u)| !unknowns[..i].contains(u));
            return if same {
                Kind::Many
            } else if distinct {
                Kind::Assignments
            } else {
                Kind::System
            };
        }
        // "x = 2, 3"
        if unknowns[0].is_some() && items[1..].iter().all(|id| self.kind(*id) == Kind::Scalar) {
            return Kind::Many;
        }
        if kinds(&|k| matches!(k, Kind::Region)) {
            return Kind::Region;
        }
        if joint != Joint::Comma && items.iter().all(|id| self.is_interval_like(*id)) && items.iter().any(|id| self.has_infinity(*id)) {
            return Kind::Region;
        }
        if kinds(&|k| k == Kind::Equation) {
            return Kind::System;
        }
        Kind::Many
    }

    fn is_interval_like(&self, id: Id) -> bool {
        matches!(self.kind(id), Kind::Interval | Kind::Pair | Kind::Region)
    }

    fn has_infinity(&self, id: Id) -> bool {
        self.arena.any(id, &|node| matches!(node, Node::Infinity))
    }

    fn chain_kind(&self, items: &[Id], ops: &[RelOp], id: Id) -> Kind {
        if ops.iter().all(|op| matches!(op, RelOp::Eq | RelOp::Approx)) {
            return Kind::Equation;
        }
        if ops.iter().all(|op| op.is_order() || *op == RelOp::Ne || *op == RelOp::In) && self.one_symbol(id).is_some() {
            return Kind::Region;
        }
        let _ = items;
        Kind::Relation
    }

    /// The only symbol below `id`, when there is exactly one and nothing else is unknown.
    fn one_symbol(&self, id: Id) -> Option<Sym> {
        let mut uses = Vec::new();
        super::eval::uses(self.arena, id, &mut uses);
        let mut occurring = uses.iter().enumerate().filter(|(_, u)| u.occurs).map(|(sym, _)| sym as Sym);
        let sym = occurring.next()?;
        let unknown = self.arena.any(id, &|node| matches!(node, Node::Apply(..) | Node::Text(_)));
        (occurring.next().is_none() && !unknown).then_some(sym)
    }

    /// The unknown and the value of `x = 3`.
    fn assigned(&self, id: Id) -> Option<(Sym, Id)> {
        let Node::Chain(items, ops) = self.arena.node(id) else { return None };
        let items_list = self.arena.list(*items);
        if !self.arena.chain_ops(*ops, *items).iter().all(|op| *op == RelOp::Eq) {
            return None;
        }
        let (first, last) = (items_list.first()?, items_list.last()?);
        let sym = |id: &Id| match self.arena.node(*id) {
            Node::Sym(sym) => Some(*sym),
            _ => None,
        };
        match (sym(first), sym(last)) {
            (Some(unknown), _) => Some((unknown, *last)),
            (None, Some(unknown)) if items_list.len() == 2 => Some((unknown, *first)),
            _ => None,
        }
    }

    /// Whether a left side is only a name for the value on the right.
    fn is_name(&self, id: Id) -> bool {
        match self.arena.node(id) {
            Node::Sym(_) | Node::Apply(..) | Node::Text(_) => true,
            Node::Const(Const::I | Const::E) => true,
            Node::Group(Bracket::Round, Bracket::Round, items) => self.arena.list(*items).iter().all(|id| self.is_name(*id)),
            Node::Fn(Func::Abs | Func::Conj, inner) => matches!(self.arena.node(*inner), Node::Mul(_)) && self.is_name(*inner),
            // AB, ∠ABC, ΔABC
            Node::Mul(ids) => self.arena.list(*ids).iter().all(|id| match self.arena.node(*id) {
                Node::Sym(sym) => self.arena.name(*sym).chars().next().is_some_and(|c| c.is_uppercase() || c == '∠'),
                _ => false,
            }),
            Node::Derivative(..) => true,
            _ => false,
        }
    }
}

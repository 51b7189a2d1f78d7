//! Sets, lists, tuples, ratios and brackets.

use super::{Comparison, Kind, Outcome, Value};
use crate::Reason;
use crate::math::ast::{Bracket, Id, NamedSet, Node, RelOp, SetOp};
use crate::math::rational::Rational;

/// The most members of a finite collection, and of one whose members must be matched pair by pair.
const MAX_MEMBERS: usize = 4096;
const MAX_MATCHED: usize = 64;

impl Comparison<'_> {
    /// The members of a finite collection; a lone value is a collection of one.
    pub(super) fn members(&mut self, id: Id, out: &mut Vec<Value>) -> Option<()> {
        let id = self.reduced(id);
        match *self.arena.node(id) {
            Node::Named(NamedSet::Empty) => {}
            Node::Group(Bracket::Curly, _, items) | Node::List(_, items) => {
                let items = self.arena.list(items).to_vec();
                self.listed(&items, out)?;
            }
            Node::SetOp(op, a, b) => {
                let (mut left, mut right) = (Vec::new(), Vec::new());
                self.members(a, &mut left)?;
                self.members(b, &mut right)?;
                match op {
                    SetOp::Union => out.extend(left.into_iter().chain(right)),
                    SetOp::Intersection | SetOp::Difference => {
                        for value in left {
                            let found = right.iter().any(|other| self.values(value, *other).is_same());
                            if found == (op == SetOp::Intersection) {
                                out.push(value);
                            }
                        }
                    }
                }
            }
            _ if self.has_plus_minus(id) => {
                // `x = 1 ± 2` is a collection of values of x.
                let id = self.assigned(id).map_or(id, |(_, value)| value);
                out.extend([(id, 1), (id, -1)]);
            }
            _ => out.push((id, 1)),
        }
        (out.len() <= MAX_MEMBERS).then_some(())
    }

    fn listed(&mut self, items: &[Id], out: &mut Vec<Value>) -> Option<()> {
        for (i, item) in items.iter().enumerate() {
            if matches!(self.arena.node(*item), Node::Dots) {
                self.fill(items, i, out)?;
                continue;
            }
            // "x = 1 or x = 2" lists values of x.
            let value = self.assigned(*item).map_or(*item, |(_, value)| value);
            if self.has_plus_minus(value) {
                out.extend([(value, 1), (value, -1)]);
            } else {
                out.push((value, 1));
            }
            if out.len() > MAX_MEMBERS {
                return None;
            }
        }
        Some(())
    }

    /// The numbers between the ends of `1, 2, …, 5`.
    fn fill(&mut self, items: &[Id], at: usize, out: &mut Vec<Value>) -> Option<()> {
        let mut number = |i: usize| self.exact((*items.get(i)?, 1)).ok()?.as_i64();
        let last = number(at.checked_sub(1)?)?;
        let end = number(at + 1)?;
        let step = match at.checked_sub(2).and_then(&mut number) {
            Some(before) => last.checked_sub(before)?,
            None => (end - last).signum(),
        };
        if step == 0 || (end - last) % step != 0 || (end - last) / step > MAX_MEMBERS as i64 || (end - last) / step < 1 {
            return None;
        }
        let mut next = last + step;
        while next != end {
            let id = self.arena.push(Node::Num(Rational::int(next)))?;
            out.push((id, 1));
            next += step;
        }
        Some(())
    }

    /// Compares two members.
    fn values(&mut self, a: Value, b: Value) -> Outcome {
        if self.has_plus_minus(a.0) || self.has_plus_minus(b.0) {
            return self.scalar(a, b);
        }
        self.equal(a.0, b.0)
    }

    /// Drops members that are equal to earlier ones; `None` when there are too many to tell.
    fn distinct(&mut self, members: Vec<Value>) -> Option<(Vec<Value>, Vec<Rational>)> {
        let mut numbers = Vec::new();
        let mut others: Vec<Value> = Vec::new();
        for value in members {
            let kind = if self.has_plus_minus(value.0) { Kind::Scalar } else { self.kind(value.0) };
            let exact = if kind == Kind::Scalar { self.exact(value).ok() } else { None };
            match exact {
                Some(number) => numbers.push(number),
                None => {
                    let mut known = false;
                    for other in &others {
                        known = known || self.values(*other, value).is_same();
                    }
                    if !known {
                        others.push(value);
                    }
                }
            }
            if others.len() > MAX_MATCHED {
                return None;
            }
        }
        numbers.sort_by(Rational::cmp);
        numbers.dedup();
        Some((others, numbers))
    }

    pub(super) fn collections(&mut self, g: Id, p: Id, kind: Kind, other: Kind) -> Outcome {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        if self.members(g, &mut ours).is_none() || self.members(p, &mut theirs).is_none() {
            return Outcome::Limit;
        }
        // Words and tuples are one value, not a collection, unless the other side lists some.
        if let ([a], [b]) = (&ours[..], &theirs[..]) {
            if (a.0, b.0) == (g, p) && self.kind(g) == Kind::Scalar && self.kind(p) == Kind::Scalar {
                return self.scalar(*a, *b);
            }
            if (a.0, b.0) != (g, p) {
                return self.values(*a, *b);
            }
            return Outcome::Different;
        }
        if let Some(outcome) = self.list_against_tuple(g, p, kind, other) {
            return outcome;
        }
        if self.policy.hedging
            && let [wanted] = ours[..]
        {
            let right = theirs.iter().map(|value| self.values(wanted, *value)).find(|outcome| outcome.is_same());
            return right.unwrap_or(Outcome::Different);
        }
        let (Some((ours, our_numbers)), Some((theirs, their_numbers))) = (self.distinct(ours), self.distinct(theirs)) else {
            return Outcome::Limit;
        };
        let wanted = ours.len() + our_numbers.len();
        let given = theirs.len() + their_numbers.len();
        if wanted == given {
            let mut reason = Reason::EqualExact;
            // A number may equal a value that is not written as one: match what exact arithmetic leaves over.
            let mut rest: Vec<&Rational> = their_numbers.iter().filter(|n| our_numbers.binary_search_by(|m| m.cmp(n)).is_err()).collect();
            let missing: Vec<&Rational> = our_numbers.iter().filter(|n| their_numbers.binary_search_by(|m| m.cmp(n)).is_err()).collect();
            if rest.is_empty() && missing.is_empty() && ours.is_empty() && theirs.is_empty() {
                return Outcome::Same(reason);
            }
            if rest.len() + missing.len() > MAX_MATCHED {
                return Outcome::Different;
            }
            let mut number = |n: &Rational| self.arena.push(Node::Num(n.clone())).map(|id| (id, 1));
            let mut a = ours;
            a.extend(missing.into_iter().filter_map(&mut number));
            let mut b = theirs;
            b.extend(rest.drain(..).filter_map(&mut number));
            if a.len() != b.len() {
                return Outcome::Different;
            }
            for value in a {
                let mut found = None;
                for (i, other) in b.iter().enumerate() {
                    if let Outcome::Same(r) = self.values(value, *other) {
                        found = Some((i, r));
                        break;
                    }
                    if self.budget.is_spent() {
                        return Outcome::Limit;
                    }
                }
                match found {
                    Some((i, r)) => {
                        b.swap_remove(i);
                        if r != Reason::EqualExact {
                            reason = r;
                        }
                    }
                    None => return Outcome::Different,
                }
            }
            return Outcome::Same(reason);
        }
        if wanted == 1 && given > 1 { Outcome::Hedged } else { Outcome::Different }
    }

    /// A tuple and a list without brackets are the same when the order is.
    fn list_against_tuple(&mut self, g: Id, p: Id, kind: Kind, other: Kind) -> Option<Outcome> {
        let is_list = |id: Id, arena: &crate::math::ast::Arena| matches!(arena.node(id), Node::List(..));
        let tuple = |kind: Kind| matches!(kind, Kind::Pair | Kind::Tuple);
        let listed = tuple(kind) && is_list(p, self.arena) || tuple(other) && is_list(g, self.arena);
        if !listed {
            return None;
        }
        let items = |id: Id, arena: &crate::math::ast::Arena| match arena.node(id) {
            Node::List(_, ids) | Node::Group(_, _, ids) => arena.list(*ids).to_vec(),
            _ => Vec::new(),
        };
        let (a, b) = (items(g, self.arena), items(p, self.arena));
        Some(self.in_order(&a, &b))
    }

    pub(super) fn in_order(&mut self, a: &[Id], b: &[Id]) -> Outcome {
        if a.len() != b.len() {
            return Outcome::Different;
        }
        let mut reason = Reason::EqualExact;
        for (a, b) in a.iter().zip(b) {
            match self.equal(*a, *b) {
                Outcome::Same(r) if r != Reason::EqualExact => reason = r,
                Outcome::Same(_) => {}
                other => return other,
            }
        }
        Outcome::Same(reason)
    }

    pub(super) fn tuples(&mut self, g: Id, p: Id) -> Outcome {
        let (Node::Group(open, _, a), Node::Group(other, _, b)) = (self.arena.node(g), self.arena.node(p)) else {
            return Outcome::Different;
        };
        // (1,2) is no interval [1,2], but may be the vector ⟨1,2⟩.
        let round = |b: &Bracket| matches!(b, Bracket::Round | Bracket::Angle);
        if round(open) != round(other) && a.len() == 2 {
            return Outcome::Different;
        }
        let (a, b) = (self.arena.list(*a).to_vec(), self.arena.list(*b).to_vec());
        self.in_order(&a, &b)
    }

    /// Intervals: both ends and both brackets.
    pub(super) fn brackets(&mut self, g: Id, p: Id) -> Outcome {
        let (Node::Group(o1, c1, a), Node::Group(o2, c2, b)) = (self.arena.node(g), self.arena.node(p)) else {
            return Outcome::Different;
        };
        // An end is open under a round or a reversed bracket.
        let open = |b: &Bracket| matches!(b, Bracket::Round | Bracket::Reversed);
        if open(o1) != open(o2) || open(c1) != open(c2) {
            return Outcome::Different;
        }
        let (a, b) = (self.arena.list(*a).to_vec(), self.arena.list(*b).to_vec());
        self.in_order(&a, &b)
    }

    /// 3 : 4 and 6 : 8 are one ratio; times of day compare as written.
    pub(super) fn ratios(&mut self, g: Id, p: Id) -> Outcome {
        let parts = |id: Id, arena: &crate::math::ast::Arena| match arena.node(id) {
            Node::Ratio(ids) => arena.list(*ids).to_vec(),
            _ => Vec::new(),
        };
        let (a, b) = (parts(g, self.arena), parts(p, self.arena));
        let same = self.in_order(&a, &b);
        if same.is_same() || a.len() != b.len() {
            return same;
        }
        let numbers = |this: &mut Self, ids: &[Id]| ids.iter().map(|id| this.exact((*id, 1)).ok()).collect::<Option<Vec<_>>>();
        let (Some(a), Some(b)) = (numbers(self, &a), numbers(self, &b)) else { return Outcome::Different };
        if b.iter().chain(&a).any(Rational::is_zero) {
            return Outcome::Different;
        }
        for (x, y) in a.iter().zip(&b) {
            match (x.mul(&b[0], self.budget), y.mul(&a[0], self.budget)) {
                (Ok(l), Ok(r)) if l == r => {}
                _ => return Outcome::Different,
            }
        }
        Outcome::Same(Reason::EqualExact)
    }

    /// `x = 1, y = 2` in any order.
    pub(super) fn assignments(&mut self, g: Id, p: Id) -> Outcome {
        let (ours, theirs) = (self.unknowns(g), self.unknowns(p));
        if ours.len() != theirs.len() {
            return Outcome::Different;
        }
        for (unknown, value) in ours {
            let Some((_, other)) = theirs.iter().find(|(name, _)| *name == unknown) else { return Outcome::Different };
            let outcome = self.equal(value, *other);
            if !outcome.is_same() {
                return outcome;
            }
        }
        Outcome::Same(Reason::EqualExact)
    }

    fn unknowns(&self, id: Id) -> Vec<(crate::math::ast::Sym, Id)> {
        match self.arena.node(id) {
            Node::List(_, ids) => self.arena.list(*ids).iter().filter_map(|id| self.assigned(*id)).collect(),
            _ => Vec::new(),
        }
    }

    /// `x = 1, y = 2` against `(1, 2)`.
    pub(super) fn assignments_in_order(&mut self, assignments: Id, values: Id, swapped: bool) -> Outcome {
        let mut ours = self.unknowns(assignments);
        let mut theirs = match self.arena.node(values) {
            Node::Group(Bracket::Curly, ..) => return Outcome::Different,
            Node::Group(_, _, ids) | Node::List(_, ids) => self.arena.list(*ids).to_vec(),
            _ => return Outcome::Different,
        };
        if theirs.len() != ours.len() {
            return Outcome::Different;
        }
        for id in &mut theirs {
            if let Some(value) = self.value_of_equation(*id) {
                *id = value;
            }
        }
        for by_name in [false, true] {
            if by_name {
                // Unknowns may be listed in another order than the alphabet's, in which tuples are meant.
                ours.sort_by(|a, b| self.arena.name(a.0).cmp(self.arena.name(b.0)));
            }
            let a: Vec<Id> = ours.iter().map(|(_, value)| *value).collect();
            let outcome = if swapped { self.in_order(&theirs, &a) } else { self.in_order(&a, &theirs) };
            if outcome.is_same() {
                return outcome;
            }
        }
        Outcome::Different
    }

    pub(super) fn congruences(&mut self, g: Id, p: Id) -> Outcome {
        let (&Node::Congruence([a, b, m]), &Node::Congruence([c, d, n])) = (self.arena.node(g), self.arena.node(p)) else {
            return Outcome::Different;
        };
        if !self.equal(a, c).is_same() || !self.equal(m, n).is_same() {
            return Outcome::Different;
        }
        let (Ok(b), Ok(d), Ok(m)) = (self.exact((b, 1)), self.exact((d, 1)), self.exact((m, 1))) else {
            return self.equal(b, d);
        };
        let difference = b.sub(&d, self.budget).and_then(|x| x.modulo(&m, self.budget));
        if difference.is_ok_and(|x| x.is_zero()) { Outcome::Same(Reason::EqualExact) } else { Outcome::Different }
    }

    /// Chains in several unknowns: the same items in the same order, read from the left or from the right.
    pub(super) fn relations(&mut self, g: Id, p: Id) -> Outcome {
        let (&Node::Chain(a, ops_a), &Node::Chain(b, ops_b)) = (self.arena.node(g), self.arena.node(p)) else {
            return Outcome::Different;
        };
        let chain = |this: &Self, items, ops| {
            let mut items = this.arena.list(items).to_vec();
            let mut ops: Vec<RelOp> = ops;
            if ops.iter().any(|op| matches!(op, RelOp::Gt | RelOp::Ge)) {
                items.reverse();
                ops = ops.iter().rev().map(|op| op.flipped()).collect();
            }
            (items, ops)
        };
        let (ours, our_ops) = chain(self, a, self.arena.chain_ops(ops_a, a).to_vec());
        let (theirs, their_ops) = chain(self, b, self.arena.chain_ops(ops_b, b).to_vec());
        if our_ops != their_ops {
            return Outcome::Different;
        }
        let outcome = self.in_order(&ours, &theirs);
        if outcome.is_same() || our_ops.len() != 1 {
            return outcome;
        }
        match our_ops[0] {
            op if op.is_order() => self.proportional((ours[0], ours[1]), (theirs[0], theirs[1]), true),
            RelOp::Ne => self.proportional((ours[0], ours[1]), (theirs[0], theirs[1]), false),
            _ => Outcome::Different,
        }
    }
}

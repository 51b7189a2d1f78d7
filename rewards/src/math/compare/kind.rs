//! What kind of thing an expression is.

use super::Comparison;
use crate::math::ast::{Bracket, Const, Func, Id, Joint, NamedSet, Node, RelOp, Sym};

/// What an expression is, as far as that decides how to compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

impl Comparison<'_> {
    /// The expression without what only labels it: `x \in S`, `A(1,2)`.
    pub(super) fn reduced(&mut self, id: Id) -> Id {
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

    pub(super) fn has_plus_minus(&self, id: Id) -> bool {
        self.arena.any(id, &|node| matches!(node, Node::PlusMinus(..)))
    }

    pub(super) fn kind(&self, id: Id) -> Kind {
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

    pub(super) fn group_kind(&self, open: Bracket, close: Bracket, items: &[Id]) -> Kind {
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

    pub(super) fn list_kind(&self, joint: Joint, items: &[Id]) -> Kind {
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

    pub(super) fn is_interval_like(&self, id: Id) -> bool {
        matches!(self.kind(id), Kind::Interval | Kind::Pair | Kind::Region)
    }

    pub(super) fn has_infinity(&self, id: Id) -> bool {
        self.arena.any(id, &|node| matches!(node, Node::Infinity))
    }

    pub(super) fn chain_kind(&self, items: &[Id], ops: &[RelOp], id: Id) -> Kind {
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
    pub(super) fn one_symbol(&self, id: Id) -> Option<Sym> {
        let mut uses = Vec::new();
        crate::math::eval::uses(self.arena, id, &mut uses);
        let mut occurring = uses.iter().enumerate().filter(|(_, u)| u.occurs).map(|(sym, _)| sym as Sym);
        let sym = occurring.next()?;
        let unknown = self.arena.any(id, &|node| matches!(node, Node::Apply(..) | Node::Text(_)));
        (occurring.next().is_none() && !unknown).then_some(sym)
    }

    /// The unknown and the value of `x = 3`.
    pub(super) fn assigned(&self, id: Id) -> Option<(Sym, Id)> {
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
    pub(super) fn is_name(&self, id: Id) -> bool {
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

//! Math-Verify's comparison: relations and assignments first, then numbers, then what is left for algebra.

use super::parse::Parsed;
use crate::math::ast::{Arena, Id, Node, RelOp};
use crate::math::budget::Budget;
use crate::math::compare::{Comparison, Policy, Tolerance, UnitPolicy};

/// Differences below this are cut off to zero (15 digits).
const CHOP: f64 = 1e-15;

pub(super) fn verify(gold: &Parsed, answer: &Parsed, arena: &mut Arena, budget: &mut Budget) -> bool {
    if gold.text == answer.text {
        return true;
    }
    if let (Some(a), Some(b)) = (&gold.letters, &answer.letters) {
        // A symbol, a word and a product of symbols are equal when they spell the same; case counts for nothing.
        let products = !gold.text.contains("\\text") && !answer.text.contains("\\text");
        if a == b || !products || a.chars().any(|c| c.is_ascii_digit()) {
            return a == b;
        }
    }
    // A word is equal to nothing but its letters.
    let word = |parsed: &Parsed| parsed.letters.is_some() && parsed.text.contains("\\text");
    if word(gold) && answer.text.contains("\\text") || word(answer) && gold.text.contains("\\text") {
        return false;
    }
    let (Some(g), Some(p)) = (gold.root, answer.root) else { return false };
    let decimal = gold.decimal || answer.decimal;
    // Six places where one side is a decimal number.
    let zero = |arena: &Arena, id: Id| matches!(arena.node(id), Node::Num(n) if n.is_zero());
    let atom = |arena: &Arena, id: Id| matches!(arena.node(id), Node::Num(_) | Node::Const(_) | Node::Neg(_));
    let rounded = decimal && !zero(arena, g) && !zero(arena, p);
    let chopped = !atom(arena, g) && !atom(arena, p);
    let tolerance = Tolerance {
        abs: if rounded {
            0.5e-6
        } else if chopped {
            CHOP
        } else {
            0.0
        },
        rel: 0.0,
    };
    let policy = Policy { tolerance, percent_either: true, units: UnitPolicy::Ignore, hedging: false };
    let mut comparison = Comparison::new(arena, budget, policy);
    roots(&mut comparison, g, p)
}

/// The sides and the operator of a relation between two sides, and the last side of a longer one.
fn chain(arena: &Arena, id: Id) -> Option<(Vec<Id>, Vec<RelOp>)> {
    let &Node::Chain(items, ops) = arena.node(id) else { return None };
    Some((arena.list(items).to_vec(), arena.chain_ops(ops, items).to_vec()))
}

fn is_equation(ops: &[RelOp]) -> bool {
    ops.iter().all(|op| matches!(op, RelOp::Eq | RelOp::Approx))
}

/// A list of relations, which is a set of them and no set of numbers.
fn lists_relations(arena: &Arena, id: Id) -> bool {
    match arena.node(id) {
        Node::List(_, ids) => {
            arena.list(*ids).iter().any(|id| matches!(chain(arena, *id), Some((_, ops)) if ops.iter().any(|op| op.is_order())))
        }
        _ => false,
    }
}

fn roots(comparison: &mut Comparison<'_>, g: Id, p: Id) -> bool {
    let arena = &*comparison.arena;
    if lists_relations(arena, g) || lists_relations(arena, p) {
        return false;
    }
    let matrix = |id: Id| matches!(arena.node(id), Node::Matrix(..));
    let tuple = |id: Id| matches!(arena.node(id), Node::Group(..));
    if matrix(g) && tuple(p) || tuple(g) && matrix(p) {
        return false;
    }
    let signs = |id: Id| arena.any(id, &|node| matches!(node, Node::PlusMinus(..)));
    let relation = |id: Id| arena.any(id, &|node| matches!(node, Node::Chain(..)));
    // `x = ±2` is one equation, and no list of two.
    if signs(g) != signs(p) && relation(g) && relation(p) {
        return false;
    }
    match (chain(comparison.arena, g), chain(comparison.arena, p)) {
        (None, Some((items, ops))) if is_equation(&ops) => plain(comparison, g, items[items.len() - 1]),
        (None, Some((items, ops))) if ops == [RelOp::In] => plain(comparison, g, items[1]),
        (None, Some(_)) => false,
        (Some((items, ops)), None) if is_equation(&ops) => {
            let named = matches!(comparison.arena.node(items[0]), Node::Sym(_) | Node::Apply(..) | Node::Text(_) | Node::Group(..));
            named && plain(comparison, items[items.len() - 1], p)
        }
        (Some((items, ops)), None) if ops == [RelOp::In] => plain(comparison, items[1], p),
        // A relation against a set: the relation becomes the set of what satisfies it.
        (Some(_), None) => plain(comparison, g, p),
        (Some((a, ops)), Some((b, others))) => {
            if ops == [RelOp::In] && others == [RelOp::In] {
                return plain(comparison, a[1], b[1]);
            }
            if ops == [RelOp::In] {
                return false;
            }
            if others == [RelOp::In] {
                return plain(comparison, g, b[1]);
            }
            relations(comparison, (&a, &ops), (&b, &others), g, p)
        }
        (None, None) => plain(comparison, g, p),
    }
}

fn relations(comparison: &mut Comparison<'_>, (a, ops): (&[Id], &[RelOp]), (b, others): (&[Id], &[RelOp]), g: Id, p: Id) -> bool {
    if is_equation(ops) && is_equation(others) {
        // `k = … = v` is cut to `k = v`.
        return comparison.equal(g, p).is_same();
    }
    if ops.len() != 1 || others.len() != 1 {
        return ops == others && a.iter().zip(b).all(|(x, y)| plain(comparison, *x, *y));
    }
    let sides = |items: &[Id]| (items[0], items[1]);
    let (left, right) = sides(a);
    let (mut other_left, mut other_right) = sides(b);
    if ops[0] != others[0] {
        if ops[0] != others[0].flipped() {
            return false;
        }
        (other_left, other_right) = (other_right, other_left);
    }
    let difference = |arena: &mut Arena, (a, b): (Id, Id)| {
        let minus = arena.push(Node::Neg(b))?;
        let ids = arena.ids(&[a, minus]);
        arena.push(Node::Add(ids))
    };
    let (Some(x), Some(y)) = (difference(comparison.arena, (left, right)), difference(comparison.arena, (other_left, other_right))) else {
        return false;
    };
    comparison.equal(x, y).is_same()
}

fn plain(comparison: &mut Comparison<'_>, g: Id, p: Id) -> bool {
    let inner = |arena: &mut Arena, id: Id| match *arena.node(id) {
        Node::Percent(inner) => Some(inner),
        Node::Neg(negated) => match *arena.node(negated) {
            Node::Percent(inner) => arena.push(Node::Neg(inner)),
            _ => None,
        },
        _ => None,
    };
    let whole = |arena: &Arena, id: Id| match arena.node(id) {
        Node::Num(n) => n.is_integer(),
        Node::Neg(inner) => matches!(arena.node(*inner), Node::Num(n) if n.is_integer()),
        _ => false,
    };
    let (a, b) = (inner(comparison.arena, g), inner(comparison.arena, p));
    // 28% is 28, for whole numbers.
    if a.is_some() != b.is_some() && whole(comparison.arena, a.unwrap_or(g)) && whole(comparison.arena, b.unwrap_or(p)) {
        return comparison.equal(a.unwrap_or(g), b.unwrap_or(p)).is_same() || comparison.equal(g, p).is_same();
    }
    let ratio = |arena: &mut Arena, id: Id| match *arena.node(id) {
        Node::Ratio(ids) if ids.len() == 2 => {
            let [a, b] = *arena.list(ids) else { return id };
            arena.push(Node::Div(a, b)).unwrap_or(id)
        }
        _ => id,
    };
    let (g, p) = (ratio(comparison.arena, g), ratio(comparison.arena, p));
    comparison.equal(g, p).is_same()
}

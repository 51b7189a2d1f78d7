//! Three ways to work an expression out: exactly, modulo a prime, and to 31 digits at a point.

mod calculus;
pub(crate) mod exact;
pub(crate) mod modular;
pub(crate) mod numeric;

use super::ast::{Arena, Id, Node, Over, Sym};

/// How a symbol occurs, which decides the numbers that may stand for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub occurs: bool,
    /// In an exponent: a whole number in modular arithmetic.
    pub exponent: bool,
    /// In a factorial, a binomial, a remainder or a bound of a sum: a whole number everywhere.
    pub count: bool,
}

/// The uses of all symbols below `id`, by symbol; bound variables are left out.
pub(crate) fn uses(arena: &Arena, id: Id, out: &mut Vec<Use>) {
    out.resize(arena.num_syms(), Use::default());
    walk(arena, id, Use { occurs: true, ..Use::default() }, &mut Vec::new(), out);
}

fn walk(arena: &Arena, id: Id, how: Use, bound: &mut Vec<Sym>, out: &mut [Use]) {
    let exponent = Use { exponent: true, ..how };
    let count = Use { count: true, ..how };
    match arena.node(id) {
        Node::Sym(sym) => {
            if !bound.contains(sym) {
                let entry = &mut out[*sym as usize];
                entry.occurs = true;
                entry.exponent |= how.exponent;
                entry.count |= how.count;
            }
        }
        Node::Pow(base, power) => {
            walk(arena, *base, how, bound, out);
            walk(arena, *power, exponent, bound, out);
        }
        Node::Factorial(a) => walk(arena, *a, count, bound, out),
        Node::Binomial(a, b) | Node::Mod(a, b) => {
            walk(arena, *a, count, bound, out);
            walk(arena, *b, count, bound, out);
        }
        Node::Over(_, variable, [from, to, body]) => {
            walk(arena, *from, count, bound, out);
            walk(arena, *to, count, bound, out);
            bound.push(*variable);
            walk(arena, *body, how, bound, out);
            bound.pop();
        }
        Node::Integral(variable, [from, to, body]) => {
            walk(arena, *from, how, bound, out);
            walk(arena, *to, how, bound, out);
            bound.push(*variable);
            walk(arena, *body, how, bound, out);
            bound.pop();
        }
        Node::Limit(variable, [target, body], _) => {
            walk(arena, *target, how, bound, out);
            bound.push(*variable);
            walk(arena, *body, how, bound, out);
            bound.pop();
        }
        node => arena.for_each_child(node, |child| walk(arena, child, how, bound, out)),
    }
}

/// A number that stands for an unknown function at given arguments: the same for the same, spread otherwise.
fn mix(seed: u64, value: u64) -> u64 {
    let mut x = seed ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The most terms of a sum or factors of a product over a range.
const MAX_TERMS: i64 = 10_000;

fn is_product(over: Over) -> bool {
    over == Over::Product
}

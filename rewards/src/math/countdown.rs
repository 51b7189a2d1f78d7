//! Plain arithmetic on whole numbers, as countdown wants it.

use super::ast::{Arena, RelOp};
use super::budget::Budget;
use super::decode::decode;
use super::eval::exact::Exact;
use super::lex::{Kind, Reading, Token, lex};
use super::parse::parse;
use super::words::Word;

/// An expression of whole numbers with + − × ÷ and brackets.
pub(crate) struct Arithmetic {
    pub literals: Vec<i64>,
    /// Its value, when that is a whole number.
    pub value: Option<i64>,
}

/// Reads an expression, or the left side of `expression = value`; `None` when it is something else.
pub(crate) fn arithmetic(text: &str) -> Option<Arithmetic> {
    let text = decode(super::wrappers::unwrap(text).0);
    if text.len() > 1024 {
        return None;
    }
    let lexed = lex(&text, Reading { thousands: false })?;
    let mut tokens: Vec<Token<'_>> = lexed.tokens;
    if let Some(at) = tokens.iter().position(|t| t.kind == Kind::Word(Word::Rel(RelOp::Eq))) {
        tokens.truncate(at);
    }
    let mut literals = Vec::new();
    for token in &tokens {
        match &token.kind {
            Kind::Number(n) if n.is_whole() && n.digits.len() <= 15 => literals.push(std::str::from_utf8(&n.digits).ok()?.parse().ok()?),
            Kind::Sign('+' | '-' | '/' | '(' | ')') | Kind::Word(Word::Times | Word::Divide) => {}
            _ => return None,
        }
    }
    let mut arena = Arena::default();
    let mut budget = Budget::new(10_000);
    let (root, used) = parse(&tokens, &mut arena, &mut budget)?;
    if used != tokens.len() {
        return None;
    }
    let value = Exact { arena: &arena, budget: &mut budget, bound: Vec::new(), sign: 1 }.eval(root).ok();
    Some(Arithmetic { literals, value: value.and_then(|v| v.as_i64()) })
}

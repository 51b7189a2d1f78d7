//! Normalized LaTeX to an expression, with Math-Verify's conventions.

use std::sync::LazyLock;

use regex::Regex;

use super::normalize::{for_parsing, normalize};
use super::pattern::Found;
use crate::math::ast::{Arena, Const, Id, Node};
use crate::math::budget::Budget;
use crate::math::decode::decode;
use crate::math::lex::{Kind, Reading, lex};
use crate::math::parse::parse;

/// At most an expression and a text, of which one is enough to be equal.
pub(super) struct Parsed {
    pub root: Option<Id>,
    pub text: String,
    /// All letters in order, when the answer is letters only: a symbol, a word or a product of symbols.
    pub letters: Option<String>,
    /// The answer is one decimal number.
    pub decimal: bool,
}

pub(super) fn gold(found: &Found, arena: &mut Arena, budget: &mut Budget) -> Option<Parsed> {
    read(found, true, arena, budget)
}

pub(super) fn completion(found: &Found, arena: &mut Arena, budget: &mut Budget) -> Option<Parsed> {
    read(found, false, arena, budget)
}

fn read(found: &Found, gold: bool, arena: &mut Arena, budget: &mut Budget) -> Option<Parsed> {
    let text = if found.expression { found.text.clone() } else { normalize(&found.text) };
    let (root, decimal) = if is_beyond_the_grammar(&text, gold) { (None, false) } else { expression(&for_parsing(&text), arena, budget) };
    let root = match root {
        Some(root) if found.percent && !matches!(arena.node(root), Node::Percent(_)) => arena.push(Node::Percent(root)),
        root => root,
    };
    if found.expression && root.is_none() {
        return None;
    }
    let foreign = !gold && !text.is_ascii() && !text.contains("\\text");
    let letters = if foreign { None } else { letters(&text) };
    (root.is_some() || !text.is_empty()).then_some(Parsed { root, text, letters, decimal })
}

/// The letters of an answer that has nothing else.
fn letters(text: &str) -> Option<String> {
    let mut s = text.to_lowercase();
    if s.contains("\\text{") {
        s = s.replace("\\text{", "").replace(['}', '(', ')'], "");
    }
    s.retain(|c| !c.is_whitespace());
    if s.len() == 3 && s.starts_with('(') && s.ends_with(')') {
        s = s[1..2].to_owned();
    }
    let words = !s.is_empty() && s.chars().all(|c| c.is_alphanumeric()) && s.chars().any(char::is_alphabetic);
    words.then_some(s)
}

fn expression(text: &str, arena: &mut Arena, budget: &mut Budget) -> (Option<Id>, bool) {
    if text.len() > 8 * 1024 {
        return (None, false);
    }
    let text = decode(text);
    let Some(lexed) = lex(&text, Reading { thousands: true }) else { return (None, false) };
    let tokens = lexed.tokens;
    let decimal = match &tokens[..] {
        [token] | [_, token] => matches!(&token.kind, Kind::Number(n) if n.places > 0),
        _ => false,
    };
    let Some((root, used)) = parse(&tokens, arena, budget) else { return (None, false) };
    if used != tokens.len() {
        return (None, false);
    }
    let i = arena.sym("i");
    arena.replace_constant(root, Const::I, i);
    (Some(root), decimal)
}

fn constant(pattern: &str) -> Regex {
    #[allow(clippy::expect_used)]
    Regex::new(pattern).expect("a constant pattern")
}

/// Commands and signs that the grammar lacks.
static UNREAD: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"\\(?:big|bigl|bigr|Big|color|hspace|phantom|operatorname|not|underline|langle|rangle|varnothing|boxed|_|begin\{(?:smallmatrix|cases|aligned|align|gathered))|~|:=|\\cdot\s*i\b|\*\*|,\s*,|^=|^\\approx|^&|[\x00-\x08]|^\(\d+\)\(\d+\)$|\)_|\[[^\[\]()]*\[$|^\{\}_|----|\.$|\\sqrt\[\d\]\{-|\\\{.*(?::|\\mid)|\[\[|.\\text\{i\}|\\(?:overline|dot|bar)\{\d|\\mathbb\{R\}_|\\text\{inf\}|\de\d|\\text\{[^{}]*[\\^]|\d\s*\\frac.*%",
    )
});
/// What is repaired in gold answers only.
static UNREPAIRED: LazyLock<Regex> = LazyLock::new(|| {
    constant(r"\\frac(?:[^{]|$)|\\sqrt(?:[^{\[]|$)|(?:^|[^\\a-z])(?:sin|cos|tan|ln|log|exp|sqrt|pi)\b|\\text\{[^{}]*\}\s*[\d\\]")
});
const READ_SIGNS: &str = "π×÷−≤≥αβθ±∅";

fn is_beyond_the_grammar(text: &str, gold: bool) -> bool {
    let open = text.bytes().filter(|b| *b == b'{').count();
    let close = text.bytes().filter(|b| *b == b'}').count();
    open != close
        || text.contains("{\\text{")
        || text.contains("\\text{\\")
        || text.contains("\\text{\\text")
        || UNREAD.is_match(text)
        || !gold && (UNREPAIRED.is_match(text) || text.chars().any(|c| !c.is_ascii() && !READ_SIGNS.contains(c)))
}

//! One answer, read: its text, its expression, its unit.

use super::ast::{Arena, Bracket, Id, NamedSet, Node};
use super::budget::Budget;
use super::lex::{Kind, Reading, Token, lex};
use super::parse::parse;
use super::rational::Rational;
use super::text::{self, Choice, Meaning};
use super::units::{self, Measure};
use super::words::Word;
use super::wrappers::unwrap;

/// Longer answers are compared as text only.
const MAX_PARSED_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(crate) struct Answer {
    /// The normal form of the text.
    pub normal: String,
    /// The words without LaTeX.
    pub plain: String,
    /// The expression, when the whole text is one.
    pub root: Option<Id>,
    pub measure: Measure,
    /// The expression when the unit, a single letter, is a variable after all.
    pub with_letter: Option<Id>,
    /// The time of day in minutes, when it is written with AM or PM.
    pub clock: Option<i64>,
    pub choice: Option<Choice>,
    /// The text is words: `\text{…}` without mathematics, or several words.
    pub words: bool,
    /// A comma was read as a thousands separator, so there is another reading.
    pub merged_commas: bool,
}

/// Whether the text is words and no mathematics: letters only, as the argument of `\text` or with no product of letters so long.
fn is_words(text: &str, plain: &str, is_text: bool) -> bool {
    if !plain.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '\'' | '-')) || text.contains(['_', '^']) {
        return false;
    }
    let mut words = plain.split([' ', '-']).filter(|w| !w.is_empty());
    let first = words.next().unwrap_or("");
    let known = |w: &str| super::words::bare_word(w).is_some();
    if first.chars().nth(1).is_none() || plain.split([' ', '-']).any(known) {
        return false;
    }
    is_text || words.next().is_some() && plain.chars().all(|c| c.is_alphabetic() || c == ' ')
}

pub(crate) fn read(text: &str, reading: Reading, arena: &mut Arena, budget: &mut Budget) -> Answer {
    let (text, is_text) = unwrap(text);
    let mut answer = Answer {
        normal: text::normal(text),
        plain: String::new(),
        root: None,
        measure: Measure::Bare,
        with_letter: None,
        clock: None,
        choice: None,
        words: false,
        merged_commas: false,
    };
    if text.len() > MAX_PARSED_BYTES {
        return answer;
    }
    let has_letter = text.bytes().any(|b| b.is_ascii_alphabetic() || b >= 0x80);
    if has_letter {
        answer.plain = text::plain(text);
        answer.choice = text::choice(&answer.plain, false);
        answer.words = is_words(text, &answer.plain, is_text);
        if answer.words && is_text {
            answer.choice = answer.choice.or_else(|| text::choices_in_one_word(&answer.plain, true));
        }
    }
    if answer.words {
        answer.root = text::meaning(&answer.plain).and_then(|meaning| mean(meaning, arena));
        return answer;
    }
    if let Some(lexed) = lex(text, reading) {
        answer.merged_commas = lexed.merged_commas;
        read_tokens(&lexed.tokens, &mut answer, arena, budget);
    }
    let no_expression = answer.root.is_none_or(|root| matches!(arena.node(root), Node::Text(_)));
    if no_expression
        && has_letter
        && let Some(meaning) = text::meaning(&answer.plain)
    {
        answer.root = mean(meaning, arena);
    }
    answer
}

fn mean(meaning: Meaning, arena: &mut Arena) -> Option<Id> {
    let node = match meaning {
        Meaning::Number(n) => Node::Num(Rational::int(n)),
        Meaning::Reals => Node::Named(NamedSet::Reals),
        Meaning::Integers => Node::Named(NamedSet::Integers),
        Meaning::Naturals => Node::Named(NamedSet::Naturals),
        Meaning::Rationals => Node::Named(NamedSet::Rationals),
        Meaning::Complexes => Node::Named(NamedSet::Complexes),
        Meaning::Nothing => Node::Named(NamedSet::Empty),
        Meaning::Infinity => Node::Infinity,
        Meaning::Origin => {
            let zero = arena.push(Node::Num(Rational::ZERO))?;
            let ids = arena.ids(&[zero, zero]);
            Node::Group(Bracket::Round, Bracket::Round, ids)
        }
    };
    arena.push(node)
}

/// Words that may stand before an answer and say nothing.
const LEADING: &[&str] = &[
    "the",
    "answer",
    "final",
    "result",
    "value",
    "is",
    "are",
    "equals",
    "solution",
    "solutions",
    "interval",
    "set",
    "point",
    "of",
    "vector",
    "matrix",
    "equation",
    "so",
    "therefore",
    "thus",
    "hence",
    "we",
    "get",
    "have",
    "number",
    "domain",
    "range",
    "roots",
    "correct",
];

fn read_tokens(tokens: &[Token<'_>], answer: &mut Answer, arena: &mut Arena, budget: &mut Budget) {
    let mut tokens = tokens;
    // Words in front.
    let mut front = 0;
    while let Some(Token { kind: Kind::Text(words) | Kind::Run(words), .. }) = tokens.get(front) {
        let known = words.split([' ', ':', ',']).filter(|w| !w.is_empty()).all(|w| LEADING.contains(&w.to_lowercase().as_str()));
        if !known {
            break;
        }
        front += 1;
    }
    if front < tokens.len() {
        tokens = &tokens[front..];
        if front > 0 && matches!(tokens.first(), Some(Token { kind: Kind::Sign(':'), .. })) {
            tokens = &tokens[1..];
        }
    }
    // A currency sign before the number, or right after its minus.
    let mut without_sign;
    let sign_at = usize::from(matches!(tokens.first(), Some(Token { kind: Kind::Sign('-'), .. })));
    if let Some(Token { kind: Kind::Sign(sign @ ('$' | '€' | '£' | '¥')), .. }) = tokens.get(sign_at) {
        answer.measure = units::parse(if *sign == '$' { "$" } else { "" }).unwrap_or(Measure::Bare);
        if *sign != '$' {
            answer.measure = Measure::Other(sign.to_string());
        }
        without_sign = tokens.to_vec();
        without_sign.remove(sign_at);
        tokens = &without_sign;
    }
    if tokens.is_empty() {
        return;
    }
    if let Some((value, measure)) = compound(tokens, budget) {
        answer.measure = measure;
        answer.root = arena.push(Node::Num(value));
        return;
    }
    let Some((root, used)) = parse(tokens, arena, budget) else { return };
    if used == tokens.len() {
        if let Some((value, measure)) = letter_unit(tokens, root, arena) {
            // `8 m`: a unit, unless the other answer has the letter as a variable; the comparison tries both.
            answer.root = Some(value);
            answer.measure = measure;
            answer.with_letter = Some(root);
            return;
        }
        answer.root = Some(root);
        return;
    }
    let rest = phrase(&tokens[used..]);
    if let Node::Ratio(ids) = arena.node(root)
        && ids.len() == 2
    {
        let lower = rest.to_lowercase().replace(['.', ' '], "");
        if lower == "am" || lower == "pm" {
            let part = |i: usize| match arena.node(arena.list(*ids)[i]) {
                Node::Num(n) => n.as_i64(),
                _ => None,
            };
            if let (Some(hours), Some(minutes)) = (part(0), part(1)) {
                let afternoon = if lower == "pm" { 12 } else { 0 };
                answer.clock = Some((hours % 12 + afternoon) * 60 + minutes);
                answer.root = Some(root);
            }
            return;
        }
    }
    if matches!(arena.node(root), Node::Text(_)) {
        return;
    }
    let (root, rest) = match units::multiplier(&rest) {
        Some((factor, rest)) => {
            let Some(factor) = arena.push(Node::Num(Rational::int(factor))) else { return };
            let ids = arena.ids(&[root, factor]);
            let Some(product) = arena.push(Node::Mul(ids)) else { return };
            (product, rest)
        }
        None => (root, rest.as_str()),
    };
    match units::parse(rest) {
        // "$5 million": the currency is in front.
        Some(Measure::Bare) => answer.root = Some(root),
        Some(measure) => {
            answer.measure = measure;
            answer.root = Some(root);
        }
        None => {}
    }
}

/// `8 m`: a number, a space and a letter that is a unit.
fn letter_unit(tokens: &[Token<'_>], root: Id, arena: &Arena) -> Option<(Id, Measure)> {
    let last = tokens.last()?;
    let Kind::Letter(letter) = last.kind else { return None };
    if !last.spaced || tokens[..tokens.len() - 1].iter().any(|t| matches!(t.kind, Kind::Letter(_) | Kind::Run(_) | Kind::Text(_))) {
        return None;
    }
    let Node::Mul(ids) = arena.node(root) else { return None };
    let [value, _] = arena.list(*ids) else { return None };
    let measure = units::parse(letter.encode_utf8(&mut [0; 4]))?;
    matches!(measure, Measure::Known { .. }).then_some((*value, measure))
}

/// `2 hours and 30 minutes`: quantities of one kind, added.
fn compound(tokens: &[Token<'_>], budget: &mut Budget) -> Option<(Rational, Measure)> {
    let mut at = 0;
    let mut total: Option<(Rational, Measure)> = None;
    let mut parts = 0;
    while at < tokens.len() {
        let Kind::Number(number) = &tokens[at].kind else { return None };
        let mut value = Rational::from_digits(&number.digits, number.places, budget).ok()?;
        at += 1;
        let word = match &tokens.get(at)?.kind {
            Kind::Run(word) | Kind::Text(word) => *word,
            _ => return None,
        };
        at += 1;
        let Some(Measure::Known { dimensions, factor }) = units::parse(word) else { return None };
        value = value.mul(&factor, budget).ok()?;
        total = Some(match total {
            None => (value, Measure::Known { dimensions, factor: Rational::ONE }),
            Some((sum, Measure::Known { dimensions: d, factor })) if d == dimensions => {
                (sum.add(&value, budget).ok()?, Measure::Known { dimensions: d, factor })
            }
            Some(_) => return None,
        });
        parts += 1;
        while matches!(tokens.get(at).map(|t| &t.kind), Some(Kind::Sign(',') | Kind::Word(Word::And))) {
            at += 1;
        }
    }
    if parts > 1 { total } else { None }
}

/// The tokens as a phrase that [`units::parse`] reads.
fn phrase(tokens: &[Token<'_>]) -> String {
    let mut out = String::new();
    let mut fraction = 0;
    for token in tokens {
        if token.spaced {
            out.push(' ');
        }
        match &token.kind {
            Kind::Text(s) | Kind::Run(s) => {
                if out.ends_with(|c: char| c.is_alphabetic()) {
                    out.push(' ');
                }
                out.push_str(s);
            }
            Kind::Letter(c) => out.push(*c),
            Kind::Number(n) => out.push_str(&String::from_utf8_lossy(&n.digits)),
            Kind::Word(Word::Frac) => fraction = 1,
            Kind::Word(Word::Times) => out.push('·'),
            Kind::Word(Word::Circ) => out.push('°'),
            Kind::Word(Word::Symbol("μ")) => out.push('μ'),
            Kind::Sign('}') if fraction == 1 => {
                out.push('/');
                fraction = 2;
            }
            Kind::Sign('{' | '}') => {}
            Kind::Sign(c) => out.push(*c),
            Kind::Word(Word::Or) => out.push_str(" or "),
            Kind::Word(Word::And) => out.push_str(" and "),
            Kind::Word(_) | Kind::Begin(_) | Kind::End => out.push('?'),
        }
    }
    out
}

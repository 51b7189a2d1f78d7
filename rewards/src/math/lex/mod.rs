//! Tokens of LaTeX, of program notation and of plain text, in one pass.

mod command;
mod number;

use super::words::{Word, bare_word};

/// A number as written: its digits, and what the separators meant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Number {
    /// The digits before and after the point, without separators.
    pub digits: Vec<u8>,
    /// How many digits stand after the point.
    pub places: usize,
    /// How many of the last digits repeat for ever.
    pub repeating: usize,
    /// The power of ten of `3e7`.
    pub exponent: i32,
}

impl Number {
    pub fn is_whole(&self) -> bool {
        self.places == 0 && self.exponent == 0
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    Number(Number),
    Letter(char),
    /// Several letters that are no known word.
    Run(&'a str),
    /// Words of `\text{…}` or of another script.
    Text(&'a str),
    Word(Word),
    Begin(&'a str),
    End,
    Sign(char),
}

#[derive(Clone, Debug)]
pub(crate) struct Token<'a> {
    pub kind: Kind<'a>,
    /// White space stands before it.
    pub spaced: bool,
}

/// How to read what can be read in two ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// `1,234` outside brackets is one number.
    pub thousands: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Lexed<'a> {
    pub tokens: Vec<Token<'a>>,
    /// A comma was read as a thousands separator and could separate items as well.
    pub merged_commas: bool,
}

pub(crate) const MAX_TOKENS: usize = 8_192;

/// How deep `\text{…}` may hold mathematics that holds `\text{…}`.
const MAX_TEXT_NESTING: u32 = 64;

/// The tokens of the text; `None` when there are too many.
pub(crate) fn lex<'a>(text: &'a str, reading: Reading) -> Option<Lexed<'a>> {
    let mut lexer =
        Lexer { text, bytes: text.as_bytes(), at: 0, out: Lexed::default(), spaced: false, brackets: 0, environments: 0, reading };
    // A stack of ends, not recursion: `\text{\text{…}}` may be nested as deep as the model likes.
    let mut ends = vec![text.len()];
    while let Some(&end) = ends.last() {
        if lexer.at >= end {
            lexer.at = end + usize::from(ends.len() > 1);
            ends.pop();
            if !ends.is_empty() {
                lexer.push(Kind::Sign('}'));
            }
            continue;
        }
        if let Some(inner) = lexer.step(end) {
            if ends.len() as u32 > MAX_TEXT_NESTING {
                return None;
            }
            lexer.push(Kind::Sign('{'));
            ends.push(inner);
        }
        if lexer.out.tokens.len() > MAX_TOKENS {
            return None;
        }
    }
    Some(lexer.out)
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    out: Lexed<'a>,
    spaced: bool,
    brackets: u32,
    environments: u32,
    reading: Reading,
}

impl<'a> Lexer<'a> {
    fn push(&mut self, kind: Kind<'a>) {
        self.out.tokens.push(Token { kind, spaced: std::mem::take(&mut self.spaced) });
    }

    fn word(&mut self, word: Word) {
        self.push(Kind::Word(word));
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Reads one token. When it opens a text argument that holds mathematics, returns where that argument ends.
    fn step(&mut self, end: usize) -> Option<usize> {
        let b = self.bytes[self.at];
        match b {
            b' ' | b'\n' | b'\t' | b'\r' | b'~' => {
                self.spaced = true;
                self.at += 1;
            }
            b'$' | b'`' | b'"' => self.at += 1,
            b'0'..=b'9' => self.number(end),
            b'.' => self.dot(end),
            b'\\' => return self.backslash(end),
            b'a'..=b'z' | b'A'..=b'Z' => self.letters(end),
            _ if !b.is_ascii() => self.foreign(end),
            _ => self.sign(b),
        }
        None
    }

    fn dot(&mut self, end: usize) {
        if self.at + 1 < end && self.byte(self.at + 1).is_ascii_digit() {
            return self.number(end);
        }
        let dots = self.bytes[self.at..end].iter().take_while(|b| **b == b'.').count();
        self.at += dots;
        if dots >= 3 {
            self.word(Word::Dots);
        } else {
            // A full stop ends a sentence and says nothing.
            self.spaced = true;
        }
    }

    fn sign(&mut self, b: u8) {
        self.at += 1;
        let next = self.byte(self.at);
        use super::ast::RelOp;
        let mut taken = 0;
        let mut take = |word: Word| {
            taken = 1;
            Kind::Word(word)
        };
        let kind = match (b, next) {
            (b'*', b'*') => {
                // `x**2` is a power; `**` before or after everything is Markdown.
                self.at += 1;
                let last = self.out.tokens.is_empty() || self.bytes[self.at..].iter().all(|b| !b.is_ascii_alphanumeric() && *b != b'(');
                if last {
                    return;
                }
                Kind::Sign('^')
            }
            (b'=', b'=') | (b':', b'=') => take(Word::Rel(RelOp::Eq)),
            (b'<', b'=') | (b'=', b'<') => take(Word::Rel(RelOp::Le)),
            (b'>', b'=') => take(Word::Rel(RelOp::Ge)),
            (b'!', b'=') | (b'<', b'>') => take(Word::Rel(RelOp::Ne)),
            (b'=', _) => Kind::Word(Word::Rel(RelOp::Eq)),
            (b'<', _) => Kind::Word(Word::Rel(RelOp::Lt)),
            (b'>', _) => Kind::Word(Word::Rel(RelOp::Gt)),
            (b'*', _) => Kind::Word(Word::Times),
            (b'+', b'-') if self.byte(self.at + 1) != b'-' && self.out.tokens.last().is_none_or(|t| t.kind == Kind::Sign(',')) => {
                take(Word::PlusMinus)
            }
            (b'%', _) => Kind::Word(Word::Percent),
            (b'\'', _) => Kind::Word(Word::Prime),
            (b'{', b',') if self.byte(self.at + 1) == b'}' => {
                taken = 2;
                Kind::Sign(',')
            }
            _ => Kind::Sign(b as char),
        };
        self.at += taken;
        match kind {
            Kind::Sign('(' | '[') => self.brackets += 1,
            Kind::Sign(')' | ']') => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.push(kind);
    }

    fn letters(&mut self, end: usize) {
        let start = self.at;
        while self.at < end && self.bytes[self.at].is_ascii_alphabetic() {
            self.at += 1;
        }
        let run = &self.text[start..self.at];
        if let Some(word) = (run.len() > 1).then(|| bare_word(run)).flatten() {
            return self.word(word);
        }
        match run.len() {
            1 => self.push(Kind::Letter(run.as_bytes()[0] as char)),
            _ => self.push(Kind::Run(run)),
        }
    }

    /// Letters of other scripts are words, except a lone one of an alphabet, which is a symbol.
    fn foreign(&mut self, end: usize) {
        let start = self.at;
        let rest = &self.text[start..end];
        let len = rest.find(|c: char| c.is_ascii() || !c.is_alphanumeric()).unwrap_or(rest.len());
        if len == 0 {
            let c = rest.chars().next().unwrap_or(' ');
            self.at += c.len_utf8();
            if matches!(c, '€' | '£' | '¥') {
                self.push(Kind::Sign(c));
            } else if !matches!(c, '。' | '！') {
                self.push(Kind::Text(&self.text[start..self.at]));
            }
            return;
        }
        self.at += len;
        let run = &self.text[start..self.at];
        let mut chars = run.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_lowercase() || c.is_uppercase() => self.push(Kind::Letter(c)),
            _ => self.push(Kind::Text(run)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading = Reading { thousands: true };

    fn numbers(text: &str) -> Vec<String> {
        let lexed = lex(text, READING).unwrap();
        lexed
            .tokens
            .iter()
            .filter_map(|t| match &t.kind {
                Kind::Number(n) => Some(format!("{}/{}", String::from_utf8_lossy(&n.digits), n.places)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn separators_join_groups_of_three_only() {
        assert_eq!(numbers("1,234,567.5"), ["12345675/1"]);
        assert_eq!(numbers("1,2,3"), ["1/0", "2/0", "3/0"]);
        assert_eq!(numbers("(1,200)"), ["1/0", "200/0"]);
        assert_eq!(numbers("7{,}322"), ["7322/0"]);
        assert_eq!(numbers("20\\,022"), ["20022/0"]);
        assert_eq!(numbers("32,\\! 349"), ["32349/0"]);
        assert_eq!(numbers("190 801"), ["190801/0"]);
        assert_eq!(numbers("3 14"), ["3/0", "14/0"]);
        assert_eq!(numbers(".25"), ["25/2"]);
        assert_eq!(numbers("1001."), ["1001/0"]);
        assert_eq!(numbers("0.1\\overline{6}"), ["016/2"]);
    }

    #[test]
    fn nested_text_does_not_recurse() {
        let nested = |n: usize| "\\text{".repeat(n) + "5" + &"}".repeat(n);
        let lexed = lex(&nested(50), READING).unwrap().tokens.len();
        assert_eq!(lexed, 101);
        assert!(lex(&nested(3000), READING).is_none());
    }
}

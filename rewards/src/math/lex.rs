//! Tokens of LaTeX, of program notation and of plain text, in one pass.

use super::words::{Command, Word, bare_word, command};

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
    /// A comma was read as a thousands separator.
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

    fn backslash(&mut self, end: usize) -> Option<usize> {
        let next = self.byte(self.at + 1);
        if self.at + 1 >= end {
            self.at = end;
            return None;
        }
        if next == b'\\' {
            // A doubled backslash before a command is an escaping accident, except between the rows of an environment.
            if self.environments == 0 && self.byte(self.at + 2).is_ascii_alphabetic() {
                self.at += 1;
                return self.backslash(end);
            }
            self.at += 2;
            self.word(Word::NewRow);
            return None;
        }
        if !next.is_ascii_alphabetic() {
            let width = self.text[self.at + 1..].chars().next().map_or(1, char::len_utf8);
            self.at += 1 + width;
            match next {
                b',' | b';' | b':' | b' ' | b'>' | b'\n' | b'~' | b'-' | b'/' | b'@' => self.spaced = true,
                b'!' => {}
                b'{' => {
                    self.brackets += 1;
                    self.word(Word::OpenCurly);
                }
                b'}' => {
                    self.brackets = self.brackets.saturating_sub(1);
                    self.word(Word::CloseCurly);
                }
                b'%' => self.word(Word::Percent),
                b'|' => self.push(Kind::Sign('|')),
                b'$' => self.push(Kind::Sign('$')),
                b'_' => self.push(Kind::Sign('_')),
                b'&' | b'#' => {}
                _ => self.spaced = true,
            }
            return None;
        }
        let start = self.at + 1;
        let mut stop = start;
        while stop < end && self.bytes[stop].is_ascii_alphabetic() {
            stop += 1;
        }
        let name = &self.text[start..stop];
        self.at = stop;
        match command(name) {
            Command::Word(word) => {
                if matches!(word, Word::OpenAngle) {
                    self.brackets += 1;
                }
                if name == "ne" || name == "neq" || name != "not" {
                    self.word(word);
                }
            }
            Command::Style => {
                // `\left.` and `\right.` are invisible.
                if matches!(name, "left" | "right") && self.byte(self.at) == b'.' {
                    self.at += 1;
                }
                if matches!(name, "quad" | "qquad") {
                    self.spaced = true;
                }
            }
            Command::StyleWithArgument => self.skip_argument(end),
            Command::Text => return self.text_argument(name, end),
            Command::Blackboard => self.blackboard(end),
            Command::Begin => {
                let env = self.braced(end).unwrap_or("");
                self.environments += 1;
                if env.starts_with("array") || env.starts_with("tabular") {
                    self.skip_argument(end);
                }
                self.push(Kind::Begin(env.trim_end_matches('*')));
            }
            Command::End => {
                self.braced(end);
                self.environments = self.environments.saturating_sub(1);
                self.push(Kind::End);
            }
            Command::Unknown if name == "not" => self.negated(end),
            Command::Unknown => self.push(Kind::Text(&self.text[start - 1..stop])),
        }
        None
    }

    /// `\not=`, `\not\in`, `\not <`.
    fn negated(&mut self, end: usize) {
        use super::ast::RelOp;
        while self.at < end && self.bytes[self.at] == b' ' {
            self.at += 1;
        }
        let rest = &self.text[self.at..end];
        for (sign, op) in [("=", RelOp::Ne), ("<", RelOp::Ge), (">", RelOp::Le), ("\\in", RelOp::Other), ("\\equiv", RelOp::Other)] {
            if rest.starts_with(sign) {
                self.at += sign.len();
                return self.word(Word::Rel(op));
            }
        }
    }

    fn skip_spaces(&mut self, end: usize) {
        while self.at < end && self.bytes[self.at].is_ascii_whitespace() {
            self.at += 1;
        }
    }

    /// The position after the brace that closes the one at `open`, if it is closed before `end`.
    fn matching(&self, open: usize, end: usize) -> Option<usize> {
        let mut depth = 0u32;
        let mut at = open;
        while at < end {
            match self.bytes[at] {
                b'\\' => at += 1,
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// The text of a braced argument, which is consumed.
    fn braced(&mut self, end: usize) -> Option<&'a str> {
        self.skip_spaces(end);
        if self.byte(self.at) != b'{' || self.at >= end {
            return None;
        }
        let close = self.matching(self.at, end)?;
        let inside = &self.text[self.at + 1..close - 1];
        self.at = close;
        Some(inside)
    }

    fn skip_argument(&mut self, end: usize) {
        self.skip_spaces(end);
        if self.byte(self.at) == b'[' {
            while self.at < end && self.bytes[self.at] != b']' {
                self.at += 1;
            }
            self.at = (self.at + 1).min(end);
        }
        self.braced(end);
    }

    fn blackboard(&mut self, end: usize) {
        use super::ast::NamedSet;
        let letter = match self.braced(end) {
            Some(inside) => inside.trim(),
            None => {
                self.skip_spaces(end);
                let at = self.at.min(end);
                let width = self.text[at..end].chars().next().map_or(0, char::len_utf8);
                self.at = at + width;
                &self.text[at..at + width]
            }
        };
        let set = match letter {
            "N" => NamedSet::Naturals,
            "Z" => NamedSet::Integers,
            "Q" => NamedSet::Rationals,
            "R" => NamedSet::Reals,
            "C" => NamedSet::Complexes,
            _ => return self.push(Kind::Text(letter)),
        };
        self.word(Word::Named(set));
    }

    /// The argument of `\text`: words become one token, mathematics is read as such.
    fn text_argument(&mut self, command: &str, end: usize) -> Option<usize> {
        self.skip_spaces(end);
        if self.at >= end || self.bytes[self.at] != b'{' {
            return None;
        }
        let Some(close) = self.matching(self.at, end) else {
            // The brace is never closed: the rest is the argument.
            self.at += 1;
            return None;
        };
        let inside = &self.text[self.at + 1..close - 1];
        let words = inside.trim_matches(|c: char| c.is_ascii_whitespace() || c == '~');
        if words.bytes().any(|b| b.is_ascii_digit() || matches!(b, b'\\' | b'$' | b'^' | b'{' | b'=')) {
            self.at += 1;
            return Some(close - 1);
        }
        self.at = close;
        if inside.starts_with(' ') || inside.starts_with('~') {
            self.spaced = true;
        }
        let bare = words.trim_matches(|c: char| matches!(c, ',' | ';' | ' '));
        let comma = words.starts_with([',', ';']);
        match bare_word(bare) {
            _ if bare.is_empty() => {
                if comma {
                    self.push(Kind::Sign(','));
                }
            }
            Some(word) => self.word(word),
            None if bare.len() == 1 && bare.as_bytes()[0].is_ascii_alphabetic() => {
                // `24\text{m}` has a unit; `6\mathrm{i}` has a number.
                let after_number = matches!(self.out.tokens.last().map(|t| &t.kind), Some(Kind::Number(_)));
                if "mgslLht".contains(bare) && (command == "text" || after_number) {
                    self.push(Kind::Text(bare));
                } else {
                    self.push(Kind::Letter(bare.as_bytes()[0] as char));
                }
            }
            None => {
                if comma {
                    self.push(Kind::Sign(','));
                }
                self.push(Kind::Text(words.trim_end_matches(['.', ',', ';', '!'])));
            }
        }
        None
    }

    /// The width of a thousands separator at `at`, if one stands there.
    fn separator(&self, at: usize) -> Option<(usize, bool)> {
        let rest = &self.bytes[at..];
        const COMMAS: [&[u8]; 5] = [b"{,}", b",\\!", b"\\!,", b",\\,", b","];
        for (i, comma) in COMMAS.iter().enumerate() {
            if rest.starts_with(comma) {
                // `5,\! 054`: the space is of no account after a negative one.
                let spaces = if i == 1 { rest[comma.len()..].iter().take_while(|b| **b == b' ').count() } else { 0 };
                return Some((comma.len() + spaces, i == 4));
            }
        }
        const SPACES: [&[u8]; 7] = [b"\\,", b"\\;", b"\\ ", b"\\:", b"~", b" ", b"\\_"];
        SPACES.iter().find(|s| rest.starts_with(s)).map(|s| (s.len(), false)).or_else(|| {
            let apostrophe = rest.first() == Some(&b'\'') || rest.first() == Some(&b'_');
            apostrophe.then_some((1, false))
        })
    }

    fn digits_at(&self, at: usize, end: usize) -> usize {
        self.bytes[at.min(end)..end].iter().take_while(|b| b.is_ascii_digit()).count()
    }

    fn number(&mut self, end: usize) {
        let len = self.digits_at(self.at, end);
        let mut digits = self.bytes[self.at..self.at + len].to_vec();
        self.at += len;
        if (1..=3).contains(&len) && digits[0] != b'0' {
            self.groups(&mut digits, end);
        }
        let mut places = 0;
        let mut repeating = 0;
        if self.at < end && self.bytes[self.at] == b'.' {
            let fraction = self.digits_at(self.at + 1, end);
            let after = self.at + 1 + fraction;
            let repeats = [&b"\\overline{"[..], b"\\dot{", b"\\bar{", b"\\dot "].iter().any(|c| self.bytes[after..end].starts_with(c));
            if fraction > 0 || repeats {
                digits.extend_from_slice(&self.bytes[self.at + 1..after]);
                places = fraction;
                self.at = after;
                if repeats {
                    repeating = self.repeating(&mut digits, &mut places, end);
                }
            }
        }
        if digits.is_empty() {
            digits.push(b'0');
        }
        let exponent = self.exponent(end);
        self.push(Kind::Number(Number { digits, places, repeating, exponent }));
    }

    /// Further groups of three digits, if all that follows is such groups.
    fn groups(&mut self, digits: &mut Vec<u8>, end: usize) {
        let start = digits.len();
        let mut at = self.at;
        let mut used_comma = false;
        let mut first: Option<&[u8]> = None;
        while at < end
            && let Some((width, plain_comma)) = self.separator(at)
        {
            let sign = &self.bytes[at..at + 1];
            let group = self.digits_at(at + width, end);
            if group == 0 || first.is_some_and(|f| f != sign) {
                break;
            }
            let blocked = plain_comma && (!self.reading.thousands || self.brackets > 0);
            if group != 3 || blocked {
                // `1,2,3` and `1,234,5` are lists.
                digits.truncate(start);
                return;
            }
            first = Some(sign);
            used_comma |= plain_comma;
            digits.extend_from_slice(&self.bytes[at + width..at + width + 3]);
            at += width + 3;
        }
        if first.is_some() {
            self.at = at;
            self.out.merged_commas |= used_comma;
        }
    }

    /// `\overline{142857}` or `\dot{3}` after the point.
    fn repeating(&mut self, digits: &mut Vec<u8>, places: &mut usize, end: usize) -> usize {
        let before = digits.len();
        let mut first_dot = None;
        loop {
            let rest = &self.bytes[self.at..end];
            let (width, dot) = if rest.starts_with(b"\\overline{") {
                (10, false)
            } else if rest.starts_with(b"\\bar{") {
                (5, false)
            } else if rest.starts_with(b"\\dot{") || rest.starts_with(b"\\dot ") {
                (5, true)
            } else if first_dot.is_some() && rest.first().is_some_and(u8::is_ascii_digit) {
                // The digits between two dots repeat as well, if a second dot follows.
                let len = self.digits_at(self.at, end);
                if !self.bytes[self.at + len..end].starts_with(b"\\dot") {
                    break;
                }
                digits.extend_from_slice(&self.bytes[self.at..self.at + len]);
                self.at += len;
                continue;
            } else {
                break;
            };
            let len = self.digits_at(self.at + width, end);
            if len == 0 {
                break;
            }
            if dot {
                first_dot.get_or_insert(digits.len());
            }
            digits.extend_from_slice(&self.bytes[self.at + width..self.at + width + len]);
            self.at += width + len;
            if self.byte(self.at) == b'}' && self.at < end {
                self.at += 1;
            }
            if !dot {
                break;
            }
        }
        let repeating = digits.len() - first_dot.unwrap_or(before);
        *places += digits.len() - before;
        repeating
    }

    /// The exponent of `3.4E7` or `1e-5`.
    fn exponent(&mut self, end: usize) -> i32 {
        if self.at >= end || !matches!(self.bytes[self.at], b'e' | b'E') {
            return 0;
        }
        let signed = matches!(self.byte(self.at + 1), b'+' | b'-');
        let start = self.at + 1 + usize::from(signed);
        let len = self.digits_at(start, end);
        if len == 0 || len > 6 || self.byte(start + len).is_ascii_alphabetic() {
            return 0;
        }
        let value = self.text[start..start + len].parse().unwrap_or(0);
        let negative = signed && self.bytes[self.at + 1] == b'-';
        self.at = start + len;
        if negative { -value } else { value }
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

//! Commands and their arguments.

use super::{Kind, Lexer};
use crate::math::words::{Command, Word, bare_word, command};

impl<'a> Lexer<'a> {
    pub(super) fn backslash(&mut self, end: usize) -> Option<usize> {
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
        use crate::math::ast::RelOp;
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
        use crate::math::ast::NamedSet;
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
}

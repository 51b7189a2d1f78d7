//! Numbers: thousands, decimals, periods, exponents.

use super::{Kind, Lexer, Number};

impl Lexer<'_> {
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

    pub(super) fn number(&mut self, end: usize) {
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
        let mut items = true;
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
            // No list has an item 000.
            items &= self.bytes[at + width] != b'0';
            digits.extend_from_slice(&self.bytes[at + width..at + width + 3]);
            at += width + 3;
        }
        if first.is_some() {
            self.at = at;
            self.out.merged_commas |= used_comma && items;
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

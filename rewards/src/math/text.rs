//! Answers as text: normal forms, words, choices, and words that mean numbers or sets.

/// The text without what has no meaning in mathematics: white space, dollars, sizes and styles.
pub(crate) fn normal(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let b = bytes[at];
        if b.is_ascii_whitespace() || b == b'$' {
            at += 1;
            // "1 2" is not "12".
            let apart = out.last().is_some_and(u8::is_ascii_digit) && bytes.get(at).is_some_and(u8::is_ascii_digit);
            if apart && b != b'$' {
                out.push(b' ');
            }
            continue;
        }
        if b == b'\\' && at + 1 < bytes.len() {
            let rest = &text[at + 1..];
            let len = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let name = &rest[..len];
            match name {
                "left" | "right" | "displaystyle" | "big" | "Big" => {
                    at += 1 + len;
                    continue;
                }
                "dfrac" | "tfrac" | "cfrac" => {
                    out.extend_from_slice(b"\\frac");
                    at += 1 + len;
                    continue;
                }
                "" if matches!(bytes[at + 1], b',' | b'!' | b';' | b':' | b' ' | b'>') => {
                    at += 2;
                    continue;
                }
                _ => {
                    out.extend_from_slice(&bytes[at..at + 1 + len]);
                    // A letter after a command needs the space that was between them.
                    if len > 0 && bytes.get(at + 1 + len).is_some_and(u8::is_ascii_whitespace) {
                        out.push(b' ');
                    }
                    at += 1 + len;
                    continue;
                }
            }
        }
        out.push(b);
        at += 1;
    }
    while out.last().is_some_and(|b| matches!(b, b'.' | b' ')) {
        out.pop();
    }
    String::from_utf8(out).unwrap_or_default()
}

/// The words of the text, with the LaTeX and Markdown around them removed.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut len = c.len_utf8();
        match c {
            '\\' => {
                let name = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
                len += name;
                match &rest[1..1 + name] {
                    "" => {
                        len += rest[1..].chars().next().map_or(0, char::len_utf8);
                        out.push(' ');
                    }
                    "text" | "textbf" | "textit" | "textrm" | "textnormal" | "mathrm" | "mathbf" | "mathit" | "mathsf" | "operatorname"
                    | "mbox" | "bf" | "rm" | "textsf" | "texttt" | "boxed" | "left" | "right" | "displaystyle" => {}
                    "quad" | "qquad" => out.push(' '),
                    _ => out.push_str(&rest[..len]),
                }
            }
            '{' | '}' | '$' | '*' | '`' | '"' => {}
            '~' => out.push(' '),
            c if c.is_whitespace() => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c => out.push(c),
        }
        rest = &rest[len..];
    }
    out.trim().trim_end_matches(['.', '!', ',', ';', '。']).trim_end().to_owned()
}

/// Letters of a multiple choice question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// One bit for each letter.
    pub letters: u32,
    /// Offered as alternatives: "A or B".
    pub hedged: bool,
}

/// The choice that the words make, if they are one: `B`, `(B)`, `B. 12`, `Option B`, `A, C`.
///
/// `strict` leaves out what may be mathematics as well: lower case letters and letters followed by more.
pub(crate) fn choice(plain: &str, strict: bool) -> Option<Choice> {
    let mut words = plain.trim().trim_matches(|c| matches!(c, '.' | ':'));
    for prefix in ["option", "choice", "answer", "the answer is"] {
        if words.len() > prefix.len() && words.is_char_boundary(prefix.len()) && words[..prefix.len()].eq_ignore_ascii_case(prefix) {
            let rest = words[prefix.len()..].trim_start_matches([':', ' ']);
            if rest.len() < words.len() - prefix.len() || rest.starts_with('(') {
                words = rest;
            }
        }
    }
    let single = |s: &str| -> Option<u32> {
        let s = s.trim();
        let s = s.strip_prefix('(').map_or(s, |inner| inner.strip_suffix(')').unwrap_or(inner));
        let s = s.trim_end_matches(['.', ')', ':']).trim();
        let mut bytes = s.bytes();
        match (bytes.next(), bytes.next()) {
            (Some(b @ b'A'..=b'J'), None) => Some(1 << (b - b'A')),
            (Some(b @ b'a'..=b'j'), None) if !strict => Some(1 << (b - b'a')),
            _ => None,
        }
    };
    if let Some(letters) = single(words) {
        return Some(Choice { letters, hedged: false });
    }
    // Several letters, joined.
    let hedged = words.contains(" or ");
    let joined = words.replace(" and ", ",").replace(" or ", ",").replace('&', ",");
    if joined.contains(',') {
        let mut letters = 0;
        let all = joined.split(',').filter(|part| !part.trim().is_empty()).all(|part| match single(part) {
            Some(bit) if part.trim().chars().any(|c| c.is_ascii_uppercase()) => {
                letters |= bit;
                true
            }
            _ => false,
        });
        if all && letters != 0 {
            return Some(Choice { letters, hedged });
        }
    }
    if strict {
        return None;
    }
    // A letter in front of the text of the option.
    let bytes = words.as_bytes();
    let bracketed = bytes.first() == Some(&b'(') && bytes.get(2) == Some(&b')') && bytes.len() > 3;
    let letter = if bracketed { bytes[1] } else { *bytes.first()? };
    let marked = bracketed || matches!(bytes.get(1), Some(b'.' | b':' | b')')) && matches!(bytes.get(2), Some(b' '));
    (marked && (b'A'..=b'J').contains(&letter)).then(|| Choice { letters: 1 << (letter - b'A'), hedged: false })
}

/// `AC` for A and C: several letters of one word, in order or in any.
pub(crate) fn choices_in_one_word(word: &str, in_order: bool) -> Option<Choice> {
    let ordered = !in_order || word.as_bytes().windows(2).all(|w| w[0] < w[1]);
    let letters = word.bytes().try_fold(0, |letters, b| (b'A'..=b'J').contains(&b).then(|| letters | 1 << (b - b'A')))?;
    (ordered && (2..=6).contains(&word.len())).then_some(Choice { letters, hedged: false })
}

/// What a phrase means as mathematics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    Number(i64),
    Reals,
    Integers,
    Naturals,
    Rationals,
    Complexes,
    Nothing,
    Infinity,
    Origin,
}

pub(crate) fn meaning(plain: &str) -> Option<Meaning> {
    let lower = plain.to_lowercase();
    let words = lower.trim().trim_start_matches("the ").trim_start_matches("set of ").trim_start_matches("all ");
    Some(match words {
        "real numbers" | "reals" | "real" | "real number" => Meaning::Reals,
        "integers" => Meaning::Integers,
        "natural numbers" | "positive integers" => Meaning::Naturals,
        "rational numbers" | "rationals" => Meaning::Rationals,
        "complex numbers" => Meaning::Complexes,
        "empty set" | "no solution" | "no solutions" | "no real solution" | "no real solutions" => Meaning::Nothing,
        "infinity" | "positive infinity" => Meaning::Infinity,
        "origin" => Meaning::Origin,
        _ => return number_word(words).map(Meaning::Number),
    })
}

fn number_word(words: &str) -> Option<i64> {
    if let Some(number) = chinese_number(words) {
        return Some(number);
    }
    const ONES: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let mut total = 0i64;
    let mut part = 0i64;
    let mut any = false;
    for word in words.split([' ', '-']).filter(|w| !w.is_empty() && *w != "and") {
        any = true;
        if let Some(n) = ONES.iter().position(|w| *w == word) {
            part += n as i64;
        } else if let Some(n) = TENS.iter().position(|w| *w == word) {
            part += 20 + 10 * n as i64;
        } else {
            match word {
                "hundred" => part = part.max(1).checked_mul(100)?,
                "thousand" | "million" | "billion" => {
                    let unit = match word {
                        "thousand" => 1_000,
                        "million" => 1_000_000,
                        _ => 1_000_000_000,
                    };
                    total = total.checked_add(part.max(1).checked_mul(unit)?)?;
                    part = 0;
                }
                "negative" | "minus" if total == 0 && part == 0 => {
                    return number_word(words.split_once(word)?.1).map(|n| -n);
                }
                _ => return None,
            }
        }
    }
    any.then(|| total.checked_add(part)).flatten()
}

/// 一百二十 is 120.
fn chinese_number(words: &str) -> Option<i64> {
    let digit = |c: char| {
        "零一二三四五六七八九".chars().position(|d| d == c).or(match c {
            '〇' => Some(0),
            '两' => Some(2),
            _ => None,
        })
    };
    let (mut total, mut section, mut last) = (0i64, 0i64, 0i64);
    let mut any = false;
    for c in words.chars() {
        any = true;
        if let Some(d) = digit(c) {
            last = d as i64;
            continue;
        }
        let unit = match c {
            '十' => 10,
            '百' => 100,
            '千' => 1000,
            '万' | '亿' => {
                let unit = if c == '万' { 10_000 } else { 100_000_000 };
                total = total.checked_add((section + last).checked_mul(unit)?)?;
                (section, last) = (0, 0);
                continue;
            }
            _ => return None,
        };
        section = section.checked_add(last.max(1).checked_mul(unit)?)?;
        last = 0;
    }
    any.then(|| total.checked_add(section)?.checked_add(last)).flatten()
}

const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];

/// Whether two phrases say the same, but for case, punctuation, and the order of lists and dates.
pub(crate) fn same_words(a: &str, b: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '.' | '"' | '\'' | '(' | ')'))
            .filter(|w| !w.is_empty())
            .map(str::to_lowercase)
            .collect()
    };
    let (mut x, mut y) = (words(a), words(b));
    if x == y && !x.is_empty() {
        return true;
    }
    let dated =
        |words: &[String]| words.iter().any(|w| MONTHS.contains(&w.as_str())) && words.iter().any(|w| w.as_bytes()[0].is_ascii_digit());
    if dated(&x) && dated(&y) {
        x.sort();
        y.sort();
        return x == y;
    }
    // Lists: "I and III only" is "I, III".
    let items = |text: &str| -> Vec<String> {
        let lower = text.to_lowercase().replace(" and ", ",").replace('&', ",");
        let mut items: Vec<String> =
            lower.trim_end_matches("only").split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
        items.sort();
        items
    };
    let (x, y) = (items(a), items(b));
    x.len() > 1 && x == y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_in_any_dress() {
        let letter = |text: &str| choice(&plain(text), false).map(|c| c.letters);
        for text in [
            "B",
            "(B)",
            "\\text{B}",
            "\\textbf{(B)}",
            "Option B",
            "\\text{B. } 12",
            "\\text{B: 2x+1}",
            "\\textbf{(B)}\\ \\text{Paris}",
            "b",
        ] {
            assert_eq!(letter(text), Some(2), "{text}");
        }
        assert_eq!(letter("C, A"), Some(5));
        assert_eq!(letter("Bx"), None);
        assert_eq!(choice("A or B", false), Some(Choice { letters: 3, hedged: true }));
    }

    #[test]
    fn words_that_are_numbers() {
        assert_eq!(meaning("twenty-one"), Some(Meaning::Number(21)));
        assert_eq!(meaning("Three hundred and five"), Some(Meaning::Number(305)));
        assert_eq!(meaning("一百二十"), Some(Meaning::Number(120)));
        assert_eq!(meaning("七"), Some(Meaning::Number(7)));
        assert_eq!(meaning("east"), None);
    }

    #[test]
    fn phrases() {
        assert!(same_words("June 5", "5 June"));
        assert!(same_words("I and III only", "I, III"));
        assert!(!same_words("I and III only", "I, II"));
        assert!(!same_words("east", "eats"));
    }
}

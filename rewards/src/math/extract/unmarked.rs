//! Answers that nothing marks.

use std::borrow::Cow;

use super::phrase::last_formula;
use super::{Marks, tail_start};

/// Unmarked answers stand in this many bytes at the end.
const UNMARKED_BYTES: usize = 2 * 1024;

const REFUSALS: [&str; 9] = [
    "cannot solve",
    "can't solve",
    "cannot determine",
    "can't determine",
    "unable to",
    "cannot answer",
    "can't answer",
    "not sure",
    "cannot find",
];

/// What may be the answer when nothing says so: all of a short text, the last bold words, formula or number.
pub(super) fn unmarked(tail: &str, marks: Marks) -> Vec<Cow<'_, str>> {
    let text = tail[tail_start(tail, UNMARKED_BYTES)..].trim();
    let mut readings = Vec::new();
    let lower = text[tail_start(text, 300)..].to_lowercase();
    if REFUSALS.iter().any(|refusal| lower.contains(refusal)) {
        return readings;
    }
    let short = text.len() <= 200 && text.len() == tail.trim().len() && !text.contains('\n');
    if short && !text.is_empty() {
        readings.push(Cow::Borrowed(text));
    }
    let bold = if marks.bold { last_bold(text) } else { None };
    let formula = if marks.last_number { last_formula(text) } else { None };
    let number = if marks.last_number { last_number(text) } else { None };
    let mut places: Vec<(usize, usize, &str)> = [bold, formula].into_iter().flatten().map(|(at, s)| (at, at + s.len(), s)).collect();
    places.sort_by_key(|(_, end, _)| std::cmp::Reverse(*end));
    match number {
        Some((at, number)) if places.iter().all(|(_, end, _)| *end < at) => {
            readings.push(Cow::Borrowed(number));
        }
        _ => {
            for (_, _, place) in places {
                readings.push(Cow::Borrowed(place));
            }
            if let Some((_, number)) = number {
                readings.push(Cow::Borrowed(number));
            }
        }
    }
    readings
}

fn last_bold(text: &str) -> Option<(usize, &str)> {
    let end = text.rfind("**")?;
    let start = text[..end].rfind("**")?;
    let inside = text[start + 2..end].trim();
    (!inside.is_empty() && !inside.contains('\n')).then_some((start, inside))
}

/// The last number, with its sign, separators, fraction bar, percent or currency sign.
fn last_number(text: &str) -> Option<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut end = text.rfind(|c: char| c.is_numeric())?;
    end += text[end..].chars().next()?.len_utf8();
    let mut start = end;
    while start > 0 {
        let c = text[..start].chars().next_back()?;
        let inner = matches!(c, '.' | ',' | '/') && text[..start - c.len_utf8()].ends_with(|c: char| c.is_numeric());
        if !c.is_numeric() && !inner {
            break;
        }
        start -= c.len_utf8();
    }
    if start > 0 && bytes[start - 1] == b'.' {
        start -= 1;
    }
    if start > 0 && bytes[start - 1] == b'$' {
        start -= 1;
    }
    let before = text[..start].chars().next_back();
    if let Some(sign @ ('-' | '−' | '–')) = before {
        let further = text[..start - sign.len_utf8()].chars().next_back();
        if further.is_none_or(|c| c.is_whitespace() || matches!(c, '=' | '(' | '*' | '$')) {
            start -= sign.len_utf8();
        }
    }
    for percent in ["\\%", "%", " \\%", " %"] {
        if text[end..].starts_with(percent) {
            end += percent.len();
            break;
        }
    }
    Some((start, &text[start..end]))
}

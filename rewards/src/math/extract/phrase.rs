//! Phrases that give the answer, and formulas.

use std::borrow::Cow;

use memchr::memmem;

use super::Mark;

/// What a phrase that gives the answer may mean: all of it, its formula, its number.
pub(super) fn readings_of_phrase(phrase: &str) -> Vec<Cow<'_, str>> {
    let mut readings = vec![Cow::Borrowed(phrase)];
    // "70 + 2 = 72" reads as an equation; "The answer is 5" inside a tag names itself.
    if let Some(mark) = self::phrase(phrase, 0, None) {
        readings.extend(mark.readings);
    } else if phrase.lines().count() > 1 {
        readings.extend(phrase.lines().next_back().map(|line| Cow::Borrowed(line.trim())));
    }
    if let Some(formula) = last_formula(phrase) {
        readings.push(Cow::Borrowed(formula.1));
    }
    readings
}

/// "The answer is 42.", "Answer: $x$", "答案是7"; the last one after `after`.
pub(super) fn phrase(tail: &str, start: usize, after: Option<usize>) -> Option<Mark<'_>> {
    let bytes = tail.as_bytes();
    let mut best: Option<(usize, usize)> = None;
    let mut end = bytes.len();
    // "nswer" leaves the case of the first letter open; the loop is bounded, not the text.
    for _ in 0..12 {
        let Some(at) = memmem::rfind(&bytes[..end], b"nswer").or_else(|| memmem::rfind(&bytes[..end], b"NSWER")) else { break };
        if let Some(value) = after_answer(tail, at + 5) {
            best = Some((at, value));
            break;
        }
        end = at;
    }
    if !tail.is_ascii() {
        for word in ["答案", "Antwort", "respuesta", "réponse", "الجواب", "答え", "ответ", "Ответ"] {
            if let Some(at) = tail.rfind(word)
                && best.is_none_or(|(b, _)| b < at)
                && let Some(value) = after_answer(tail, at + word.len())
            {
                best = Some((at, value));
            }
        }
    }
    let (at, value) = best?;
    let (sentence, formula) = sentence(&tail[value..]);
    let mut readings = Vec::new();
    if let Some(formula) = formula {
        readings.push(Cow::Borrowed(formula));
    }
    if !sentence.is_empty() {
        readings.push(Cow::Borrowed(sentence));
        if let Some((_, formula)) = last_formula(sentence) {
            readings.push(Cow::Borrowed(formula));
        }
        for cut in [" because", " since", ", which", ", where", " as ", " (", ", so", " after", " in total"] {
            if let Some(at) = sentence.find(cut) {
                readings.push(Cow::Borrowed(&sentence[..at]));
            }
        }
    }
    if readings.is_empty() {
        return None;
    }
    let at = start + at;
    if let Some(after) = after {
        // After a box only a plain value takes it back; a remark about the answer does not.
        let plain_value =
            sentence.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '$' | '(' | '\\' | '*')) || formula.is_some();
        if at < after || !plain_value || readings[0].contains("\\boxed") || readings[0].contains("\\fbox") {
            return None;
        }
    }
    Some(Mark { at, readings })
}

/// Where the value begins after the word "answer", if one is given there.
fn after_answer(tail: &str, at: usize) -> Option<usize> {
    let rest = &tail[at..];
    let skip = |text: &str| -> usize { text.len() - text.trim_start_matches([' ', '*', '_', '"', '\'', '\n', '\t', '\r']).len() };
    let mut value = skip(rest);
    let mut after = &rest[value..];
    let mut linked = rest[..value].contains('\n') && !after.is_empty();
    // Up to six words between: "to the question is".
    for _ in 0..7 {
        if let Some(link) =
            ["is:", "is ", "is\n", "are ", "=", ":", "：", "为", "是", "es ", "ist ", "est ", "be "].iter().find(|l| after.starts_with(**l))
        {
            value += link.len();
            value += skip(&tail[at + value..]);
            after = &tail[at + value..];
            linked = true;
            // "is: 5", "为：7", "is therefore 5"
            for more in [":", "：", "therefore ", "thus ", "simply ", "then ", "equal to ", "given by "] {
                if let Some(rest) = after.strip_prefix(more) {
                    value += more.len() + skip(rest);
                    after = &tail[at + value..];
                }
            }
            break;
        }
        let word = after.bytes().take_while(|b| b.is_ascii_alphabetic()).count();
        if linked || word == 0 || after.as_bytes().get(word) != Some(&b' ') {
            break;
        }
        value += word + 1;
        after = &tail[at + value..];
    }
    (linked && !after.trim().is_empty()).then_some(at + value)
}

/// The first sentence, and the formula that it begins with.
fn sentence(text: &str) -> (&str, Option<&str>) {
    let formula = ["$$", "$", "\\(", "\\["].iter().find(|open| text.starts_with(**open)).and_then(|open| {
        let close = match *open {
            "\\(" => "\\)",
            "\\[" => "\\]",
            dollars => dollars,
        };
        let inside = &text[open.len()..];
        let end = inside.find(close)?;
        let after = inside[end + close.len()..].trim_start_matches(['*', ' ']);
        // "$2$ and $3$" goes on.
        let goes_on = after.trim_start_matches(['.', ',', ' ']).starts_with('$');
        let ends = after.is_empty() || after.starts_with(['.', '\n', '。', ',']) && !goes_on;
        (ends && !inside[..end].trim().is_empty()).then(|| &inside[..end])
    });
    let mut end = text.len();
    let mut dollars = 0;
    for (at, c) in text.char_indices() {
        match c {
            '$' => dollars += 1,
            '\n' if dollars % 2 == 0 => {
                end = at;
                break;
            }
            '。' | '！' => {
                end = at;
                break;
            }
            '<' if text[at..].starts_with("</") => {
                end = at;
                break;
            }
            '.' | '!' if dollars % 2 == 0 && text[at + 1..].starts_with([' ', '\n', '*', '"', '<']) => {
                end = at;
                break;
            }
            _ => {}
        }
        if at > 2000 {
            end = at;
            break;
        }
    }
    let sentence = text[..end].trim().trim_end_matches(['*', '.', '"', '}', '`']).trim();
    // A brace may have been the formula's own.
    let opened = text[..end].matches('{').count();
    let closed = sentence.matches('}').count();
    let sentence = if opened > closed { text[..end].trim().trim_end_matches(['*', '.', '"', '`']) } else { sentence };
    (sentence, formula)
}

/// The last formula between dollars or brackets, with its start.
pub(super) fn last_formula(text: &str) -> Option<(usize, &str)> {
    let mut best: Option<(usize, &str)> = None;
    for (open, close) in [("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)")] {
        let Some(end) = text.rfind(close) else { continue };
        let Some(start) = text[..end].rfind(open) else { continue };
        let inside = &text[start + open.len()..end];
        if !inside.trim().is_empty() && best.is_none_or(|(at, _)| at < start) {
            best = Some((start, inside));
        }
    }
    let end = text.rfind('$').filter(|end| !text[..*end].ends_with('\\') && !text[..*end].ends_with('$'));
    if let Some(end) = end
        && let Some(start) = text[..end].rfind('$')
    {
        let inside = &text[start + 1..end];
        if !inside.trim().is_empty() && !inside.contains('\n') && best.is_none_or(|(at, _)| at < start) {
            best = Some((start, inside));
        }
    }
    best
}

//! Finds the answer in a completion: one pass for each kind of mark, the last one committed to wins.

mod boxes;
mod phrase;
mod unmarked;

use std::borrow::Cow;

use memchr::memmem;

use boxes::{boxes, is_spray, last_boxes};
use phrase::{last_formula, phrase, readings_of_phrase};
use unmarked::unmarked;

/// Where an answer was found, and how surely it is one.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// Readings of the place in order of preference; the first that is an answer counts.
    pub readings: Vec<Cow<'a, str>>,
    /// The answer was marked as such, and not only the last formula or number.
    pub marked: bool,
    /// The first reading is all of the text, unmarked.
    pub whole: bool,
    /// More distinct answers were offered than anyone needs.
    pub spray: bool,
}

/// Marks other than boxes are looked for in this many bytes at the end.
const TAIL_BYTES: usize = 16 * 1024;

const THINK_END: [&str; 3] = ["</think>", "</thinking>", "</reasoning>"];

/// The part of a completion that answers: what follows the last reasoning block.
pub(crate) fn after_think(text: &str) -> &str {
    // One pass from the end for the tag that nearly every model uses.
    let Some(at) = memmem::rfind(text.as_bytes(), b"</think>").map(|at| at + 8).or_else(|| other_think_end(text)) else {
        return text;
    };
    let after = &text[at..];
    if !after.trim().is_empty() {
        return after;
    }
    // Thinking after the answer: what stands before the first block.
    match text.find("<think>") {
        Some(open) if !text[..open].trim().is_empty() => &text[..open],
        _ => after,
    }
}

fn other_think_end(text: &str) -> Option<usize> {
    // Tags are looked for only where there is a tag at all.
    memchr::memchr(b'<', text.as_bytes())?;
    THINK_END[1..].iter().filter_map(|tag| memmem::rfind(text.as_bytes(), tag.as_bytes()).map(|at| at + tag.len())).max()
}

/// Which marks to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    pub boxed: bool,
    pub answer_tag: bool,
    pub final_answer: bool,
    pub hash: bool,
    pub bold: bool,
    pub last_number: bool,
}

/// A marked answer and where it stands.
struct Mark<'a> {
    at: usize,
    readings: Vec<Cow<'a, str>>,
}

pub(crate) fn extract<'a>(text: &'a str, marks: Marks) -> Option<Found<'a>> {
    let text = without_tail_tokens(text);
    let mut spray = false;
    let mut best: Option<Mark<'a>> = None;
    if marks.boxed {
        let boxes = boxes(text);
        spray = is_spray(&boxes);
        best = last_boxes(text, &boxes);
    }
    let start = tail_start(text, TAIL_BYTES);
    let tail = &text[start..];
    let found_box = best.as_ref().map(|b| b.at);
    if marks.answer_tag
        && let Some(mark) = tagged(tail, start)
    {
        // A box inside the tag, or after it, is the nearer mark.
        if found_box.is_none_or(|at| at < mark.at) {
            best = Some(mark);
        }
    }
    if marks.hash
        && let Some(at) = memmem::rfind(tail.as_bytes(), b"####")
        && best.as_ref().is_none_or(|b| b.at < start + at)
    {
        let line = tail[at + 4..].lines().next().unwrap_or("").trim();
        if !line.is_empty() && !line.starts_with('#') && !is_heading(line) {
            best = Some(Mark { at: start + at, readings: readings_of_phrase(line) });
        }
    }
    if marks.final_answer
        && let Some(mark) = phrase(tail, start, best.as_ref().map(|b| b.at))
    {
        best = Some(mark);
    }
    if let Some(mark) = best {
        return Some(Found { readings: mark.readings, marked: true, whole: false, spray });
    }
    let readings = unmarked(tail, marks);
    let whole = readings.first().is_some_and(|r| r.len() == tail.trim().len());
    (!readings.is_empty()).then_some(Found { readings, marked: false, whole, spray })
}

fn is_heading(line: &str) -> bool {
    line.starts_with(|c: char| c.is_alphabetic())
        && line.split_whitespace().count() <= 3
        && !line.contains(|c: char| c.is_ascii_digit())
        && line.to_lowercase().contains("answer")
}

/// The start of the last `max` bytes, at a character.
fn tail_start(text: &str, max: usize) -> usize {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    start
}

/// The text without the end-of-turn tokens that a tokenizer may have left.
fn without_tail_tokens(text: &str) -> &str {
    let mut text = text.trim_end();
    while text.ends_with("|>")
        && let Some(open) = text.rfind("<|")
        && !text[open..].contains("end_of_box")
        && text.len() - open < 40
    {
        text = text[..open].trim_end();
    }
    text
}

/// The content of the last answer tag, or of GLM's box tokens.
fn tagged(tail: &str, start: usize) -> Option<Mark<'_>> {
    let mut best: Option<Mark<'_>> = None;
    for (open, close) in [("<answer>", "</answer>"), ("<|begin_of_box|>", "<|end_of_box|>")] {
        let Some(at) = memmem::rfind(tail.as_bytes(), open.as_bytes()) else { continue };
        let inside = &tail[at + open.len()..];
        let inside = inside.find(close).map_or(inside, |end| &inside[..end]).trim();
        if inside.is_empty() || best.as_ref().is_some_and(|b| b.at > start + at) {
            continue;
        }
        best = Some(Mark { at: start + at, readings: readings_of_phrase(inside) });
    }
    best
}

/// The answer in a gold solution: its box, what follows ####, what is called the answer, or all of it.
pub(crate) fn gold(text: &str) -> Vec<Cow<'_, str>> {
    let text = text.trim();
    let boxes = boxes(text);
    if let Some(mark) = last_boxes(text, &boxes) {
        return mark.readings;
    }
    if let Some(at) = text.rfind("####") {
        return vec![Cow::Borrowed(text[at + 4..].trim())];
    }
    let mut readings = vec![Cow::Borrowed(text)];
    if let Some(mark) = phrase(&text[tail_start(text, TAIL_BYTES)..], 0, None) {
        readings.splice(0..0, mark.readings);
    } else if let Some((_, formula)) = last_formula(text) {
        readings.push(Cow::Borrowed(formula));
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Marks = Marks { boxed: true, answer_tag: true, final_answer: true, hash: true, bold: true, last_number: true };

    fn first(text: &str) -> String {
        extract(text, ALL).map_or("nothing".to_owned(), |found| found.readings[0].trim().to_owned())
    }

    #[test]
    fn the_last_committed_answer_counts() {
        assert_eq!(first("So \\boxed{1}. No: \\boxed{2}."), "2");
        assert_eq!(first("\\boxed{42}. I put it within \\boxed{}."), "42");
        assert_eq!(first("$\\boxed{1}$ or $\\boxed{2}$."), "1 , 2");
        assert_eq!(first("<answer>\n7\n</answer>"), "7");
        assert_eq!(first("#### 1,500"), "1,500");
        assert_eq!(first("The answer is 72. I checked it 3 times."), "72");
        assert_eq!(first("Answer: $1,250$"), "1,250");
        assert_eq!(first("**Answer: A**"), "A");
        assert_eq!(first("最终答案：7708"), "7708");
        assert_eq!(first("{\"answer\": \"-7\"}"), "-7");
        assert_eq!(first("So \\boxed {42}."), "42");
        assert_eq!(first("is $\\boxed 4$."), "4");
        assert_eq!(first("\\boxed{\\frac{1}{2}"), "\\frac{1}{2}");
        assert_eq!(first("They have **24 items** left."), "They have **24 items** left.");
        assert_eq!(first("I cannot solve this. It has 64 parts."), "nothing");
    }

    #[test]
    fn scope_is_after_the_last_reasoning_block() {
        assert_eq!(after_think("<think>a</think>b"), "b");
        assert_eq!(after_think("5<think>no</think>"), "5");
        assert_eq!(after_think("no tags"), "no tags");
    }
}

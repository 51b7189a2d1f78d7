//! Finds the answer in a completion: one pass for each kind of mark, the last one committed to wins.

use std::borrow::Cow;

use memchr::memmem;

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

/// More distinct boxes than this are not an answer.
const MAX_BOXES: usize = 8;
/// Marks other than boxes are looked for in this many bytes at the end.
const TAIL_BYTES: usize = 16 * 1024;
/// Unmarked answers stand in this many bytes at the end.
const UNMARKED_BYTES: usize = 2 * 1024;

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

struct Boxed<'a> {
    start: usize,
    end: usize,
    content: &'a str,
}

/// All boxes, outermost ones by their innermost content.
fn boxes(text: &str) -> Vec<Boxed<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut unclosed = 0;
    let mut at = 0;
    while let Some(next) = memchr::memchr(b'\\', &bytes[at..]) {
        let start = at + next;
        let Some(mut open) = box_command(&bytes[start..]).map(|len| start + len) else {
            at = start + 1;
            continue;
        };
        loop {
            while bytes.get(open).is_some_and(|b| matches!(b, b' ' | b'\n' | b'\t')) {
                open += 1;
            }
            // Boxes in boxes: go in as far as they nest directly.
            if bytes.get(open) == Some(&b'{') {
                let mut inner = open + 1;
                while bytes.get(inner).is_some_and(u8::is_ascii_whitespace) {
                    inner += 1;
                }
                if bytes.get(inner) == Some(&b'\\')
                    && let Some(len) = box_command(&bytes[inner..])
                {
                    open = inner + len;
                    continue;
                }
            }
            break;
        }
        if bytes.get(open) == Some(&b'{') {
            match close(bytes, open) {
                Some(end) => {
                    found.push(Boxed { start, end, content: &text[open + 1..end - 1] });
                    at = end;
                }
                None => {
                    let line = text[open + 1..].find('\n').map_or(text.len(), |n| open + 1 + n);
                    found.push(Boxed { start, end: line, content: &text[open + 1..line] });
                    at = open + 1;
                    unclosed += 1;
                    if unclosed > 4 {
                        break;
                    }
                }
            }
        } else {
            // `\boxed 42`: a number or a letter.
            let rest = &text[open.min(text.len())..];
            let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | ',' | '-')).unwrap_or(rest.len());
            let content = rest[..len].trim_end_matches(['.', ',']);
            if !content.is_empty() && open > start {
                found.push(Boxed { start, end: open + len, content });
            }
            at = open.max(start + 1);
        }
    }
    found
}

/// The length of `\boxed` or `\fbox` at the start, when nothing alphabetic follows.
fn box_command(bytes: &[u8]) -> Option<usize> {
    [&b"\\boxed"[..], b"\\fbox", b"\\framebox"]
        .iter()
        .find(|command| bytes.starts_with(command) && !bytes.get(command.len()).is_some_and(u8::is_ascii_alphabetic))
        .map(|command| command.len())
}

/// The position after the brace that closes the one at `open`.
fn close(bytes: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0u32;
    let mut at = open;
    while let Some(next) = memchr::memchr3(b'{', b'}', b'\\', &bytes[at..]) {
        at += next;
        match bytes[at] {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => at += 1,
        }
        at += 1;
        if at > bytes.len() {
            return None;
        }
    }
    None
}

/// Boxes that only repeat what the prompt asked for.
fn is_placeholder(content: &str) -> bool {
    let content = content.trim();
    let inner = content.strip_prefix("\\text{").and_then(|c| c.strip_suffix('}')).unwrap_or(content);
    let inner =
        inner.trim_matches(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | '.' | '?' | '_' | '<' | '>' | '[' | ']' | '…' | '~'));
    let inner = inner.trim_start_matches("\\ldots").trim_start_matches("\\dots").trim_start_matches("\\cdots");
    inner.is_empty() && !content.contains("[]")
        || matches!(
            inner.to_ascii_lowercase().as_str(),
            "answer" | "your answer" | "final answer" | "your final answer" | "the answer" | "result" | "your answer here" | "answer here"
        )
}

fn is_spray(boxes: &[Boxed<'_>]) -> bool {
    if boxes.len() <= MAX_BOXES {
        return false;
    }
    let mut distinct: Vec<&str> = Vec::new();
    for content in boxes.iter().map(|b| b.content.trim()) {
        if !distinct.contains(&content) {
            distinct.push(content);
            if distinct.len() > MAX_BOXES {
                return true;
            }
        }
    }
    false
}

/// The last box, together with the boxes that it is joined to by "and", "or" or a comma.
fn last_boxes<'a>(text: &'a str, boxes: &[Boxed<'a>]) -> Option<Mark<'a>> {
    let last = boxes.iter().rposition(|b| !is_placeholder(b.content))?;
    let mut first = last;
    while first > 0 && joined(&text[boxes[first - 1].end..boxes[first].start.max(boxes[first - 1].end)]) {
        first -= 1;
    }
    let mut contents: Vec<&str> = Vec::new();
    for b in &boxes[first..=last] {
        if !is_placeholder(b.content) && !contents.contains(&b.content.trim()) {
            contents.push(b.content.trim());
        }
    }
    let reading = if contents.len() > 1 { Cow::Owned(contents.join(" , ")) } else { Cow::Borrowed(boxes[last].content) };
    Some(Mark { at: boxes[last].start, readings: vec![reading] })
}

/// Whether the text between two boxes joins them into one answer.
fn joined(between: &str) -> bool {
    if between.len() > 40 || between.contains('\n') && between.trim().is_empty() {
        return false;
    }
    let mut connector = false;
    for word in between.split(|c: char| c.is_whitespace() || matches!(c, '$' | '\\' | '(' | ')' | '[' | ']' | '{' | '}')) {
        match word {
            "" => {}
            "," | ";" | "and" | "or" | "text" | ",and" | ",or" | "和" | "或" | "&" => connector = true,
            // The name of the next value: `y_2 =`.
            w if w == "=" || w.len() <= 4 && w.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '=' | ',')) => {
                connector |= w.starts_with(',');
            }
            _ => return false,
        }
    }
    connector
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

/// What a phrase that gives the answer may mean: all of it, its formula, its number.
fn readings_of_phrase(phrase: &str) -> Vec<Cow<'_, str>> {
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
fn phrase(tail: &str, start: usize, after: Option<usize>) -> Option<Mark<'_>> {
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
fn last_formula(text: &str) -> Option<(usize, &str)> {
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
fn unmarked(tail: &str, marks: Marks) -> Vec<Cow<'_, str>> {
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

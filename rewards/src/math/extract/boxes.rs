//! Boxed answers.

use std::borrow::Cow;

use super::Mark;

/// More distinct boxes than this are not an answer.
const MAX_BOXES: usize = 8;

pub(super) struct Boxed<'a> {
    start: usize,
    end: usize,
    content: &'a str,
}

/// All boxes, outermost ones by their innermost content.
pub(super) fn boxes(text: &str) -> Vec<Boxed<'_>> {
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

pub(super) fn is_spray(boxes: &[Boxed<'_>]) -> bool {
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
pub(super) fn last_boxes<'a>(text: &'a str, boxes: &[Boxed<'a>]) -> Option<Mark<'a>> {
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

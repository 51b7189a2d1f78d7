//! Math-Verify's extraction patterns.

use std::sync::LazyLock;

use regex::{Match, Regex};

/// A match: the mathematics in it, before normalization.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub text: String,
    /// A percent word follows the formula.
    pub percent: bool,
    /// Matched by the plain-expression patterns, not by the LaTeX ones.
    pub expression: bool,
}

const PERCENT: &str = r"(?:\s*(?P<percent>\\?%|[Pp]ercent|[Pp]ercentage|[Pp]ct))?";
/// What an environment holds when it holds a box.
const BOXED: &str = r"\\boxed\{";

fn env(name: &str) -> String {
    format!(
        r"(?:\$\$(?P<a{name}>[\s\S]+?)\$\$|\\\[(?P<b{name}>[\s\S]+?)\\\]|\$(?P<c{name}>(?:\\\$|[^\n$])+?)\$|\\\((?P<d{name}>[^\n]+?)\\\)|\s\[(?P<e{name}>[^\n$]+?)\]\s|(?P<f{name}>-?\\frac\{{-?\d+(?:\.\d+)?\}}\{{-?\d+(?:\.\d+)?\}}))"
    )
}

/// One environment and up to five more, joined by commas, "and" and "or".
fn joined() -> String {
    let more = anonymous(&env("x"));
    format!(r"(?P<envs>{}{PERCENT}(?:\s*(?:,|and|or)\s*{more}(?:\s*(?:\\?%|[Pp]ercent|[Pp]ercentage|[Pp]ct))?){{0,5}})", env("0"))
}

/// The same pattern without capture groups.
fn anonymous(pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find("(?P<") {
        out.push_str(&rest[..at]);
        out.push_str("(?:");
        rest = &rest[at..];
        rest = &rest[rest.find('>').map_or(rest.len(), |end| end + 1)..];
    }
    out.push_str(rest);
    out
}

struct Patterns {
    hope: Regex,
    boxed_env: Regex,
    final_answer: Regex,
    answer_colon: Regex,
    answer: Regex,
    bare: Regex,
    single: Regex,
    expression: Regex,
    answer_expression: Regex,
    final_expression: Regex,
}

fn compile(pattern: &str) -> Regex {
    // The patterns are constants, which a test compiles.
    #[allow(clippy::expect_used)]
    regex::RegexBuilder::new(pattern).size_limit(64 << 20).build().expect("a constant pattern")
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let envs = joined();
    let number =
        r"(?:-?[1-9]\d{0,2}(?:[ ,]\d{3})+(?:\.\d+)?|-?\d+[.,]\d+|-?\.\d+|-?\d+)(?P<percent>\s*(?:%|[Pp]ercent|[Pp]ercentage|[Pp]ct))?";
    let signs = r"\+\-\*×/\^\(\)÷";
    let expr = format!(r"(?:^|\s|=)(?:\*\*)?(?P<expr>-?\(?-?\d[\d\.\s{signs}]*[{signs}][\d\.\s{signs}]+\)?)(?:\*\*)?(?:\.|,|:|\s|\)|\$|$)");
    let number = format!(r"(?:^|\s|=)(?:\*\*)?[$€£¥₹]?(?P<number>{number})");
    let expression = format!("(?:{expr}|{number})");
    Patterns {
        hope: compile(&format!(r"(?s)(?i:final answer is):?\s*{envs}.?\s?I hope")),
        boxed_env: compile(&format!(
            r"(?:\$\$(?P<a>[\s\S]*?{BOXED}[\s\S]+?\}}[\s\S]*?)\$\$|\\\[(?P<b>[\s\S]*?{BOXED}[\s\S]+?\}}[\s\S]*?)\\\]|\$(?P<c>[^\n$]*?{BOXED}[^\n$]+?\}}[^\n$]*?)\$|\\\((?P<d>[^\n]*?{BOXED}[^\n]+?\}}[^\n]*?)\\\)|\s\[(?P<e>[^\n$]*?{BOXED}[^\n$]+?\}}[^\n$]*?)\]\s){PERCENT}(?P<more>(?:\s*(?:,|and|or)\s*{})*)",
            anonymous(&env("x"))
        )),
        final_answer: compile(&format!(r"(?s)(?i:final answer.{{0,100}}?)\s+is:?\s*{envs}")),
        answer_colon: compile(&format!(r"(?s)(?i:answer):.{{0,50}}?{envs}")),
        answer: compile(&format!(r"(?s)(?i:answer).{{0,50}}?{envs}")),
        bare: compile(&envs),
        single: compile(&format!("{}{PERCENT}", env("0"))),
        answer_expression: compile(&format!(r"(?s)(?i:answer).{{0,50}}?{expression}")),
        final_expression: compile(&format!(r"(?s)(?i:final answer.{{0,100}}?)\s+is:?\s*{expression}")),
        expression: compile(&expression),
    }
});

/// Patterns other than boxes are looked for in this many bytes at the end.
const MAX_BYTES: usize = 32 << 10;

/// A match of a pattern with its place.
struct Place {
    start: usize,
    end: usize,
    found: Found,
}

/// What TRL reads of a completion: the first match of the first group that has any.
pub(super) fn completion(text: &str) -> Option<Found> {
    let patterns = &*PATTERNS;
    let mut places = Vec::new();
    boxes(text, &mut places);
    let start = text.len() - tail(text).len();
    let text = &text[start..];
    let has_answer = contains_answer(text);
    if has_answer {
        let from = places.len();
        environments(&patterns.hope, text, &mut places);
        for place in &mut places[from..] {
            place.start += start;
            place.end += start;
        }
    }
    if let Some(found) = best(places) {
        return Some(found);
    }
    if !has_answer {
        return None;
    }
    for pattern in [&patterns.final_answer, &patterns.answer_colon, &patterns.answer] {
        let mut places = Vec::new();
        environments(pattern, text, &mut places);
        if let Some(found) = best(places) {
            return Some(found);
        }
    }
    None
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(MAX_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn contains_answer(text: &str) -> bool {
    text.contains("nswer") || text.contains("NSWER")
}

fn best(places: Vec<Place>) -> Option<Found> {
    places.into_iter().max_by_key(|p| (p.end, p.end - p.start)).map(|p| p.found)
}

/// All matches in the order in which the gold answer tries them.
pub(super) fn gold(text: &str) -> Vec<Found> {
    let text = tail(text);
    let patterns = &*PATTERNS;
    let mut found = Vec::new();
    let mut group = |fill: &dyn Fn(&mut Vec<Place>)| {
        let mut places = Vec::new();
        fill(&mut places);
        places.sort_by_key(|p| std::cmp::Reverse((p.end, p.end - p.start)));
        found.extend(places.into_iter().map(|p| p.found));
    };
    let has_answer = contains_answer(text);
    if has_answer {
        group(&|out| environments(&patterns.hope, text, out));
    }
    group(&|out| {
        boxes(text, out);
        if has_answer {
            environments(&patterns.final_answer, text, out);
            expressions(&patterns.final_expression, text, out);
        }
    });
    if has_answer {
        group(&|out| environments(&patterns.answer_colon, text, out));
        group(&|out| {
            environments(&patterns.answer, text, out);
            expressions(&patterns.answer_expression, text, out);
        });
    }
    group(&|out| {
        environments(&patterns.bare, text, out);
        expressions(&patterns.expression, text, out);
    });
    found
}

fn expressions(pattern: &Regex, text: &str, out: &mut Vec<Place>) {
    for captures in pattern.captures_iter(text) {
        let whole = captures.get(0).map_or(0..0, |m| m.range());
        let part = captures.name("expr").or_else(|| captures.name("number"));
        if let Some(part) = part {
            let mut value = part.as_str();
            let percent = captures.name("percent");
            if let Some(percent) = percent {
                value = value.strip_suffix(percent.as_str()).unwrap_or(value);
            }
            out.push(Place {
                start: whole.start,
                end: whole.end,
                found: Found { text: value.trim().to_owned(), percent: percent.is_some(), expression: true },
            });
        }
    }
}

/// Matches of a pattern that ends in environments.
fn environments(pattern: &Regex, text: &str, out: &mut Vec<Place>) {
    let mut from = 0;
    while let Some(captures) = pattern.captures_at(text, from) {
        let (Some(whole), Some(envs)) = (captures.get(0), captures.name("envs")) else { break };
        let first = ["a0", "b0", "c0", "d0", "e0", "f0"].iter().find_map(|name| captures.name(name));
        // A dollar after a backslash or a digit opens nothing.
        if let Some(first) = first
            && opened_by_nothing(text, &envs, &first)
        {
            from = envs.start() + 1;
            while !text.is_char_boundary(from) {
                from += 1;
            }
            continue;
        }
        let mut parts = Vec::new();
        let mut at = 0;
        let joined = envs.as_str();
        while let Some(captures) = PATTERNS.single.captures_at(joined, at) {
            let content = ["a0", "b0", "c0", "d0", "e0", "f0"].iter().find_map(|name| captures.name(name));
            parts.extend(content.map(|m| m.as_str().to_owned()));
            at = captures.get(0).map_or(joined.len(), |m| m.end());
        }
        let percent = captures.name("percent").is_some();
        out.push(Place { start: whole.start(), end: whole.end(), found: Found { text: parts.join(","), percent, expression: false } });
        from = whole.end().max(from + 1);
        if from > text.len() {
            break;
        }
    }
}

fn opened_by_nothing(text: &str, envs: &Match<'_>, content: &Match<'_>) -> bool {
    let opening = &text[envs.start()..content.start()];
    let before = text[..envs.start()].bytes().next_back();
    match opening {
        "$" => before.is_some_and(|b| b == b'\\' || b.is_ascii_digit()),
        "" => false,
        _ => before == Some(b'\\'),
    }
}

/// Boxes: in an environment, all of its boxes; by the greedy pattern, the last one and its near neighbours.
fn boxes(text: &str, out: &mut Vec<Place>) {
    let Some(first) = text.find("\\boxed{") else { return };
    let mut from = 0;
    while let Some(captures) = PATTERNS.boxed_env.captures_at(text, from) {
        let Some(whole) = captures.get(0) else { break };
        let before = text[..whole.start()].bytes().next_back();
        let dollar = whole.as_str().starts_with('$') && !whole.as_str().starts_with("$$");
        if before == Some(b'\\') || dollar && before.is_some_and(|b| b.is_ascii_digit()) {
            from = whole.start() + 1;
            continue;
        }
        if let Some(content) = ["a", "b", "c", "d", "e"].iter().find_map(|name| captures.name(name)) {
            let mut all: Vec<&str> = contents(content.as_str()).into_iter().map(|(_, _, c)| c).collect();
            let more = captures.name("more").map_or("", |m| m.as_str());
            all.extend(contents(more).into_iter().map(|(_, _, c)| c));
            if !all.is_empty() {
                let percent = captures.name("percent").is_some();
                out.push(Place { start: whole.start(), end: whole.end(), found: Found { text: merged(&all), percent, expression: false } });
            }
        }
        from = whole.end();
    }
    // `\boxed{.+}`, greedy: to the last brace of the text.
    if let Some(end) = text.rfind('}').filter(|end| *end > first + 7) {
        let boxes = contents(&text[first..=end]);
        let content = match boxes.last() {
            Some(_) => near_the_last(&text[first..=end], &boxes),
            None => text[first + 7..end].to_owned(),
        };
        out.push(Place { start: first, end: end + 1, found: Found { text: content, percent: false, expression: false } });
    }
}

fn merged(contents: &[&str]) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for content in contents {
        if kept.last() != Some(content) {
            kept.push(content);
        }
    }
    kept.join(",")
}

fn near_the_last(text: &str, boxes: &[(usize, usize, &str)]) -> String {
    let mut kept = vec![boxes[boxes.len() - 1].2];
    for pair in boxes.windows(2).rev() {
        let between = &text[pair[0].1..pair[1].0.max(pair[0].1)];
        let connects = ["and", "or", ",", ";"].iter().any(|word| between.contains(word));
        if between.len() < 10 || between.len() < 70 && connects && pair[0].2 != pair[1].2 {
            kept.insert(0, pair[0].2);
        } else {
            break;
        }
    }
    merged(&kept)
}

/// Boxes with their braces matched: start, end, content; a nested box counts by its outermost.
fn contents(text: &str) -> Vec<(usize, usize, &str)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = memchr::memmem::find(&bytes[at..], b"\\boxed{") {
        let start = at + next;
        let open = start + 7;
        let mut depth = 1u32;
        let mut end = open;
        while let Some(brace) = memchr::memchr2(b'{', b'}', &bytes[end..]) {
            end += brace + 1;
            if bytes[end - 1] == b'{' {
                depth += 1;
            } else {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
        }
        if depth > 0 {
            break;
        }
        found.push((start, end, &text[open..end - 1]));
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_and_boxes() {
        let read = |text: &str| completion(text).map(|f| f.text);
        assert_eq!(read("so $\\boxed{4}$").as_deref(), Some("4"));
        assert_eq!(read("\\boxed{1}\\boxed{2}").as_deref(), Some("1,2"));
        assert_eq!(read("The answer is 42."), None);
        assert_eq!(read("The answer is $42$.").as_deref(), Some("42"));
        assert_eq!(read("it costs 5$ and $x$"), None);
        assert_eq!(gold("1/2 + 1/3")[0].text, "1/2 + 1/3");
        assert_eq!(gold("\\frac{1}{3}")[0].text, "\\frac{1}{3}");
        assert!(gold("forty two").is_empty());
    }
}

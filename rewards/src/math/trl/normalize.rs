//! Math-Verify's normalization of LaTeX, as far as it decides what is read.

use std::sync::LazyLock;

use regex::Regex;

/// Words that a number may be followed by; the single letters among them are Math-Verify's own.
const UNITS: &[&str] = &[
    "degree",
    "mph",
    "kmph",
    "ft",
    "mile",
    "deg",
    "percent",
    "gm",
    "lb",
    "dm",
    "men",
    "soldier",
    "inches",
    "gal",
    "kmh",
    "acre",
    "mark",
    "coin",
    "gallon",
    "women",
    "hr",
    "square unit",
    "cubic",
    "day",
    "hour",
    "minute",
    "min",
    "second",
    "man",
    "woman",
    "sec",
    "hectare",
    "unit",
    "kg",
    "km",
    "cm",
    "mm",
    "month",
    "apple",
    "liter",
    "yard",
    "year",
    "litre",
    "metre",
    "meter",
    "inch",
    "cent",
    "foot",
    "feet",
    "student",
    "square",
    "c",
    "d",
    "g",
    "h",
    "l",
    "m",
    "o",
    "s",
    "t",
];

fn constant(pattern: &str) -> Regex {
    #[allow(clippy::expect_used)]
    Regex::new(pattern).expect("a constant pattern")
}

static SUBSCRIPT: LazyLock<Regex> = LazyLock::new(|| constant(r"(\d)_(?:\{[^{}]*\}|\w+)"));
static DEGREE: LazyLock<Regex> = LazyLock::new(|| constant(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)"));
static SIDE_BY_SIDE: LazyLock<Regex> = LazyLock::new(|| constant(r"(^|[^\d_^.])(\d+)(?:\s|\\,)+(\d)"));
static REMAINDER: LazyLock<Regex> = LazyLock::new(|| constant(r"^.*\\bmod"));
static TEXT_UNIT: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"(?s)^([^t]*?[\d})%]|[^a-z]*(?:\\(?:frac|sqrt|pi|cdot|times)[^a-z]*)+)(?:\s|\\,|~)*\\(?:text|mbox)\{[^{}]*\}(?:\^(?:\{\d+\}|\d))?$",
    )
});

pub(super) fn normalize(text: &str) -> String {
    let mut s = text.trim().to_owned();
    for (from, to) in [
        ("\\!", ""),
        ("\\displaystyle", ""),
        ("\\$", ""),
        ("$", ""),
        ("{,}", ","),
        ("\\left", ""),
        ("\\right", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\mathrm{th}", ""),
        ("\\mathrm{e}", "e"),
        ("\\boxed ", ""),
        ("\\text{ percent}", "%"),
        ("\\text{percent}", "%"),
        ("\\%", "%"),
    ] {
        if s.contains(from) {
            s = s.replace(from, to);
        }
    }
    s = s.replace('\n', " ");
    if !s.contains("\\begin") {
        s = s.replace("\\\\", "\\").replace("\\ ", " ");
    }
    s = s.replace(['"', '\''], "");
    for word in [" percent", " pct"] {
        if let Some(stripped) = s.trim_end().strip_suffix(word) {
            s = format!("{stripped}%");
        }
    }
    s = s.trim().to_owned();
    if let Some(captures) = TEXT_UNIT.captures(&s) {
        s = captures[1].to_owned();
    }
    s = drop_unit_words(s);
    for command in ["textbf", "textit", "textrm", "textnormal", "mathrm", "mathbf", "mathit"] {
        let long = format!("\\{command}{{");
        if s.contains(&long) {
            s = s.replace(&long, "\\text{");
        }
    }
    s = DEGREE.replace_all(&s, "").into_owned();
    s = SUBSCRIPT.replace_all(&s, "$1").into_owned();
    if s.contains("\\bmod") {
        s = REMAINDER.replace(&s, "").into_owned();
    }
    s.trim().to_owned()
}

/// The form that is parsed: numbers side by side are a sum, and the case of letters does not count.
pub(super) fn for_parsing(text: &str) -> String {
    let summed = SIDE_BY_SIDE.replace_all(text, "$1$2+$3").into_owned();
    // Names of sets keep their case.
    let mut out = String::with_capacity(summed.len());
    let mut rest = summed.as_str();
    while let Some(at) = rest.find("\\mathbb{") {
        out.push_str(&rest[..at].to_lowercase());
        let end = rest[at..].find('}').map_or(rest.len(), |end| at + end + 1);
        out.push_str(&rest[at..end]);
        rest = &rest[end..];
    }
    out.push_str(&rest.to_lowercase());
    out
}

/// Drops up to two unit words at the end, after a digit, a brace or a space.
fn drop_unit_words(mut s: String) -> String {
    for _ in 0..2 {
        let found = UNITS.iter().filter_map(|unit| {
            let stem = s.strip_suffix(unit).or_else(|| s.strip_suffix('s').and_then(|t| t.strip_suffix(unit)))?;
            let before = stem.chars().next_back()?;
            let command = stem.rfind('\\').is_some_and(|at| stem[at + 1..].chars().all(|c| c.is_ascii_alphabetic()));
            (!command && (before.is_ascii_digit() || before == '}' || before == ' ')).then_some(stem.len())
        });
        match found.min() {
            Some(len) if s[..len].trim_end().ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '}' | ')' | '%')) => {
                s.truncate(len);
                s.truncate(s.trim_end().len());
            }
            _ => break,
        }
    }
    s
}

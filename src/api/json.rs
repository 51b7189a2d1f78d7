//! A request body into its type, or an error that names the path, what was there and what was wanted.

use serde::de::DeserializeOwned;

use super::error::shorten;
use crate::error::Error;

/// Levels of arrays and objects in a body. Requests need about eight.
pub const MAX_NESTING: usize = 64;

/// How a deserializer says that a field is known but not served: the rest of its message is for the caller.
pub const REFUSED: &str = "refused: ";

/// Reads one JSON object.
///
/// # Errors
///
/// 400 with line and column when it is not JSON, with the path when a field is unknown, missing or of another type.
pub fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => {}
        None => return Err(not_json("the body is empty; it must be a JSON object")),
        Some(b'[') => return Err(not_json("the body is a list; it must be a JSON object")),
        Some(_) => return Err(not_json("the body is not a JSON object")),
    }
    check_nesting(bytes)?;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| explain(&path_of(error.path()), error.inner(), bytes))?;
    json.end().map_err(|error| explain("", &error, bytes))?;
    Ok(value)
}

fn not_json(message: impl Into<String>) -> Error {
    Error::invalid_code("body", "invalid_json", message)
}

/// Refuses deep nesting before anything is built from it.
fn check_nesting(bytes: &[u8]) -> Result<(), Error> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(not_json(format!("nested deeper than {MAX_NESTING} levels at byte {at}")));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// `groups[3].messages[0].role`; segments that serde lost (in a buffered enum) are left out.
fn path_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in path {
        let name = match segment {
            Segment::Seq { index } => {
                text.push_str(&format!("[{index}]"));
                continue;
            }
            Segment::Map { key } => key,
            Segment::Enum { variant } => variant,
            Segment::Unknown => continue,
        };
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&shorten(name));
    }
    text
}

fn join(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        path if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
        path => format!("{path}.{field}"),
    }
}

fn explain(path: &str, error: &serde_json::Error, bytes: &[u8]) -> Error {
    let full = error.to_string();
    let (line, column) = (error.line(), error.column());
    let text = full.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&full);
    if !error.is_data() {
        return not_json(format!("not JSON at line {line}, column {column}: {}", syntax(text, bytes, line, column)));
    }
    let here = if path.is_empty() { "body" } else { path };
    if let Some((field, known)) = quoted(text, "unknown field ") {
        let param = join(path, &shorten(field));
        return Error::invalid_code(param, "unknown_field", format!("unknown field{}", suggest(field, known)));
    }
    if let Some((variant, known)) = quoted(text, "unknown variant ") {
        let known = backquoted(known);
        let message = format!("{:?} is not known here; known are {}", shorten(variant), known.join(", "));
        return Error::invalid_code(here, "invalid_value", message);
    }
    if let Some((field, _)) = quoted(text, "missing field ") {
        return Error::invalid_code(join(path, field), "missing_field", "required, but missing");
    }
    if let Some((field, _)) = quoted(text, "duplicate field ") {
        return Error::invalid_code(join(path, field), "duplicate_field", "given twice");
    }
    if let Some(message) = text.strip_prefix(REFUSED) {
        return Error::invalid_code(here, "unsupported_parameter", message);
    }
    for kind in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((got, expected)) = text.strip_prefix(kind).and_then(|rest| rest.split_once(", expected ")) {
            let code = if kind == "invalid type: " { "invalid_type" } else { "invalid_value" };
            return Error::invalid_code(here, code, format!("expected {}, got {}", plain_type(expected), plain_value(got)));
        }
    }
    Error::invalid_code(here, "invalid_value", shorten(text))
}

fn syntax(text: &str, bytes: &[u8], line: usize, column: usize) -> String {
    let at_fault = bytes.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).and_then(|line| line.get(column.saturating_sub(1)..));
    let word: String = at_fault.unwrap_or_default().iter().take_while(|b| b.is_ascii_alphabetic()).map(|b| char::from(*b)).collect();
    match word.as_str() {
        "NaN" | "Infinity" | "I" | "N" => "JSON has no NaN and no Infinity".to_owned(),
        _ if text == "number out of range" => "a number beyond what a 64-bit float can hold".to_owned(),
        _ => shorten(text),
    }
}

/// ``unknown field `a`, expected `b` `` → (`a`, the rest).
fn quoted<'a>(text: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    let rest = text.strip_prefix(start)?.strip_prefix('`')?;
    match rest.split_once("`, ") {
        Some(split) => Some(split),
        None => Some((rest.strip_suffix('`')?, "")),
    }
}

fn backquoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn suggest(field: &str, known: &str) -> String {
    let known = backquoted(known);
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&shorten(field).to_lowercase(), name), *name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1));
    match near {
        Some((_, name)) => format!(", did you mean {name}?"),
        None if known.is_empty() => "; none is known here".to_owned(),
        None if known.len() > 24 => "; /docs lists those that are known here".to_owned(),
        None => format!("; known here are {}", known.join(", ")),
    }
}

/// serde's words for a type in JSON's words.
fn plain_type(expected: &str) -> String {
    let plain = match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "an integer that is not negative",
        "i64" | "i32" => "an integer",
        "f64" | "f32" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        "unit" | "null" => "null",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    shorten(plain)
}

fn plain_value(got: &str) -> String {
    let got = match got {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit value" => "null".to_owned(),
        other => other.replace("floating point ", "number ").replace("integer ", "number ").replace("boolean ", "").replace('`', ""),
    };
    shorten(&got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        groups: Vec<Inner>,
        #[serde(default)]
        temperature: f64,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        id: String,
        #[serde(default)]
        solution: Option<String>,
        #[serde(default)]
        count: usize,
    }

    #[test]
    fn errors_name_path_value_and_wish() {
        let cases = [
            (r#"{"groups": [{"id": "a", "solutoin": "4"}]}"#, "groups[0].solutoin: unknown field, did you mean solution?"),
            (r#"{"groups": [{"id": "a", "zzz": "4"}]}"#, "groups[0].zzz: unknown field; known here are id, solution, count"),
            (r#"{"groups": [{"id": "a"}, {"id": 3}]}"#, "groups[1].id: expected a string, got number 3"),
            (r#"{"groups": [{"id": "a", "count": "8"}]}"#, "groups[0].count: expected an integer that is not negative, got string \"8\""),
            (r#"{"groups": [{"id": "a", "count": -1}]}"#, "groups[0].count: expected an integer that is not negative, got number -1"),
            (r#"{"groups": [{"id": "a", "count": 1.5}]}"#, "groups[0].count: expected an integer that is not negative, got number 1.5"),
            (r#"{"groups": {}}"#, "groups: expected a list, got an object"),
            (r#"{"groups": [{}]}"#, "groups[0].id: required, but missing"),
            (r#"{}"#, "groups: required, but missing"),
            (r#"{"groups": [{"id": "a", "id": "b"}]}"#, "groups[0].id: given twice"),
            ("{\"groups\": [],\n \"temperature\": NaN}", "body: not JSON at line 2, column 17: JSON has no NaN and no Infinity"),
            (
                r#"{"groups": [], "temperature": 1e999}"#,
                "body: not JSON at line 1, column 35: a number beyond what a 64-bit float can hold",
            ),
            (r#"{"groups": []"#, "body: not JSON at line 1, column 13: EOF while parsing an object"),
            (r#"{"groups": []} x"#, "body: not JSON at line 1, column 16: trailing characters"),
            ("", "body: the body is empty; it must be a JSON object"),
            ("[1]", "body: the body is a list; it must be a JSON object"),
        ];
        for (body, expected) in cases {
            assert_eq!(read_json::<Outer>(body.as_bytes()).unwrap_err().to_string(), expected, "{body}");
        }
        let deep = format!("{{\"groups\": {}", "[".repeat(20_000_000));
        assert_eq!(read_json::<Outer>(deep.as_bytes()).unwrap_err().to_string(), "body: nested deeper than 64 levels at byte 74");
        assert!(read_json::<Outer>(br#"{"groups": [{"id": "[[[\"{{{"}]}"#).is_ok());
    }
}

//! The bits of Python's standard library that chat templates are written against.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Keyword arguments of `json.dumps`.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonStyle {
    pub indent: Option<usize>,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

/// `json.dumps(value)`: separators `", "` and `": "`, or one entry a line with an indent; keys keep their order.
pub fn json_dumps(value: &Value, style: JsonStyle) -> String {
    let mut text = String::new();
    dump(value, style, 0, &mut text);
    text
}

fn dump(value: &Value, style: JsonStyle, depth: usize, out: &mut String) {
    match value {
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => out.push_str(&float_repr(float)),
            None => out.push_str(&number.to_string()),
        },
        Value::String(text) => dump_string(text, style, out),
        Value::Array(items) => {
            dump_entries('[', ']', items.len(), style, depth, out, |i, out| dump(&items[i], style, depth + 1, out));
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            dump_entries('{', '}', entries.len(), style, depth, out, |i, out| {
                dump_string(entries[i].0, style, out);
                out.push_str(": ");
                dump(entries[i].1, style, depth + 1, out);
            });
        }
        other => out.push_str(&other.to_string()),
    }
}

fn dump_entries(
    open: char,
    close: char,
    count: usize,
    style: JsonStyle,
    depth: usize,
    out: &mut String,
    mut entry: impl FnMut(usize, &mut String),
) {
    let new_line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    out.push(open);
    for i in 0..count {
        if i > 0 {
            out.push_str(if style.indent.is_some() { "," } else { ", " });
        }
        new_line(depth + 1, out);
        entry(i, out);
    }
    if count > 0 {
        new_line(depth, out);
    }
    out.push(close);
}

fn dump_string(text: &str, style: JsonStyle, out: &mut String) {
    // Python and serde_json escape the same characters, quotes, backslashes and controls.
    let quoted = Value::from(text).to_string();
    if !style.ensure_ascii {
        out.push_str(&quoted);
        return;
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| _ = write!(out, "\\u{unit:04x}"));
        }
    }
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
        }
        _ if value.fract() == 0.0 => format!("{value}.0"),
        _ => format!("{value}"),
    }
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
/// 1 January 1970 was a Thursday.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime` for the directives that templates use, in UTC so that a prompt does not depend on a server's time zone. Others are kept
/// as they are.
pub fn strftime_utc(format: &str, time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = chars.next().unwrap_or('%');
        _ = match directive {
            'Y' => write!(text, "{year}"),
            'y' => write!(text, "{:02}", year % 100),
            'm' => write!(text, "{month:02}"),
            'd' => write!(text, "{day:02}"),
            'H' => write!(text, "{hour:02}"),
            'I' => write!(text, "{:02}", (hour + 11) % 12 + 1),
            'M' => write!(text, "{minute:02}"),
            'S' => write!(text, "{second:02}"),
            'p' => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            'B' => write!(text, "{month_name}"),
            'b' => write!(text, "{}", &month_name[..3]),
            'A' => write!(text, "{day_name}"),
            'a' => write!(text, "{}", &day_name[..3]),
            '%' => write!(text, "%"),
            other => write!(text, "%{other}"),
        };
    }
    text
}

/// Year, month and day from days since 1970 (Howard Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    (year, month as usize, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-7, 0.0001, null, true], "a": "é<&'\"\n", "e": {}, "l": []});
        let plain = r#"{"b": [1, 2.0, 1e+16, 1e-07, 0.0001, null, true], "a": "é<&'\"\n", "e": {}, "l": []}"#;
        assert_eq!(json_dumps(&value, JsonStyle::default()), plain);
        let ascii = JsonStyle { ensure_ascii: true, sort_keys: true, indent: None };
        assert_eq!(json_dumps(&json!({"b": "😀", "a": 1}), ascii), r#"{"a": 1, "b": "\ud83d\ude00"}"#);
        let indented = JsonStyle { indent: Some(2), ..JsonStyle::default() };
        assert_eq!(json_dumps(&json!({"a": [1, {}], "b": "x"}), indented), "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": \"x\"\n}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| strftime_utc("%A %a %d %B %b %Y %y-%m %H:%M:%S %I%p %% %q", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12AM % %q");
        assert_eq!(at(951_782_399), "Monday Mon 28 February Feb 2000 00-02 23:59:59 11PM % %q");
        assert_eq!(at(951_868_799), "Tuesday Tue 29 February Feb 2000 00-02 23:59:59 11PM % %q");
    }
}

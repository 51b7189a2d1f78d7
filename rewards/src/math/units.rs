//! Units of measurement: what they measure and how large they are.

use super::rational::Rational;

/// Powers of length, mass, time, money and angle.
type Dimensions = [i8; 5];

/// What an answer is measured in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Measure {
    /// No unit is written.
    Bare,
    /// "units", "square units": any unit will do.
    Any,
    Known {
        dimensions: Dimensions,
        /// In metres, kilograms, seconds, dollars and degrees.
        factor: Rational,
    },
    /// Things that are counted, or a unit outside the table: the singular in lower case.
    Other(String),
}

const L: Dimensions = [1, 0, 0, 0, 0];
const V: Dimensions = [3, 0, 0, 0, 0];
const M: Dimensions = [0, 1, 0, 0, 0];
const T: Dimensions = [0, 0, 1, 0, 0];
const D: Dimensions = [0, 0, 0, 1, 0];
const A: Dimensions = [0, 0, 0, 0, 1];
const S: Dimensions = [1, 0, -1, 0, 0];

/// Names, what they measure, and the size as a fraction.
const UNITS: &[(&[&str], Dimensions, i64, i64)] = &[
    (&["m", "meter", "metre", "米"], L, 1, 1),
    (&["cm", "centimeter", "centimetre", "厘米"], L, 1, 100),
    (&["mm", "millimeter", "millimetre", "毫米"], L, 1, 1000),
    (&["dm", "decimeter", "decimetre", "分米"], L, 1, 10),
    (&["km", "kilometer", "kilometre", "千米", "公里"], L, 1000, 1),
    (&["in", "inch", "inches"], L, 127, 5000),
    (&["ft", "foot", "feet"], L, 381, 1250),
    (&["yd", "yard"], L, 1143, 1250),
    (&["mi", "mile"], L, 201_168, 125),
    (&["l", "L", "liter", "litre", "升"], V, 1, 1000),
    (&["ml", "mL", "milliliter", "millilitre", "毫升"], V, 1, 1_000_000),
    (&["gal", "gallon"], V, 473_176_473, 125_000_000_000),
    (&["quart"], V, 473_176_473, 500_000_000_000),
    (&["pint"], V, 473_176_473, 1_000_000_000_000),
    (&["kg", "kilogram", "千克", "公斤"], M, 1, 1),
    (&["g", "gram", "克"], M, 1, 1000),
    (&["mg", "milligram"], M, 1, 1_000_000),
    (&["t", "tonne", "ton", "吨"], M, 1000, 1),
    (&["lb", "lbs", "pound"], M, 45_359_237, 100_000_000),
    (&["oz", "ounce"], M, 45_359_237, 1_600_000_000),
    (&["s", "sec", "second", "秒"], T, 1, 1),
    (&["ms", "millisecond"], T, 1, 1000),
    (&["min", "minute", "分钟"], T, 60, 1),
    (&["h", "hr", "hour", "小时"], T, 3600, 1),
    (&["day", "天"], T, 86_400, 1),
    (&["week", "周"], T, 604_800, 1),
    (&["$", "dollar", "usd", "USD", "buck"], D, 1, 1),
    (&["cent", "¢"], D, 1, 100),
    (&["degree", "deg"], A, 1, 1),
    (&["mph"], S, 201_168, 450_000),
    (&["kph", "kmh", "kmph"], S, 5, 18),
];

/// Words that no unit contains: what holds one of them is a sentence.
const NOT_UNITS: &[&str] = &[
    "not",
    "or",
    "and",
    "possibly",
    "maybe",
    "probably",
    "approximately",
    "about",
    "if",
    "when",
    "where",
    "for",
    "than",
    "but",
    "is",
    "are",
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "am",
    "pm",
    "as",
    "with",
    "to",
    "more",
    "less",
    "except",
    "unless",
    "between",
    "only",
    "least",
    "most",
    "no",
    "mod",
    "times",
    "plus",
    "minus",
];

fn find(word: &str) -> Option<(Dimensions, Rational)> {
    let lookup = |word: &str| {
        UNITS.iter().find(|(names, ..)| names.contains(&word)).map(|(_, dimensions, n, d)| {
            (*dimensions, Rational::int(*n).div(&Rational::int(*d), &mut super::budget::Budget::new(100)).ok())
        })
    };
    let (dimensions, factor) = lookup(word).or_else(|| {
        let lower = word.to_lowercase();
        let long = |w: &str| if w.len() > 2 { lookup(w) } else { None };
        long(&lower).or_else(|| lower.strip_suffix('s').and_then(long))
    })?;
    Some((dimensions, factor?))
}

/// The factor of "million" and the like in front of a phrase, and the rest of it.
pub(crate) fn multiplier(phrase: &str) -> Option<(i64, &str)> {
    let phrase = phrase.trim_start();
    let len = phrase.find(|c: char| !c.is_alphabetic()).unwrap_or(phrase.len());
    let factor = match &phrase[..len] {
        "hundred" => 100,
        "thousand" => 1_000,
        "million" => 1_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        "dozen" => 12,
        "万" => 10_000,
        "亿" => 100_000_000,
        _ => return None,
    };
    Some((factor, &phrase[len..]))
}

/// Whether a word is a unit of the table.
pub(crate) fn is_unit(word: &str) -> bool {
    find(word).is_some()
}

/// The unit that a phrase such as `cm^2`, `miles per hour`, `square feet` or `red balls` names.
pub(crate) fn parse(phrase: &str) -> Option<Measure> {
    let phrase = phrase.trim().trim_end_matches(['.', ',']);
    if phrase.is_empty() {
        return Some(Measure::Bare);
    }
    let mut dimensions: Dimensions = [0; 5];
    let mut factor = Rational::ONE;
    let mut known = true;
    let mut any = false;
    let mut sign: i8 = 1;
    let mut power: i8 = 1;
    let mut words = Vec::new();
    let mut budget = super::budget::Budget::new(10_000);
    let bytes = phrase.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &phrase[at..];
        let c = rest.chars().next()?;
        if c.is_alphabetic() || matches!(c, '$' | '¢' | '°') {
            let len = rest.find(|c: char| !c.is_alphabetic() && !matches!(c, '$' | '¢' | '°' | '-' | '\'')).unwrap_or(rest.len());
            let word = &rest[..len];
            at += len;
            let lower = word.to_lowercase();
            if NOT_UNITS.contains(&lower.as_str()) {
                return None;
            }
            match lower.as_str() {
                "per" => {
                    sign = -1;
                    words.push("per".to_owned());
                    continue;
                }
                "square" | "sq" => {
                    power = 2;
                    continue;
                }
                "cubic" | "cu" => {
                    power = 3;
                    continue;
                }
                "unit" | "units" => {
                    any = true;
                    continue;
                }
                "of" => continue,
                _ => {}
            }
            // An exponent after the word.
            if let Some(tail) = phrase[at..].strip_prefix('^') {
                let tail = tail.trim_start_matches('{');
                let len = tail.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(tail.len());
                power = tail[..len].parse().ok()?;
                at = phrase.len() - tail.len() + len;
                if phrase[at..].starts_with('}') {
                    at += 1;
                }
            }
            match find(word) {
                Some((d, f)) => {
                    for (total, d) in dimensions.iter_mut().zip(d) {
                        *total = total.checked_add(d.checked_mul(sign.checked_mul(power)?)?)?;
                    }
                    let f = f.pow(i64::from(sign) * i64::from(power), &mut budget).ok()?;
                    factor = factor.mul(&f, &mut budget).ok()?;
                }
                None => known = false,
            }
            words.push(singular(&lower));
            power = 1;
            continue;
        }
        match c {
            '/' => sign = -1,
            ' ' | '~' | '*' | '·' | '{' | '}' | '(' | ')' | '\\' => {}
            _ => return None,
        }
        at += c.len_utf8();
    }
    if any {
        return Some(Measure::Any);
    }
    if words.is_empty() || words.len() > 4 {
        return None;
    }
    Some(if known { Measure::Known { dimensions, factor } } else { Measure::Other(words.join(" ")) })
}

fn singular(word: &str) -> String {
    match word {
        "people" | "persons" => "person".to_owned(),
        "children" => "child".to_owned(),
        "men" => "man".to_owned(),
        "women" => "woman".to_owned(),
        _ => match word.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => word.strip_suffix('s').filter(|w| w.len() > 2).unwrap_or(word).to_owned(),
        },
    }
}

/// How the units of two answers go together.
#[derive(Debug, PartialEq)]
pub(crate) enum Units {
    /// The values compare as they are.
    Same,
    /// The values compare once multiplied by these.
    Scaled(Rational, Rational),
    /// No values make the answers equal.
    Clash,
}

pub(crate) fn relate(a: &Measure, b: &Measure) -> Units {
    match (a, b) {
        (Measure::Bare | Measure::Any, _) | (_, Measure::Bare | Measure::Any) => Units::Same,
        (Measure::Known { dimensions: d, factor: f }, Measure::Known { dimensions: e, factor: g }) => {
            if d != e {
                Units::Clash
            } else if f == g {
                Units::Same
            } else {
                Units::Scaled(f.clone(), g.clone())
            }
        }
        (Measure::Other(a), Measure::Other(b)) if a == b || a.ends_with(&format!(" {b}")) || b.ends_with(&format!(" {a}")) => Units::Same,
        _ => Units::Clash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(phrase: &str) -> (Dimensions, Rational) {
        match parse(phrase) {
            Some(Measure::Known { dimensions, factor }) => (dimensions, factor),
            other => panic!("{phrase}: {other:?}"),
        }
    }

    #[test]
    fn phrases() {
        assert_eq!(known("cm^2"), known("square centimeters"));
        assert_eq!(known("m/s"), known("meters per second"));
        assert_eq!(known("mph"), known("miles per hour"));
        assert_eq!(known("km/h"), known("kph"));
        assert_eq!(known("m/s^2").0, [1, 0, -2, 0, 0]);
        assert_eq!(known("$"), known("dollars"));
        assert_eq!(parse("red balls"), Some(Measure::Other("red ball".to_owned())));
        assert_eq!(parse("square units"), Some(Measure::Any));
        assert_eq!(parse("or 18"), None);
    }
}

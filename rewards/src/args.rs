//! Typed, validated arguments of rewards.

use serde_json::{Map, Value};

use crate::{REWARDS, Reward, guard::Guarded};

/// How deep rewards may be made of rewards.
const MAX_NESTING: usize = 16;

/// One argument of a reward.
#[derive(Debug)]
pub struct ArgSpec {
    pub name: &'static str,
    /// `string`, `number`, `integer`, `bool`, `one of a|b`, `list of KIND`, `reward`, `object` or `any`; a trailing `?` allows null.
    pub kind: &'static str,
    /// The default as JSON; empty when the argument is required.
    pub default: &'static str,
    pub about: &'static str,
}

/// Why a reward could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct ArgError {
    /// The argument, such as `mode`, `golds[2]` or `rewards[1].tolerance`; empty for the reward itself.
    pub path: String,
    pub message: String,
}

/// The arguments of one reward: checked against its table row, defaults filled in.
#[derive(Debug)]
pub struct Args {
    values: Map<String, Value>,
    path: String,
    depth: usize,
}

impl Args {
    /// An error about one argument.
    pub fn error(&self, name: &str, message: impl Into<String>) -> ArgError {
        ArgError { path: join(&self.path, name), message: message.into() }
    }

    /// The argument as JSON; null when it was left out and has no default.
    #[must_use]
    pub fn value(&self, name: &str) -> &Value {
        self.values.get(name).unwrap_or(&Value::Null)
    }

    /// A `bool` argument.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        self.value(name).as_bool().unwrap_or(false)
    }

    /// A `string` or `one of` argument; empty when it is null.
    #[must_use]
    pub fn string(&self, name: &str) -> &str {
        self.value(name).as_str().unwrap_or("")
    }

    /// A `number?` argument.
    #[must_use]
    pub fn optional_number(&self, name: &str) -> Option<f64> {
        self.value(name).as_f64()
    }

    /// A `number` argument.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        self.optional_number(name).unwrap_or(0.0)
    }

    /// A `number` argument within bounds.
    ///
    /// # Errors
    ///
    /// The number is outside them.
    pub fn number_in(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, ArgError> {
        let number = self.number(name);
        if range.contains(&number) {
            return Ok(number);
        }
        Err(self.error(name, format!("{number} is not between {} and {}", range.start(), range.end())))
    }

    /// An `integer` argument of at least `min`.
    ///
    /// # Errors
    ///
    /// It is smaller.
    pub fn integer(&self, name: &str, min: u64) -> Result<u64, ArgError> {
        match self.value(name).as_u64() {
            Some(n) if n >= min => Ok(n),
            _ => Err(self.error(name, format!("must be a whole number of at least {min}"))),
        }
    }

    /// An `integer` argument within bounds.
    ///
    /// # Errors
    ///
    /// It is outside them.
    pub fn integer_in(&self, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, ArgError> {
        let value = self.value(name);
        match value.as_u64().filter(|n| range.contains(n)) {
            Some(n) => Ok(n),
            None => Err(self.error(name, format!("{value} is not between {} and {}", range.start(), range.end()))),
        }
    }

    /// A `list of string` argument; a lone string is a list of one.
    #[must_use]
    pub fn strings(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::String(s) => vec![s.clone()],
            Value::Array(items) => items.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    }

    /// A `reward` argument: `{"name": …, args…}` or a bare name.
    ///
    /// # Errors
    ///
    /// As [`crate::build`].
    pub fn reward(&self, name: &str) -> Result<Box<dyn Reward>, ArgError> {
        self.nested(self.value(name), &join(&self.path, name))
    }

    /// A `list of reward` argument.
    ///
    /// # Errors
    ///
    /// As [`crate::build`]; also an empty list.
    pub fn rewards(&self, name: &str) -> Result<Vec<Box<dyn Reward>>, ArgError> {
        let items = self.value(name).as_array().map_or(&[][..], Vec::as_slice);
        if items.is_empty() {
            return Err(self.error(name, "needs at least one reward"));
        }
        let path = join(&self.path, name);
        items.iter().enumerate().map(|(i, item)| self.nested(item, &format!("{path}[{i}]"))).collect()
    }

    fn nested(&self, spec: &Value, path: &str) -> Result<Box<dyn Reward>, ArgError> {
        let error = |message: &str| ArgError { path: path.to_owned(), message: message.to_owned() };
        match spec {
            Value::String(name) => build_at(name, &Map::new(), path, self.depth + 1),
            Value::Object(map) => {
                let name = map.get("name").and_then(Value::as_str).ok_or_else(|| error("a reward needs a name"))?;
                let mut args = map.clone();
                args.shift_remove("name");
                build_at(name, &args, path, self.depth + 1)
            }
            _ => Err(error("must be a reward, such as {\"name\": \"accuracy\"}")),
        }
    }
}

/// Makes the reward `name` whose arguments stand at `path`.
pub(crate) fn build_at(name: &str, args: &Map<String, Value>, path: &str, depth: usize) -> Result<Box<dyn Reward>, ArgError> {
    let error = |message: String| ArgError { path: path.to_owned(), message };
    if depth > MAX_NESTING {
        return Err(error(format!("rewards are nested more than {MAX_NESTING} deep")));
    }
    let Some(spec) = REWARDS.iter().find(|spec| spec.name == name) else {
        let hint = did_you_mean(name, REWARDS.iter().map(|spec| spec.name));
        return Err(error(format!("there is no reward {name:?}{hint}")));
    };
    for given in args.keys() {
        if !spec.args.iter().any(|arg| arg.name == given) {
            let hint = did_you_mean(given, spec.args.iter().map(|arg| arg.name));
            let message = format!("the reward {name:?} has no argument {given:?}{hint}");
            return Err(ArgError { path: join(path, given), message });
        }
    }
    let mut values = Map::new();
    for arg in spec.args {
        let at = join(path, arg.name);
        let value = match args.get(arg.name) {
            Some(value) => {
                check_kind(value, arg.kind, &at)?;
                value.clone()
            }
            None if arg.default.is_empty() => {
                return Err(ArgError { path: at, message: format!("the reward {name:?} needs it") });
            }
            None => serde_json::from_str(arg.default).unwrap_or(Value::Null),
        };
        values.insert(arg.name.to_owned(), value);
    }
    let reward = (spec.build)(&Args { values, path: path.to_owned(), depth })?;
    Ok(Box::new(Guarded(reward)))
}

fn check_kind(value: &Value, kind: &str, path: &str) -> Result<(), ArgError> {
    let refuse = |message: String| Err(ArgError { path: path.to_owned(), message });
    let kind = match kind.strip_suffix('?') {
        Some(_) if value.is_null() => return Ok(()),
        Some(kind) => kind,
        None => kind,
    };
    if let Some(choices) = kind.strip_prefix("one of ") {
        let given = value.as_str().unwrap_or("");
        if choices.split('|').any(|choice| choice == given) {
            return Ok(());
        }
        let hint = did_you_mean(given, choices.split('|'));
        return refuse(format!("{value} is not one of {}{hint}", choices.split('|').collect::<Vec<_>>().join(", ")));
    }
    if let Some(inner) = kind.strip_prefix("list of ") {
        return match value {
            Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| check_kind(item, inner, &format!("{path}[{i}]"))),
            Value::String(_) if inner == "string" => Ok(()),
            _ => refuse(format!("must be a list of {inner}, not {}", describe(value))),
        };
    }
    let fits = match kind {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "bool" => value.is_boolean(),
        "object" => value.is_object(),
        "reward" => value.is_object() || value.is_string(),
        _ => true,
    };
    if fits { Ok(()) } else { refuse(format!("must be of kind {kind}, not {}", describe(value))) }
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// `; did you mean "x"?` for the nearest known name, or nothing when none is near.
fn did_you_mean<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (strsim::jaro_winkler(given, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{REWARDS, build};

    fn message(name: &str, args: serde_json::Value) -> String {
        match build(name, args.as_object().unwrap()) {
            Ok(_) => "built".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn errors_name_the_place_and_the_likely_word() {
        assert_eq!(message("acuracy", json!({})), r#"there is no reward "acuracy"; did you mean "accuracy"?"#);
        assert_eq!(
            message("think_format", json!({"prefiled": true})),
            r#"prefiled: the reward "think_format" has no argument "prefiled"; did you mean "prefilled"?"#
        );
        assert_eq!(message("think_format", json!({"prefilled": "yes"})), "prefilled: must be of kind bool, not a string");
        assert_eq!(message("field", json!({})), r#"field: the reward "field" needs it"#);
    }

    #[test]
    fn every_default_fits_its_kind() {
        for spec in REWARDS {
            for arg in spec.args.iter().filter(|arg| !arg.default.is_empty()) {
                let value = serde_json::from_str(arg.default).unwrap();
                super::check_kind(&value, arg.kind, arg.name).unwrap();
            }
        }
    }
}

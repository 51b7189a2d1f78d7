//! A JSON answer against a schema.

use regex::Regex;
use serde_json::{Map, Value};

use super::json_valid::json_answer;
use super::regex_match::compile;
use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "json_schema",
    about: "1 when the JSON answer satisfies a JSON schema of these keywords: type, enum, const, properties, required, additionalProperties, items, minItems, maxItems, minimum, maximum, minLength, maxLength, pattern, anyOf.",
    args: &[ArgSpec { name: "schema", kind: "object", default: "", about: "The schema." }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let schema = Schema::read(args.value("schema"), 0).map_err(|(path, message)| args.error(&format!("schema{path}"), message))?;
        Ok(Box::new(JsonSchema { schema }))
    },
};

struct JsonSchema {
    schema: Schema,
}

const MAX_NESTING: usize = 32;
/// Keywords that say nothing about validity.
const ANNOTATIONS: [&str; 6] = ["$schema", "title", "description", "default", "examples", "$id"];

/// A schema, read once; absent keywords accept everything.
#[derive(Default)]
struct Schema {
    types: Vec<String>,
    allowed: Option<Vec<Value>>,
    properties: Vec<(String, Schema)>,
    required: Vec<String>,
    closed: bool,
    items: Option<Box<Schema>>,
    any_of: Vec<Schema>,
    items_range: (Option<u64>, Option<u64>),
    length_range: (Option<u64>, Option<u64>),
    range: (Option<f64>, Option<f64>),
    pattern: Option<Regex>,
}

type ReadError = (String, String);

impl Schema {
    fn read(value: &Value, depth: usize) -> Result<Self, ReadError> {
        let fail = |path: &str, message: &str| Err((path.to_owned(), message.to_owned()));
        if depth > MAX_NESTING {
            return fail("", "is nested too deep");
        }
        let map: &Map<String, Value> = match value {
            Value::Object(map) => map,
            Value::Bool(true) => return Ok(Schema::default()),
            _ => return fail("", "must be an object"),
        };
        let mut schema = Schema::default();
        for (key, value) in map {
            let here = |message: &str| (format!(".{key}"), message.to_owned());
            let count = || value.as_u64().ok_or_else(|| here("must be a whole number of at least 0"));
            let number = || value.as_f64().ok_or_else(|| here("must be a number"));
            let strings = || {
                let items = value.as_array().ok_or_else(|| here("must be a list of strings"))?;
                items
                    .iter()
                    .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| here("must be a list of strings")))
                    .collect::<Result<Vec<_>, _>>()
            };
            match key.as_str() {
                "type" => {
                    schema.types = match value {
                        Value::String(s) => vec![s.clone()],
                        _ => strings()?,
                    };
                    const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "integer", "string"];
                    if schema.types.iter().any(|t| !TYPES.contains(&t.as_str())) {
                        return Err(here("is not a JSON type"));
                    }
                }
                "enum" => schema.allowed = Some(value.as_array().ok_or_else(|| here("must be a list"))?.clone()),
                "const" => schema.allowed = Some(vec![value.clone()]),
                "properties" => {
                    for (name, inner) in value.as_object().ok_or_else(|| here("must be an object"))? {
                        let inner = Schema::read(inner, depth + 1).map_err(|(path, m)| (format!(".properties.{name}{path}"), m))?;
                        schema.properties.push((name.clone(), inner));
                    }
                }
                "required" => schema.required = strings()?,
                "additionalProperties" => schema.closed = !value.as_bool().ok_or_else(|| here("must be true or false"))?,
                "items" => {
                    schema.items = Some(Box::new(Schema::read(value, depth + 1).map_err(|(path, m)| (format!(".items{path}"), m))?));
                }
                "anyOf" => {
                    for (i, inner) in value.as_array().ok_or_else(|| here("must be a list"))?.iter().enumerate() {
                        schema.any_of.push(Schema::read(inner, depth + 1).map_err(|(path, m)| (format!(".anyOf[{i}]{path}"), m))?);
                    }
                }
                "minItems" => schema.items_range.0 = Some(count()?),
                "maxItems" => schema.items_range.1 = Some(count()?),
                "minLength" => schema.length_range.0 = Some(count()?),
                "maxLength" => schema.length_range.1 = Some(count()?),
                "minimum" => schema.range.0 = Some(number()?),
                "maximum" => schema.range.1 = Some(number()?),
                "pattern" => {
                    let pattern = value.as_str().ok_or_else(|| here("must be a string"))?;
                    schema.pattern = Some(compile(pattern).map_err(|m| (format!(".{key}"), m))?);
                }
                annotation if ANNOTATIONS.contains(&annotation) => {}
                _ => return Err(here("is a keyword outside the supported subset")),
            }
        }
        Ok(schema)
    }

    fn accepts(&self, value: &Value) -> bool {
        let is = |name: &String| match name.as_str() {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "object" => value.is_object(),
            "array" => value.is_array(),
            "number" => value.is_number(),
            "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
            _ => value.is_string(),
        };
        let within = |n: u64, (min, max): (Option<u64>, Option<u64>)| min.is_none_or(|m| n >= m) && max.is_none_or(|m| n <= m);
        if !self.types.is_empty() && !self.types.iter().any(is) {
            return false;
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(value)) {
            return false;
        }
        if !self.any_of.is_empty() && !self.any_of.iter().any(|schema| schema.accepts(value)) {
            return false;
        }
        match value {
            Value::Object(map) => {
                self.required.iter().all(|name| map.contains_key(name))
                    && self.properties.iter().all(|(name, schema)| map.get(name).is_none_or(|v| schema.accepts(v)))
                    && (!self.closed || map.keys().all(|key| self.properties.iter().any(|(name, _)| name == key)))
            }
            Value::Array(items) => {
                within(items.len() as u64, self.items_range)
                    && self.items.as_ref().is_none_or(|schema| items.iter().all(|v| schema.accepts(v)))
            }
            Value::String(text) => {
                within(text.chars().count() as u64, self.length_range) && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
            }
            Value::Number(n) => {
                let x = n.as_f64().unwrap_or(f64::NAN);
                self.range.0.is_none_or(|min| x >= min) && self.range.1.is_none_or(|max| x <= max)
            }
            _ => true,
        }
    }
}

impl Reward for JsonSchema {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        match json_answer(sample) {
            Some(value) => Verdict::matched(self.schema.accepts(&value)),
            None => Verdict::new(0.0, Reason::NoAnswer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_subset() {
        let args = json!({"schema": {"type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"type": "array", "items": {"enum": ["x", "y"]}}}}});
        let reward = crate::build("json_schema", args.as_object().unwrap()).unwrap();
        let value = |completion: &str| reward.score(&Sample { completion, ..Sample::default() }).value.unwrap();
        assert_eq!(value("{\"a\": 1, \"b\": [\"x\"]}"), 1.0);
        assert_eq!(value("{\"a\": -1}"), 0.0);
        assert_eq!(value("{\"a\": 1, \"c\": 2}"), 0.0);
        assert_eq!(value("{\"b\": []}"), 0.0);
        let args = json!({"schema": {"properties": {"a": {"not": {}}}}});
        let error = crate::build("json_schema", args.as_object().unwrap()).err().unwrap();
        assert_eq!(error.path, "schema.properties.a.not");
    }
}

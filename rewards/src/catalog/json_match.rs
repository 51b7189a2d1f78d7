//! Fields of a JSON answer.

use serde_json::Value;

use super::json_valid::json_answer;
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "json_match",
    about: "The share of the solution's fields that the JSON answer has right; 0 when it is no JSON.",
    args: &[ArgSpec {
        name: "fields",
        kind: "list of string",
        default: "[]",
        about: "Paths such as \"a.b.0\"; empty for all fields at the top of the solution.",
    }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(JsonMatch { fields: args.strings("fields") })) },
};

struct JsonMatch {
    fields: Vec<String>,
}

fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Object(map) => map.get(key),
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Equal as JSON, where 1 and 1.0 are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64().is_some() && x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w))),
        _ => a == b,
    }
}

fn gold(solution: Option<&Value>) -> Result<Value, Reason> {
    match solution {
        None | Some(Value::Null) => Err(Reason::NoGold),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|_| Reason::BadGold),
        Some(value) => Ok(value.clone()),
    }
}

impl Reward for JsonMatch {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let gold = match gold(sample.solution) {
            Ok(gold) => gold,
            Err(reason) => return Verdict::none(reason),
        };
        let Some(answer) = json_answer(sample) else { return Verdict::new(0.0, Reason::NoAnswer) };
        let paths: Vec<String> = match &gold {
            _ if !self.fields.is_empty() => self.fields.clone(),
            Value::Object(map) => map.keys().cloned().collect(),
            _ => return Verdict::matched(same(&gold, &answer)),
        };
        if paths.is_empty() {
            return Verdict::matched(same(&gold, &answer));
        }
        // A key at the top may hold dots itself.
        let find = |value: &'_ Value, path: &str| value.get(path).or_else(|| at(value, path)).cloned();
        let right = paths.iter().filter(|path| match (find(&gold, path), find(&answer, path)) {
            (Some(a), Some(b)) => same(&a, &b),
            (None, None) => true,
            _ => false,
        });
        Verdict::new(right.count() as f64 / paths.len() as f64, Reason::Computed)
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        gold(solution).map(|_| ()).map_err(|_| BadSolution::new("the solution is no JSON"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn share_of_fields() {
        let reward = crate::build("json_match", &serde_json::Map::new()).unwrap();
        let gold = json!({"a": 1, "b": [1, 2], "c": "x"});
        let value = |completion: &str| reward.score(&Sample { completion, solution: Some(&gold), ..Sample::default() }).value.unwrap();
        assert_eq!(value("{\"a\": 1.0, \"b\": [1, 2], \"c\": \"x\"}"), 1.0);
        assert_eq!(value("Here:\n```json\n{\"a\": 2, \"b\": [1, 2]}\n```"), 1.0 / 3.0);
        assert_eq!(value("no"), 0.0);
    }
}

//! Countdown: make the target of the given numbers.

use serde_json::Value;

use super::parts::answer_text;
use crate::math::arithmetic;
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "countdown",
    about: "1 when the answer is an expression of the given numbers with + - * / that makes the target, exactly; a smaller score when it is an expression at all.",
    args: &[
        ArgSpec {
            name: "numbers",
            kind: "string",
            default: "\"numbers\"",
            about: "The field that lists the numbers; \"nums\" is tried as well.",
        },
        ArgSpec {
            name: "target",
            kind: "string",
            default: "\"target\"",
            about: "The field of the target; without it the solution is the target.",
        },
        ArgSpec { name: "each", kind: "one of once|at_most_once", default: "\"once\"", about: "Whether every number must be used." },
        ArgSpec { name: "format_score", kind: "number", default: "0.1", about: "The score of an expression that is wrong." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(Countdown {
            numbers: args.string("numbers").to_owned(),
            target: args.string("target").to_owned(),
            all: args.string("each") == "once",
            format_score: args.number("format_score"),
        }))
    },
};

struct Countdown {
    numbers: String,
    target: String,
    all: bool,
    format_score: f64,
}

fn as_integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok()).or_else(|| {
        let x = value.as_f64()?;
        (x.fract() == 0.0 && x.abs() < 1e15).then_some(x as i64)
    })
}

impl Reward for Countdown {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let field = |name: &str| sample.fields.and_then(|fields| fields.get(name));
        let numbers = field(&self.numbers).or_else(|| field("nums")).and_then(Value::as_array);
        let numbers = numbers.and_then(|numbers| numbers.iter().map(as_integer).collect::<Option<Vec<i64>>>());
        let target = field(&self.target).or(sample.solution).and_then(as_integer);
        let (Some(mut numbers), Some(target)) = (numbers, target) else {
            return Verdict::none(Reason::NoField);
        };
        let text = answer_text(sample);
        let Some(result) = arithmetic(&text) else {
            return Verdict::new(0.0, Reason::NoAnswer).about(&text);
        };
        let wrong = Verdict::new(self.format_score, Reason::Different).about(&text);
        for literal in &result.literals {
            match numbers.iter().position(|n| n == literal) {
                Some(at) => numbers.swap_remove(at),
                None => return wrong,
            };
        }
        if self.all && !numbers.is_empty() || result.value != Some(target) {
            return wrong;
        }
        Verdict::new(1.0, Reason::EqualExact).about(&text)
    }

    fn check_solution(&self, _: Option<&Value>) -> Result<(), BadSolution> {
        // The target may be a field, which is not seen here.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_number_once() {
        let reward = crate::build("countdown", &serde_json::Map::new()).unwrap();
        let fields = json!({"numbers": [3, 7, 25, 50], "target": 765});
        let value = |completion: &str| reward.score(&Sample { completion, fields: fields.as_object(), ..Sample::default() }).value;
        let fits = json!({"nums": [2, 3, 4], "target": 14});
        let reward2 = crate::build("countdown", &serde_json::Map::new()).unwrap();
        let small = |completion: &str| reward2.score(&Sample { completion, fields: fits.as_object(), ..Sample::default() }).value;
        assert_eq!(small("<answer>2 + 3 * 4</answer>"), Some(1.0));
        assert_eq!(small("<answer>2 + 3 × 4 = 14</answer>"), Some(1.0));
        assert_eq!(small("<answer>2 * 3 + 4 + 4</answer>"), Some(0.1));
        assert_eq!(small("<answer>(2 + 3) * 4</answer>"), Some(0.1));
        assert_eq!(small("<answer>fourteen</answer>"), Some(0.0));
        assert_eq!(value("<answer>7 / (3 - 3)</answer>"), Some(0.1));
    }
}

//! A number, within a tolerance.

use serde_json::Value;

use super::accuracy::golds;
use crate::math::compare::{Policy, Tolerance, UnitPolicy};
use crate::math::extract::Marks;
use crate::math::judge::{GoldForm, Judge, Scope, is_right};
use crate::{ArgError, ArgSpec, Args, BadSolution, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "numeric",
    about: "1 when the answer is the solution's number within a tolerance, as for GSM8K: after ####, in a box or a tag, or the last number.",
    args: &[
        ArgSpec { name: "rel", kind: "number", default: "1e-6", about: "The tolerance relative to the solution." },
        ArgSpec { name: "abs", kind: "number", default: "0", about: "The absolute tolerance." },
        ArgSpec { name: "strict_hash", kind: "bool", default: "false", about: "Accept only what follows ####." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let strict = args.bool("strict_hash");
        let marks = Marks { boxed: !strict, answer_tag: !strict, final_answer: !strict, hash: true, bold: !strict, last_number: !strict };
        let tolerance = Tolerance { abs: args.number_in("abs", 0.0..=f64::MAX)?, rel: args.number_in("rel", 0.0..=1.0)? };
        let policy = Policy { tolerance, percent_either: true, units: UnitPolicy::Ignore, hedging: false };
        Ok(Box::new(Numeric { judge: Judge { marks, scope: Scope::AfterThink, form: GoldForm::Auto, policy, bad_gold_as_text: false } }))
    },
};

struct Numeric {
    judge: Judge,
}

impl Reward for Numeric {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match golds(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        if !golds.iter().any(|gold| self.judge.is_number(gold)) {
            return Verdict::none(crate::Reason::BadGold);
        }
        let judgement = self.judge.judge(&golds, sample.completion);
        let verdict = Verdict::new(if is_right(judgement.reason) { 1.0 } else { 0.0 }, judgement.reason);
        match judgement.extracted {
            Some(text) => verdict.about(&text),
            None => verdict,
        }
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        let golds = golds(solution).map_err(|_| BadSolution::new("there is no gold answer"))?;
        if golds.iter().any(|gold| self.judge.is_number(gold)) {
            return Ok(());
        }
        Err(BadSolution::new(format!("the gold answer {:?} is not a number", golds.first().map_or("", |g| g))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_in_every_dress() {
        let value = |args: Value, completion: &str, gold: Value| {
            let reward = crate::build("numeric", args.as_object().unwrap()).unwrap();
            reward.score(&Sample { completion, solution: Some(&gold), ..Sample::default() }).value
        };
        assert_eq!(value(json!({}), "So it is 1,234.", json!("#### 1234")), Some(1.0));
        assert_eq!(value(json!({}), "#### $18", json!(18)), Some(1.0));
        assert_eq!(value(json!({"rel": 0.01}), "about 3.14", json!("3.1416")), Some(1.0));
        assert_eq!(value(json!({"strict_hash": true}), "It is 18.", json!("18")), Some(0.0));
        assert_eq!(value(json!({}), "It is 18.", json!("a cat")), None);
    }
}

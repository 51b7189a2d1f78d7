//! A wanted length.

use serde_json::Value;

use super::parts::{MODE, UNIT_TOKENS, Unit, accuracy};
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "target_length",
    about: "Correctness with a wanted length n_gold (L1, arXiv 2503.04697): \"exact\" is correct − alpha·|n − n_gold|, \"max\" is correct·clip(alpha·(n_gold − n) + delta, 0, 1).",
    args: &[
        ArgSpec { name: "n_gold", kind: "integer", default: "", about: "The wanted length." },
        ArgSpec { name: "alpha", kind: "number", default: "0.0003", about: "The price of one unit of length." },
        ArgSpec { name: "kind", kind: "one of exact|max", default: "\"exact\"", about: "Hit the length, or stay below it." },
        ArgSpec { name: "delta", kind: "number", default: "0.5", about: "The value at the wanted length, for \"max\"." },
        UNIT_TOKENS,
        MODE,
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(TargetLength {
            n_gold: args.integer("n_gold", 1)? as f64,
            alpha: args.number_in("alpha", 0.0..=1.0)?,
            max: args.string("kind") == "max",
            delta: args.number_in("delta", 0.0..=1.0)?,
            unit: Unit::of(args),
            accuracy: accuracy(args)?,
        }))
    },
};

struct TargetLength {
    n_gold: f64,
    alpha: f64,
    max: bool,
    delta: f64,
    unit: Unit,
    accuracy: Box<dyn Reward>,
}

impl Reward for TargetLength {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let verdict = self.accuracy.score(sample);
        let Some(correct) = verdict.value else { return verdict };
        let Some(length) = self.unit.length(sample) else { return Verdict::none(Reason::NoTokenIds) };
        let over = length as f64 - self.n_gold;
        let value = if self.max { correct * (self.delta - self.alpha * over).clamp(0.0, 1.0) } else { correct - self.alpha * over.abs() };
        Verdict { value: Some(value), reason: Reason::Computed, ..verdict }
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.accuracy.check_solution(solution)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_kinds() {
        let gold = json!("$5$");
        let value = |kind: &str, n: usize| {
            let args = json!({"n_gold": 100, "alpha": 0.01, "kind": kind, "mode": "best"});
            let ids = vec![0; n];
            let sample = Sample { completion: "\\boxed{5}", solution: Some(&gold), token_ids: Some(&ids), ..Sample::default() };
            crate::build("target_length", args.as_object().unwrap()).unwrap().score(&sample).value.unwrap()
        };
        assert_eq!(value("exact", 100), 1.0);
        assert!((value("exact", 150) - 0.5).abs() < 1e-12);
        assert!((value("max", 80) - 0.7).abs() < 1e-12);
        assert_eq!(value("max", 200), 0.0);
    }
}

//! The first reward that has a verdict.

use serde_json::Value;

use super::parts::{Combine, Combined, REWARDS};
use crate::{ArgError, Args, BadSolution, Reason, Reward, RewardSpec, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "first_non_none",
    about: "The first of several rewards that gives a verdict.",
    args: &[REWARDS],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(Combined(FirstNonNone { rewards: args.rewards("rewards")? })))
    },
};

struct FirstNonNone {
    rewards: Vec<Box<dyn Reward>>,
}

impl Combine for FirstNonNone {
    fn rewards(&self) -> &[Box<dyn Reward>] {
        &self.rewards
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        verdicts.iter().find(|verdict| verdict.value.is_some()).cloned().unwrap_or(Verdict::none(Reason::NoOperand))
    }

    fn check(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        // One of them is enough.
        let mut checks = self.rewards.iter().map(|reward| reward.check_solution(solution));
        let first = checks.next().unwrap_or(Ok(()));
        if first.is_ok() || checks.any(|check| check.is_ok()) { Ok(()) } else { first }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Sample;

    fn value(spec: serde_json::Value) -> Option<f64> {
        let mut args = spec.as_object().unwrap().clone();
        let name = args.remove("name").unwrap();
        crate::build(name.as_str().unwrap(), &args).unwrap().score(&Sample::default()).value
    }

    #[test]
    fn null_operands() {
        let none = json!({"name": "constant", "value": null});
        let two = json!({"name": "constant", "value": 2});
        assert_eq!(value(json!({"name": "weighted_sum", "rewards": [none, two], "weights": [1, 0.5]})), Some(1.0));
        assert_eq!(value(json!({"name": "weighted_sum", "rewards": [none]})), None);
        assert_eq!(value(json!({"name": "product", "rewards": [none, two]})), None);
        assert_eq!(value(json!({"name": "max", "rewards": [two, {"name": "constant", "value": 3}]})), Some(3.0));
        assert_eq!(value(json!({"name": "first_non_none", "rewards": [none, two]})), Some(2.0));
        assert_eq!(value(json!({"name": "clip", "reward": two, "max": 1})), Some(1.0));
        assert_eq!(value(json!({"name": "gate", "gate": "think_format", "reward": two, "otherwise": -1})), Some(-1.0));
        assert_eq!(value(json!({"name": "gate", "gate": two, "reward": none})), None);
    }

    #[test]
    fn errors_of_nested_rewards_have_paths() {
        let args = json!({"rewards": ["accuracy", {"name": "clip", "reward": {"name": "accuracy", "mode": "bets"}}]});
        let error = crate::build("product", args.as_object().unwrap()).err().unwrap();
        assert_eq!(error.path, "rewards[1].reward.mode");
        assert!(error.message.contains("did you mean \"best\"?"), "{error}");
    }
}

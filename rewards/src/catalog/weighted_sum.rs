//! A weighted sum.

use serde_json::Value;

use super::parts::{Combine, Combined, REWARDS};
use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "weighted_sum",
    about: "The weighted sum of rewards; those without a verdict are left out, as TRL leaves out NaN, and without any there is none.",
    args: &[
        REWARDS,
        ArgSpec { name: "weights", kind: "list of number", default: "[]", about: "One weight for each reward; empty for 1 each." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let rewards = args.rewards("rewards")?;
        let mut weights: Vec<f64> = args.value("weights").as_array().map_or(Vec::new(), |w| w.iter().filter_map(Value::as_f64).collect());
        if weights.is_empty() {
            weights = vec![1.0; rewards.len()];
        }
        if weights.len() != rewards.len() {
            return Err(args.error("weights", format!("there are {} for {} rewards", weights.len(), rewards.len())));
        }
        Ok(Box::new(Combined(WeightedSum { rewards, weights })))
    },
};

struct WeightedSum {
    rewards: Vec<Box<dyn Reward>>,
    weights: Vec<f64>,
}

impl Combine for WeightedSum {
    fn rewards(&self) -> &[Box<dyn Reward>] {
        &self.rewards
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        let mut sum = None;
        for (verdict, weight) in verdicts.iter().zip(&self.weights) {
            if let Some(value) = verdict.value {
                sum = Some(sum.unwrap_or(0.0) + value * weight);
            }
        }
        sum.map_or(Verdict::none(Reason::NoOperand), |sum| Verdict::new(sum, Reason::Computed))
    }
}

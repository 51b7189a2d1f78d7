//! Completions that were cut off.

use std::sync::Arc;

use serde_json::Value;

use crate::{ArgError, ArgSpec, Args, Ask, BadSolution, FinishReason, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "truncated",
    about: "A fixed value for a completion that ran into its length limit; the given reward, or 0, for the others.",
    args: &[
        ArgSpec { name: "value", kind: "number?", default: "null", about: "The value of a truncated completion; null gives no verdict." },
        ArgSpec { name: "reward", kind: "reward?", default: "null", about: "The reward of the others; null gives 0." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let reward = if args.value("reward").is_null() { None } else { Some(args.reward("reward")?) };
        Ok(Box::new(Truncated { value: args.optional_number("value"), reward }))
    },
};

struct Truncated {
    value: Option<f64>,
    reward: Option<Box<dyn Reward>>,
}

impl Truncated {
    fn verdict(&self, sample: &Sample<'_>) -> Option<Verdict> {
        (sample.finish_reason == Some(FinishReason::Length)).then_some(Verdict {
            value: self.value,
            extracted: None,
            reason: Reason::Truncated,
        })
    }
}

impl Reward for Truncated {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        self.verdict(sample).unwrap_or_else(|| match &self.reward {
            Some(reward) => reward.score(sample),
            None => Verdict::new(0.0, Reason::Computed),
        })
    }

    fn score_group(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let Some(reward) = &self.reward else { return samples.iter().map(|sample| self.score(sample)).collect() };
        let verdicts = reward.score_group(samples);
        samples.iter().zip(verdicts).map(|(sample, verdict)| self.verdict(sample).unwrap_or(verdict)).collect()
    }

    fn needs_group(&self) -> bool {
        self.reward.as_ref().is_some_and(|reward| reward.needs_group())
    }

    fn asks(&self) -> Vec<Arc<Ask>> {
        self.reward.as_ref().map_or(Vec::new(), |reward| reward.asks())
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.reward.as_ref().map_or(Ok(()), |reward| reward.check_solution(solution))
    }
}

//! A reward within bounds.

use super::parts::{Combine, Combined, REWARD};
use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "clip",
    about: "A reward held within bounds.",
    args: &[
        REWARD,
        ArgSpec { name: "min", kind: "number?", default: "null", about: "The lower bound; null for none." },
        ArgSpec { name: "max", kind: "number?", default: "null", about: "The upper bound; null for none." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let (min, max) = (args.optional_number("min"), args.optional_number("max"));
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            return Err(args.error("min", format!("{min} is larger than max, {max}")));
        }
        Ok(Box::new(Combined(Clip { rewards: vec![args.reward("reward")?], min, max })))
    },
};

struct Clip {
    rewards: Vec<Box<dyn Reward>>,
    min: Option<f64>,
    max: Option<f64>,
}

impl Combine for Clip {
    fn rewards(&self) -> &[Box<dyn Reward>] {
        &self.rewards
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        let verdict = verdicts[0].clone();
        let value = verdict.value.map(|v| v.max(self.min.unwrap_or(f64::NEG_INFINITY)).min(self.max.unwrap_or(f64::INFINITY)));
        Verdict { value, ..verdict }
    }
}

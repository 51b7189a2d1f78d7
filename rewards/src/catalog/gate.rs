//! One reward that lets another through.

use super::parts::{Combine, Combined, REWARD};
use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "gate",
    about: "A reward where another, the gate, reaches a threshold; a fixed value elsewhere.",
    args: &[
        ArgSpec { name: "gate", kind: "reward", default: "", about: "The reward that decides, such as think_format." },
        REWARD,
        ArgSpec { name: "threshold", kind: "number", default: "1.0", about: "What the gate must reach." },
        ArgSpec { name: "otherwise", kind: "number", default: "0.0", about: "The value below the threshold." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let rewards = vec![args.reward("gate")?, args.reward("reward")?];
        Ok(Box::new(Combined(Gate { rewards, threshold: args.number("threshold"), otherwise: args.number("otherwise") })))
    },
};

struct Gate {
    /// The gate and what it lets through.
    rewards: Vec<Box<dyn Reward>>,
    threshold: f64,
    otherwise: f64,
}

impl Combine for Gate {
    fn rewards(&self) -> &[Box<dyn Reward>] {
        &self.rewards
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        match (&verdicts[0].value, &verdicts[1].value) {
            (Some(gate), Some(_)) if *gate >= self.threshold => verdicts[1].clone(),
            (Some(_), Some(_)) => Verdict::new(self.otherwise, Reason::NotMatched),
            _ => Verdict::none(Reason::NoOperand),
        }
    }
}

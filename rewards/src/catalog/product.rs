//! Products, minima and maxima of rewards.

use super::parts::{Combine, Combined, REWARDS, values};
use crate::{ArgError, Args, Reason, Reward, RewardSpec, Verdict};

type Fold = fn(f64, f64) -> f64;

fn make(args: &Args, fold: Fold) -> Result<Box<dyn Reward>, ArgError> {
    Ok(Box::new(Combined(Folded { rewards: args.rewards("rewards")?, fold })))
}

pub(super) const PRODUCT: RewardSpec = RewardSpec {
    name: "product",
    about: "The product of rewards; no verdict when one of them has none.",
    args: &[REWARDS],
    build: |args: &Args| make(args, |a, b| a * b),
};

pub(super) const MIN: RewardSpec = RewardSpec {
    name: "min",
    about: "The smallest of rewards; no verdict when one of them has none.",
    args: &[REWARDS],
    build: |args: &Args| make(args, f64::min),
};

pub(super) const MAX: RewardSpec = RewardSpec {
    name: "max",
    about: "The largest of rewards; no verdict when one of them has none.",
    args: &[REWARDS],
    build: |args: &Args| make(args, f64::max),
};

struct Folded {
    rewards: Vec<Box<dyn Reward>>,
    fold: Fold,
}

impl Combine for Folded {
    fn rewards(&self) -> &[Box<dyn Reward>] {
        &self.rewards
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        match values(verdicts) {
            Ok(values) => {
                values.into_iter().reduce(self.fold).map_or(Verdict::none(Reason::NoOperand), |v| Verdict::new(v, Reason::Computed))
            }
            Err(verdict) => verdict,
        }
    }
}

//! The same value for every sample.

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "constant",
    about: "The same value for every sample.",
    args: &[ArgSpec { name: "value", kind: "number?", default: "0", about: "The value; null gives no verdict." }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(Constant { value: args.optional_number("value") })) },
};

struct Constant {
    value: Option<f64>,
}

impl Reward for Constant {
    fn score(&self, _: &Sample<'_>) -> Verdict {
        Verdict { value: self.value, extracted: None, reason: Reason::Computed }
    }
}

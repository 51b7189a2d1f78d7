//! Signs of step by step reasoning.

use regex::Regex;

use super::regex_match::compile;
use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "reasoning_steps",
    about: "min(1, steps/target), where a step is a match of the pattern. With the defaults it equals open-r1's reasoning_steps_reward.",
    args: &[
        ArgSpec {
            name: "pattern",
            kind: "string",
            default: r#""(Step \\d+:|^\\d+\\.|\\n-|\\n\\*|First,|Second,|Next,|Finally,)""#,
            about: "What a step looks like, in the syntax of Rust's regex crate.",
        },
        ArgSpec { name: "target", kind: "integer", default: "3", about: "How many steps are enough." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let regex = compile(args.string("pattern")).map_err(|e| args.error("pattern", e))?;
        Ok(Box::new(ReasoningSteps { regex, target: args.integer("target", 1)? }))
    },
};

struct ReasoningSteps {
    regex: Regex,
    target: u64,
}

impl Reward for ReasoningSteps {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let steps = self.regex.find_iter(sample.completion).take(self.target as usize).count();
        Verdict::new((steps as f64 / self.target as f64).min(1.0), Reason::Computed)
    }
}

//! A fenced block of code in the answer.

use super::tag_format::{closings, last_block};
use crate::math::extract::after_think;
use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "code_format",
    about: "1 when the answer has a fenced block of code in the language. With tags it equals open-r1's code format reward.",
    args: &[
        ArgSpec { name: "language", kind: "string", default: "\"python\"", about: "The language after the fence." },
        ArgSpec { name: "tags", kind: "bool", default: "true", about: "Ask for <think> and <answer> blocks around." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(CodeFormat { fence: format!("```{}", args.string("language")), tags: args.bool("tags") }))
    },
};

struct CodeFormat {
    fence: String,
    tags: bool,
}

impl CodeFormat {
    /// Where the first block of code ends.
    fn block_end(&self, text: &str) -> Option<usize> {
        let start = text.find(&self.fence)? + self.fence.len();
        text[start..].find("```").map(|at| start + at + 3)
    }
}

impl Reward for CodeFormat {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        if !self.tags {
            return Verdict::matched(self.block_end(after_think(sample.completion)).is_some());
        }
        let tags = ["think".to_owned(), "answer".to_owned()];
        let matched = last_block(sample.completion, &tags)
            .is_some_and(|rest| self.block_end(rest).is_some_and(|end| closings(rest, "answer").any(|close| close >= end)));
        Verdict::matched(matched)
    }
}

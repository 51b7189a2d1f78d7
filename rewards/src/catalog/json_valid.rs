//! The answer is JSON.

use serde_json::Value;

use super::parts::answer_text;
use crate::math::extract::after_think;
use crate::{ArgError, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "json_valid",
    about: "1 when the answer is one JSON value, plain or in a fenced block.",
    args: &[],
    build: |_: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(JsonValid)) },
};

/// The JSON value that a sample answers, if it is one: plain, in a tag, or in a fenced block.
pub(super) fn json_answer(sample: &Sample<'_>) -> Option<Value> {
    let scope = after_think(sample.completion).trim();
    if let Ok(value) = serde_json::from_str(scope) {
        return Some(value);
    }
    if let Some(start) = scope.rfind("```json").map(|at| at + 7).or_else(|| {
        let end = scope.rfind("```")?;
        scope[..end].rfind("```").map(|at| at + 3)
    }) {
        let block = &scope[start..];
        let block = block.find("```").map_or(block, |end| &block[..end]);
        if let Ok(value) = serde_json::from_str(block.trim()) {
            return Some(value);
        }
    }
    serde_json::from_str(answer_text(sample).trim()).ok()
}

struct JsonValid;

impl Reward for JsonValid {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        Verdict::matched(json_answer(sample).is_some())
    }
}

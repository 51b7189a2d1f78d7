//! The answer as text, equal to the gold text.

use super::parts::answer_text;
use super::words::{NORMALIZE, Normal, gold_texts};
use crate::{ArgError, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "exact_match",
    about: "1 when the answer's text is a gold text, after normalization.",
    args: &[NORMALIZE],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(ExactMatch { normal: Normal::of(args)? })) },
};

struct ExactMatch {
    normal: Normal,
}

impl Reward for ExactMatch {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match gold_texts(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let text = answer_text(sample);
        let answer = self.normal.apply(&text);
        let same = golds.iter().any(|gold| self.normal.apply(gold) == answer);
        let reason = if same { Reason::EqualText } else { Reason::Different };
        Verdict::new(f64::from(u8::from(same)), reason).about(&text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn any_gold_in_any_dress() {
        let reward = crate::build("exact_match", &serde_json::Map::new()).unwrap();
        let value = |completion: &str, gold: serde_json::Value| {
            reward.score(&Sample { completion, solution: Some(&gold), ..Sample::default() }).value
        };
        assert_eq!(value("<think>x</think><answer>The Eiffel  Tower!</answer>", json!("Eiffel tower")), Some(1.0));
        assert_eq!(value("Paris", json!(["London", "Paris"])), Some(1.0));
        assert_eq!(value("Paris, France", json!("Paris")), Some(0.0));
        assert_eq!(value("Paris", json!(null)), None);
    }
}

//! The gold text within the answer.

use super::parts::answer_text;
use super::words::{NORMALIZE, Normal, gold_texts};
use crate::{ArgError, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "contains",
    about: "1 when the answer's text contains a gold text, after normalization.",
    args: &[NORMALIZE],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(Contains { normal: Normal::of(args)? })) },
};

struct Contains {
    normal: Normal,
}

impl Reward for Contains {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match gold_texts(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let text = answer_text(sample);
        let answer = self.normal.apply(&text);
        Verdict::matched(golds.iter().any(|gold| answer.contains(&self.normal.apply(gold)))).about(&text)
    }
}

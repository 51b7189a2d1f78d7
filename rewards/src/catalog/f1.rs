//! Overlap of words.

use std::collections::HashMap;

use super::parts::answer_text;
use super::words::{NORMALIZE, Normal, gold_texts};
use crate::{ArgError, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "f1",
    about: "The F1 score of the answer's words against a gold text's, the best over the gold texts.",
    args: &[NORMALIZE],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(F1 { normal: Normal::of(args)? })) },
};

struct F1 {
    normal: Normal,
}

/// 2·precision·recall/(precision + recall) over multisets of words.
fn f1(answer: &str, gold: &str) -> f64 {
    let mut counts: HashMap<&str, i64> = HashMap::new();
    let mut gold_words = 0u32;
    for word in gold.split_whitespace() {
        *counts.entry(word).or_default() += 1;
        gold_words += 1;
    }
    let mut words = 0u32;
    let mut common = 0u32;
    for word in answer.split_whitespace() {
        words += 1;
        if let Some(left) = counts.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    if words == 0 || gold_words == 0 {
        return f64::from(u8::from(words == gold_words));
    }
    2.0 * f64::from(common) / f64::from(words + gold_words)
}

impl Reward for F1 {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match gold_texts(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let text = answer_text(sample);
        let answer = self.normal.apply(&text);
        let best = golds.iter().map(|gold| f1(&answer, &self.normal.apply(gold))).fold(0.0, f64::max);
        Verdict::new(best, Reason::Computed).about(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multisets_of_words() {
        assert_eq!(f1("a b b", "b b c"), 2.0 / 3.0);
        assert_eq!(f1("", ""), 1.0);
        assert_eq!(f1("a", ""), 0.0);
    }
}

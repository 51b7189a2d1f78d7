//! Marks that occur exactly once.

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "tag_count",
    about: "A part for each mark that occurs exactly once. With the defaults it equals open-r1's tag_count_reward.",
    args: &[
        ArgSpec {
            name: "marks",
            kind: "list of string",
            default: r#"["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"]"#,
            about: "The marks.",
        },
        ArgSpec { name: "per_mark", kind: "number", default: "0.25", about: "What one mark is worth." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let marks = args.strings("marks");
        if marks.iter().any(String::is_empty) {
            return Err(args.error("marks", "must not be empty"));
        }
        Ok(Box::new(TagCount { marks, per_mark: args.number("per_mark") }))
    },
};

struct TagCount {
    marks: Vec<String>,
    per_mark: f64,
}

impl Reward for TagCount {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let once = self.marks.iter().filter(|mark| sample.completion.matches(mark.as_str()).take(2).count() == 1);
        Verdict::new(once.map(|_| self.per_mark).sum(), Reason::Computed)
    }
}

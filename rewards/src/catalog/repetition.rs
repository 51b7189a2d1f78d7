//! A penalty for repeated n-grams.

use std::collections::HashSet;

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "repetition",
    about: "(1 − distinct/all)·max_penalty over n-grams; 0 when there are none. Over ids it equals TRL's get_repetition_penalty_reward, over words open-r1's.",
    args: &[
        ArgSpec { name: "n", kind: "integer", default: "3", about: "The length of an n-gram." },
        ArgSpec { name: "max_penalty", kind: "number", default: "-1.0", about: "The penalty when all repeats; not positive." },
        ArgSpec {
            name: "unit",
            kind: "one of ids|words|chars",
            default: "\"ids\"",
            about: "Token ids, words in lower case, or characters, which serve languages without spaces.",
        },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let max_penalty = args.number("max_penalty");
        if max_penalty > 0.0 {
            return Err(args.error("max_penalty", format!("{max_penalty} should not be positive")));
        }
        Ok(Box::new(Repetition { n: args.integer("n", 1)? as usize, max_penalty, unit: args.string("unit").to_owned() }))
    },
};

struct Repetition {
    n: usize,
    max_penalty: f64,
    unit: String,
}

impl Repetition {
    fn penalty<T: std::hash::Hash + Eq>(&self, items: &[T]) -> f64 {
        let total = (items.len() + 1).saturating_sub(self.n);
        if total == 0 {
            return 0.0;
        }
        let distinct: HashSet<&[T]> = items.windows(self.n).collect();
        (1.0 - distinct.len() as f64 / total as f64) * self.max_penalty
    }
}

impl Reward for Repetition {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let value = match self.unit.as_str() {
            "words" => {
                let lower = sample.completion.to_lowercase();
                self.penalty(&lower.split_whitespace().collect::<Vec<_>>())
            }
            "chars" => self.penalty(&sample.completion.chars().filter(|c| !c.is_whitespace()).collect::<Vec<_>>()),
            _ => match sample.token_ids {
                Some(ids) => self.penalty(ids),
                None => return Verdict::none(Reason::NoTokenIds),
            },
        };
        Verdict::new(value, Reason::Computed)
    }
}

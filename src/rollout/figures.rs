//! The `metrics` of a reply, under the names that TRL logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::advantage::{SampleRewards, mean, std_dev};
use super::group::{Attempt, Finished, Outcome};
use super::reply::{Named, Status};

/// What the groups of a request add up to as they end, dropped groups and repeated attempts included.
#[derive(Default)]
pub(super) struct Tally {
    /// By position, so that sums do not depend on who finished first.
    attempts: BTreeMap<usize, Vec<Attempt>>,
    num_dropped: usize,
    num_bad: usize,
    num_refills: usize,
}

impl Tally {
    /// Takes a group's attempts; nothing else reads them.
    pub fn add(&mut self, group: &mut Finished) {
        self.num_dropped += usize::from(matches!(group.outcome, Outcome::Dropped(_)));
        self.num_bad += usize::from(matches!(group.outcome, Outcome::Bad { .. }));
        self.num_refills += group.attempts.len().saturating_sub(1);
        self.add_attempts(group.position, &mut group.attempts);
    }

    pub fn add_attempts(&mut self, position: usize, attempts: &mut Vec<Attempt>) {
        self.attempts.entry(position).or_default().append(attempts);
    }

    pub fn figures(&self, keys: &[Arc<str>]) -> Named<Value> {
        let attempts: Vec<&Attempt> = self.attempts.values().flatten().collect();
        let lengths = || attempts.iter().flat_map(|attempt| attempt.lengths.iter().zip(&attempt.statuses));
        let all: Vec<f64> = lengths().map(|(len, _)| *len as f64).collect();
        let terminated: Vec<f64> = lengths().filter(|(_, status)| **status == Status::Completed).map(|(len, _)| *len as f64).collect();
        let num_tokens: usize = attempts.iter().map(|a| a.lengths.iter().map(|len| a.prompt_len + len).sum::<usize>()).sum();
        let rewards = || attempts.iter().flat_map(|attempt| &attempt.rewards);

        let mut named = vec![
            entry("num_tokens", num_tokens),
            entry("completions/mean_length", mean(&all)),
            entry("completions/min_length", all.iter().copied().reduce(f64::min)),
            entry("completions/max_length", all.iter().copied().reduce(f64::max)),
            entry("completions/clipped_ratio", share(lengths().map(|(_, status)| *status == Status::Truncated))),
            entry("completions/mean_terminated_length", mean(&terminated).unwrap_or(0.0)),
            entry("completions/min_terminated_length", terminated.iter().copied().reduce(f64::min).unwrap_or(0.0)),
            entry("completions/max_terminated_length", terminated.iter().copied().reduce(f64::max).unwrap_or(0.0)),
        ];
        for (k, key) in keys.iter().enumerate() {
            let values: Vec<f64> = rewards().filter_map(|sample| sample.values.get(k).copied().flatten()).collect();
            named.push(entry(&format!("rewards/{key}/mean"), mean(&values)));
            named.push(entry(&format!("rewards/{key}/std"), std_dev(&values, 1)));
        }
        let means: Vec<f64> = attempts.iter().filter_map(|attempt| attempt.mean).collect();
        let stds: Vec<f64> = attempts.iter().filter_map(|attempt| attempt.std).collect();
        let scorable = |sample: &&SampleRewards| !sample.excluded && sample.values.iter().any(Option::is_some);
        named.extend([
            entry("reward", mean(&means)),
            entry("reward_std", mean(&stds)),
            entry("frac_reward_zero_std", share(attempts.iter().map(|attempt| attempt.zero_std))),
            entry("num_scorable", rewards().filter(scorable).count()),
            entry("num_groups_dropped", self.num_dropped),
            entry("num_groups_bad", self.num_bad),
            entry("num_refills", self.num_refills),
        ]);
        Named(named)
    }
}

fn entry(name: &str, value: impl Into<Value>) -> (Arc<str>, Value) {
    (name.into(), value.into())
}

/// The share of `true`, 0 of nothing.
fn share(flags: impl Iterator<Item = bool>) -> f64 {
    let (mut yes, mut all) = (0_usize, 0_usize);
    for flag in flags {
        yes += usize::from(flag);
        all += 1;
    }
    yes as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::group::Attempt;

    #[test]
    fn names_and_values_are_those_of_trl() {
        let sample = |values: [Option<f64>; 2]| SampleRewards { values: values.to_vec(), excluded: false };
        let attempt = Attempt {
            prompt_len: 10,
            lengths: vec![4, 6, 8],
            statuses: vec![Status::Completed, Status::Completed, Status::Truncated],
            rewards: vec![sample([Some(1.0), None]), sample([Some(0.0), Some(1.0)]), sample([None, None])],
            mean: Some(1.0),
            std: Some(0.0),
            zero_std: true,
        };
        let mut tally = Tally::default();
        tally.add(&mut Finished { position: 0, outcome: Outcome::Dropped("zero_std"), attempts: vec![attempt] });
        let found = tally.figures(&["format".into(), "accuracy".into()]);
        for (name, value) in [
            ("num_tokens", Value::from(48)),
            ("completions/mean_length", 6.0.into()),
            ("completions/clipped_ratio", (1.0 / 3.0).into()),
            ("completions/mean_terminated_length", 5.0.into()),
            ("rewards/format/mean", 0.5.into()),
            ("rewards/accuracy/mean", 1.0.into()),
            ("rewards/accuracy/std", Value::Null),
            ("reward", 1.0.into()),
            ("frac_reward_zero_std", 1.0.into()),
            ("num_scorable", 2.into()),
            ("num_groups_dropped", 1.into()),
        ] {
            assert_eq!(found.get(name), Some(&value), "{name}");
        }
    }
}

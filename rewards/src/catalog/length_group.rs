//! Lengths compared within a group.

use serde_json::Value;

use super::parts::{MODE, Unit, accuracy};
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "length_group",
    about: "0.5 − (length − min)/(max − min) over the group, at most 0 for a wrong answer, 0 when all are of one length (Kimi k1.5, section 2.3.3).",
    args: &[
        ArgSpec {
            name: "unit",
            kind: "one of tokens|chars",
            default: "\"chars\"",
            about: "What a length counts; open-r1 counts characters.",
        },
        MODE,
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(LengthGroup { unit: Unit::of(args), accuracy: accuracy(args)? }))
    },
};

struct LengthGroup {
    unit: Unit,
    accuracy: Box<dyn Reward>,
}

impl Reward for LengthGroup {
    fn score(&self, _: &Sample<'_>) -> Verdict {
        Verdict::none(Reason::NoGroup)
    }

    fn needs_group(&self) -> bool {
        true
    }

    fn score_group(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let verdicts = self.accuracy.score_group(samples);
        let lengths: Vec<Option<usize>> = samples.iter().map(|sample| self.unit.length(sample)).collect();
        // A sample without a verdict is not compared with.
        let compared = || lengths.iter().zip(&verdicts).filter(|(_, v)| v.value.is_some()).filter_map(|(n, _)| *n);
        let (Some(min), Some(max)) = (compared().min(), compared().max()) else {
            return verdicts.into_iter().map(|v| if v.value.is_some() { Verdict::none(Reason::NoTokenIds) } else { v }).collect();
        };
        verdicts
            .into_iter()
            .zip(&lengths)
            .map(|(verdict, length)| {
                let Some(correct) = verdict.value else { return verdict };
                let Some(length) = *length else { return Verdict::none(Reason::NoTokenIds) };
                let value = if min == max {
                    0.0
                } else {
                    let lambda = 0.5 - (length - min) as f64 / (max - min) as f64;
                    if correct == 1.0 { lambda } else { lambda.min(0.0) }
                };
                Verdict { value: Some(value), reason: Reason::Computed, ..verdict }
            })
            .collect()
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.accuracy.check_solution(solution)
    }
}

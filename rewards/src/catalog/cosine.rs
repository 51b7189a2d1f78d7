//! Correctness scaled by length along a cosine.

use serde_json::Value;

use super::parts::{MODE, UNIT_TOKENS, Unit, accuracy};
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "cosine",
    about: "Right answers are worth more when short, wrong ones cost less when long (TRL's get_cosine_scaled_reward).",
    args: &[
        ArgSpec { name: "max_len", kind: "integer", default: "1000", about: "The length at which the scale ends." },
        ArgSpec { name: "min_value_wrong", kind: "number", default: "-1.0", about: "A wrong answer of length 0." },
        ArgSpec { name: "max_value_wrong", kind: "number", default: "-0.5", about: "A wrong answer of length max_len." },
        ArgSpec { name: "min_value_correct", kind: "number", default: "0.5", about: "A right answer of length max_len." },
        ArgSpec { name: "max_value_correct", kind: "number", default: "1.0", about: "A right answer of length 0." },
        UNIT_TOKENS,
        ArgSpec {
            name: "clamp",
            kind: "bool",
            default: "true",
            about: "Stop at max_len instead of going round the cosine as open-r1 does.",
        },
        MODE,
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(Cosine {
            max_len: args.integer("max_len", 1)? as f64,
            wrong: (args.number("min_value_wrong"), args.number("max_value_wrong")),
            correct: (args.number("min_value_correct"), args.number("max_value_correct")),
            unit: Unit::of(args),
            clamp: args.bool("clamp"),
            accuracy: accuracy(args)?,
        }))
    },
};

struct Cosine {
    max_len: f64,
    wrong: (f64, f64),
    correct: (f64, f64),
    unit: Unit,
    clamp: bool,
    accuracy: Box<dyn Reward>,
}

impl Reward for Cosine {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let verdict = self.accuracy.score(sample);
        let Some(value) = verdict.value else { return verdict };
        let Some(length) = self.unit.length(sample) else { return Verdict::none(Reason::NoTokenIds) };
        let mut progress = length as f64 / self.max_len;
        if self.clamp {
            progress = progress.min(1.0);
        }
        // For wrong answers the bounds change places: long ones are worth more.
        let (low, high) = if value == 1.0 { self.correct } else { (self.wrong.1, self.wrong.0) };
        let value = low + 0.5 * (high - low) * (1.0 + (std::f64::consts::PI * progress).cos());
        Verdict { value: Some(value), reason: Reason::Computed, ..verdict }
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.accuracy.check_solution(solution)
    }
}

//! A soft penalty before the length limit.

use super::parts::{UNIT_TOKENS, Unit};
use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "soft_overlong",
    about: "0 up to max_len − cache, falling to −1 at max_len and −1 beyond (DAPO, equation 13; TRL's get_soft_overlong_punishment).",
    args: &[
        ArgSpec { name: "max_len", kind: "integer", default: "", about: "The longest completion." },
        ArgSpec { name: "cache", kind: "integer", default: "", about: "The length over which the penalty grows." },
        UNIT_TOKENS,
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let (max_len, cache) = (args.integer("max_len", 1)?, args.integer("cache", 0)?);
        if cache > max_len {
            return Err(args.error("cache", "must not be larger than max_len"));
        }
        Ok(Box::new(SoftOverlong { max_len: max_len as f64, cache: cache as f64, unit: Unit::of(args) }))
    },
};

struct SoftOverlong {
    max_len: f64,
    cache: f64,
    unit: Unit,
}

impl Reward for SoftOverlong {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let Some(length) = self.unit.length(sample) else { return Verdict::none(Reason::NoTokenIds) };
        let n = length as f64;
        let value = if n <= self.max_len - self.cache {
            0.0
        } else if n <= self.max_len {
            (self.max_len - self.cache - n) / self.cache
        } else {
            -1.0
        };
        Verdict::new(value, Reason::Computed)
    }
}

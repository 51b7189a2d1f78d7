//! A completion that ends in a loop.

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "loop_detector",
    about: "The penalty when the completion ends in a block repeated often enough, else 0; n-grams average such an end away.",
    args: &[
        ArgSpec { name: "min_period", kind: "integer", default: "1", about: "The shortest block that counts." },
        ArgSpec { name: "min_repeats", kind: "integer", default: "4", about: "How often the block must stand at the end." },
        ArgSpec { name: "min_length", kind: "integer", default: "32", about: "How long the repeats must be together." },
        ArgSpec { name: "penalty", kind: "number", default: "-1.0", about: "The value for a loop." },
        ArgSpec {
            name: "unit",
            kind: "one of ids|chars",
            default: "\"ids\"",
            about: "What a block is made of; characters where there are no ids.",
        },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(LoopDetector {
            min_period: args.integer("min_period", 1)? as usize,
            min_repeats: args.integer("min_repeats", 2)? as usize,
            min_length: args.integer("min_length", 1)? as usize,
            penalty: args.number("penalty"),
            chars: args.string("unit") == "chars",
        }))
    },
};

struct LoopDetector {
    min_period: usize,
    min_repeats: usize,
    min_length: usize,
    penalty: f64,
    chars: bool,
}

impl LoopDetector {
    /// Whether the items end in a loop: by the Z-function of the reversed items, in linear time.
    fn loops<T: Eq + Copy>(&self, items: &[T]) -> bool {
        let n = items.len();
        let at = |i: usize| items[n - 1 - i];
        let mut z = vec![0; n];
        let (mut left, mut right) = (0, 0);
        for i in 1..n {
            let mut len = if i < right { z[i - left].min(right - i) } else { 0 };
            while i + len < n && at(len) == at(i + len) {
                len += 1;
            }
            if i + len > right {
                (left, right) = (i, i + len);
            }
            z[i] = len;
            // A shift by i that agrees for len items: the last i + len items have period i.
            if i >= self.min_period && (i + len) / i >= self.min_repeats && i + len >= self.min_length {
                return true;
            }
        }
        false
    }
}

impl Reward for LoopDetector {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let loops = match sample.token_ids {
            Some(ids) if !self.chars => self.loops(ids),
            _ => self.loops(&sample.completion.trim_end().chars().collect::<Vec<_>>()),
        };
        if loops { Verdict::new(self.penalty, Reason::Matched) } else { Verdict::new(0.0, Reason::NotMatched) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loops_at_the_end_count() {
        let detector = LoopDetector { min_period: 1, min_repeats: 4, min_length: 8, penalty: -1.0, chars: false };
        assert!(detector.loops(&[9, 1, 2, 1, 2, 1, 2, 1, 2]));
        assert!(!detector.loops(&[1, 2, 1, 2, 1, 2, 1, 2, 9]));
        assert!(!detector.loops(&[1, 2, 1, 2]));
        assert!(!detector.loops::<u32>(&[]));
    }
}

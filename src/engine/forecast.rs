//! How many blocks a sample will hold at its end, for admission.

use super::sequence::Group;
use crate::backends::BLOCK_SIZE;

/// How long completions get, from those that ended.
#[derive(Default)]
pub struct LengthForecast {
    mean: f64,
    observed: u64,
}

impl LengthForecast {
    pub fn observe(&mut self, len: usize) {
        self.observed += 1;
        // A plain mean at first, then a slow average that follows the policy as it learns.
        let weight = (1.0 / self.observed as f64).max(0.02);
        self.mean += weight * (len as f64 - self.mean);
    }

    /// Blocks that a sample is expected to hold at its end.
    pub fn blocks(&self, group: &Group, index: usize) -> usize {
        let max = group.sampling.max_tokens;
        let drawn = group.samples[index].drawn;
        let expected = match self.observed {
            0 => max,
            _ if group.sampling.ignore_eos => max,
            _ => ((self.mean * 1.25) as usize).max(drawn) + BLOCK_SIZE,
        };
        expected.min(max).div_ceil(BLOCK_SIZE)
    }
}

//! The boundary around every reward: a panic becomes "no verdict".

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::Value;

use crate::{Ask, BadSolution, Reason, Reward, Sample, Verdict};

/// Wraps a reward so that a bug in it costs one verdict and not the server.
pub(crate) struct Guarded(pub Box<dyn Reward>);

impl Reward for Guarded {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        catch_unwind(AssertUnwindSafe(|| self.0.score(sample))).unwrap_or_else(|_| Verdict::none(Reason::Internal))
    }

    fn score_group(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let verdicts = catch_unwind(AssertUnwindSafe(|| self.0.score_group(samples))).unwrap_or_default();
        if verdicts.len() == samples.len() { verdicts } else { vec![Verdict::none(Reason::Internal); samples.len()] }
    }

    fn needs_group(&self) -> bool {
        self.0.needs_group()
    }

    fn asks(&self) -> Vec<Arc<Ask>> {
        self.0.asks()
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        catch_unwind(AssertUnwindSafe(|| self.0.check_solution(solution)))
            .unwrap_or_else(|_| Err(BadSolution::new("the reward failed on this solution")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;
    impl Reward for Broken {
        fn score(&self, sample: &Sample<'_>) -> Verdict {
            panic!("broken on {:?}", sample.completion)
        }
    }

    #[test]
    fn a_panic_is_no_verdict() {
        let reward = Guarded(Box::new(Broken));
        assert_eq!(reward.score(&Sample::default()), Verdict::none(Reason::Internal));
        assert_eq!(reward.score_group(&[Sample::default(); 2]), vec![Verdict::none(Reason::Internal); 2]);
    }
}

//! Questions that a reward can't answer itself.
//!
//! A reward is arithmetic: it opens no connection and runs no model. Where a verdict comes from elsewhere, the reward declares what is
//! to be asked ([`Reward::asks`]); whoever scores asks it for each sample, in its own time and way, and hands the answers in
//! ([`Sample::answers`]).

use std::sync::Arc;

use crate::{Reason, Reward, Sample, Verdict};

/// One question about a sample, with everything that its answer depends on besides the sample.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    Http(HttpAsk),
    Model(ModelAsk),
}

/// Samples are posted to a URL, which answers with a number for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpAsk {
    pub url: String,
    /// Of one attempt.
    pub timeout_ms: u64,
    pub batch_size: usize,
    /// Attempts after the first.
    pub retries: u32,
    /// The variable of the server's environment that holds a bearer token.
    pub api_key_env: Option<String>,
    /// Whether an answer may be one that was given to the same sample before.
    pub cache: bool,
}

/// A reward model reads prompt and completion.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelAsk {
    pub model: String,
}

/// What was answered to a question.
pub type Answer = (Arc<Ask>, Verdict);

/// A reward whose verdict is the answer to one question.
pub(crate) struct Asked(pub Arc<Ask>);

impl Reward for Asked {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let answer = sample.answers.iter().find(|(ask, _)| *ask == self.0);
        answer.map_or(Verdict::none(Reason::NotAsked), |(_, verdict)| verdict.clone())
    }

    fn asks(&self) -> Vec<Arc<Ask>> {
        vec![self.0.clone()]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_reach_rewards_within_rewards() {
        let judge = json!({"name": "model", "model": "rm"});
        let args = json!({"rewards": [{"name": "clip", "reward": judge, "min": -1, "max": 1}, {"name": "truncated", "reward": "model"}]});
        assert_eq!(crate::build("product", args.as_object().unwrap()).err().unwrap().path, "rewards[1].reward.model");

        let args = json!({"rewards": [{"name": "clip", "reward": judge, "min": -1, "max": 1}, {"name": "truncated", "reward": judge}]});
        let product = crate::build("product", args.as_object().unwrap()).unwrap();
        let asks = product.asks();
        let ask = Arc::new(Ask::Model(ModelAsk { model: "rm".to_owned() }));
        assert_eq!(asks, [ask.clone(), ask.clone()]);
        let value = |answers: &[Answer]| product.score(&Sample { answers, ..Sample::default() });
        assert_eq!(value(&[(ask, Verdict::new(3.0, Reason::Judged))]).value, Some(3.0));
        assert_eq!(value(&[]), Verdict::none(Reason::NoOperand));
        let other = Arc::new(Ask::Model(ModelAsk { model: "other".to_owned() }));
        assert_eq!(value(&[(other, Verdict::new(3.0, Reason::Judged))]).value, None);
    }
}

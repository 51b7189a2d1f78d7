//! One sample with what the rewards said about it.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, histogram};
use rewards::{Answer, Sample, Verdict};

use super::advantage::SampleRewards;
use super::plan::{GroupFacts, Settings};
use super::reply::{Detail, Finish, Named, SampleReply, Status, TimingReply};
use crate::engine::request::{FinishReason, SampleOutput, Timing};
use crate::judges::{Context, Question};
use crate::processor::PreparedPrompt;

pub(super) struct ScoredSample {
    pub output: SampleOutput,
    pub status: Status,
    text: String,
    /// The prefill and the text: what rewards see.
    completion: String,
    /// What judges said.
    pub answers: Vec<Answer>,
    /// One a reward; empty unless the sample is whole.
    pub verdicts: Vec<Verdict>,
    pub score_time: Duration,
    /// Under the reference weights, when asked for.
    pub ref_logps: Option<Vec<f32>>,
}

impl ScoredSample {
    pub fn new(output: SampleOutput, text: String, facts: &GroupFacts) -> Self {
        let completion = format!("{}{text}", facts.prefill);
        let status = status_of(output.finish_reason);
        let (answers, verdicts, score_time) = (Vec::new(), Vec::new(), Duration::ZERO);
        ScoredSample { output, status, text, completion, answers, verdicts, score_time, ref_logps: None }
    }

    pub fn rewards(&self) -> SampleRewards {
        let values = self.verdicts.iter().map(|verdict| verdict.value).collect();
        SampleRewards { values, excluded: !self.status.is_whole() }
    }

    pub fn seen<'a>(&'a self, prompt: &'a PreparedPrompt, facts: &'a GroupFacts) -> Sample<'a> {
        Sample {
            completion: &self.completion,
            prompt: Some(&prompt.text),
            solution: facts.solution.as_ref(),
            token_ids: Some(&self.output.token_ids),
            finish_reason: Some(self.finish_reason()),
            fields: facts.fields.as_ref(),
            answers: &self.answers,
        }
    }

    pub fn question(&self, context: &Arc<Context>) -> Question {
        let completion = self.completion.as_str().into();
        Question { context: context.clone(), completion, finish_reason: Some(self.finish_reason()) }
    }

    fn finish_reason(&self) -> rewards::FinishReason {
        match finish_of(self.output.finish_reason) {
            Finish::Stop => rewards::FinishReason::Stop,
            Finish::Length => rewards::FinishReason::Length,
            Finish::Abort => rewards::FinishReason::Abort,
            Finish::Error => rewards::FinishReason::Error,
        }
    }

    pub fn count(&self) {
        counter!("grouper_samples_total", "status" => self.status.as_str()).increment(1);
        counter!("grouper_completion_tokens_total").increment(self.output.token_ids.len() as u64);
        histogram!("grouper_score_seconds").record(self.score_time.as_secs_f64());
        let output = &self.output;
        let arrays = [&output.logps, &output.logps_raw, &output.logps_sampled, &output.entropy];
        count_non_finite("sample", arrays.iter().flat_map(|array| array.iter()).filter(|number| !number.is_finite()).count());
    }

    pub fn reply(self, index: usize, advantage: f64, settings: &Settings) -> SampleReply {
        let rewards = self.rewards();
        let (output, returns, keys) = (self.output, settings.returns, settings.rewarder.keys());
        let masked = !self.status.is_whole() || (settings.mask_truncated && self.status == Status::Truncated);
        SampleReply {
            index,
            status: self.status,
            finish_reason: finish_of(output.finish_reason),
            stop_token_id: match output.finish_reason {
                FinishReason::StopToken(id) => Some(id),
                _ => None,
            },
            token_ids: output.token_ids,
            text: returns.text.then_some(self.text),
            logps: returns.logps.then_some(output.logps),
            logps_raw: returns.logps_raw.then_some(output.logps_raw),
            logps_sampled: returns.logps_sampled.then_some(output.logps_sampled),
            entropy: returns.entropy.then_some(output.entropy),
            ref_logps: self.ref_logps,
            completion_mask: u8::from(!masked),
            policy_versions: output.policy_versions,
            reward: rewards.total(settings.rewarder.weights()),
            // A sample that was not scored has every key all the same.
            rewards: Named::new(keys, rewards.values.into_iter().chain(std::iter::repeat(None))),
            advantage,
            details: Named::new(keys, self.verdicts.into_iter().map(Detail::from)),
            timing_ms: returns.timing.then(|| timing(output.timing, self.score_time)),
        }
    }
}

/// Numbers that replies write as null are seen in the metrics.
pub(super) fn count_non_finite(place: &'static str, count: usize) {
    if count > 0 {
        counter!("grouper_non_finite_total", "where" => place).increment(count as u64);
    }
}

/// A sample that never began.
pub(super) fn nothing(finish_reason: FinishReason) -> SampleOutput {
    SampleOutput {
        finish_reason,
        token_ids: Vec::new(),
        logps: Vec::new(),
        logps_raw: Vec::new(),
        logps_sampled: Vec::new(),
        entropy: Vec::new(),
        top: Vec::new(),
        policy_versions: Vec::new(),
        timing: Timing::default(),
    }
}

fn status_of(reason: FinishReason) -> Status {
    match reason {
        FinishReason::StopToken(_) | FinishReason::StopWatch => Status::Completed,
        FinishReason::Length => Status::Truncated,
        FinishReason::Abort => Status::Aborted,
        FinishReason::Corrupt => Status::Failed,
    }
}

fn finish_of(reason: FinishReason) -> Finish {
    match reason {
        FinishReason::StopToken(_) | FinishReason::StopWatch => Finish::Stop,
        FinishReason::Length => Finish::Length,
        FinishReason::Abort => Finish::Abort,
        FinishReason::Corrupt => Finish::Error,
    }
}

fn timing(timing: Timing, score: Duration) -> TimingReply {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    TimingReply { queue: ms(timing.queue), prefill: ms(timing.prefill), decode: ms(timing.decode), score: ms(score) }
}

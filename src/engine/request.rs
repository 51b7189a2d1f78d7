//! What the engine is asked for and what it answers: token ids in, token ids and log-probabilities out. No string passes here.

use std::sync::Arc;
use std::time::Duration;

pub use crate::backends::MAX_TOP_LOGPROBS;
use crate::model::input::PromptInput;

/// Counter of the weights: every token knows which version produced it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PolicyVersion(pub u64);

/// Key of the counter-based generator: a hash of (seed, group id or position, attempt). The counter is (sample, position).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngKey(pub [u32; 2]);

/// How to draw tokens and when to stop. The caller has checked every range and id.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub max_tokens: usize,
    /// Stop tokens can't be drawn before this many tokens.
    pub min_tokens: usize,
    /// Ids that end a sample, EOS ids included unless they are to be ignored.
    pub stop_token_ids: Vec<u32>,
    /// Whether samples run to `max_tokens`: what admission reckons with.
    pub ignore_eos: bool,
    /// Ids that are never drawn: media pads, which could not be scored again.
    pub banned_token_ids: Vec<u32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub top_logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_tokens: 512,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            banned_token_ids: Vec::new(),
            logit_bias: Vec::new(),
            top_logprobs: 0,
        }
    }
}

/// Watches one sample's tokens for an end that the engine can't see, such as a stop string.
pub trait StopWatch: Send {
    fn push(&mut self, token: u32) -> Watch;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Continue,
    /// The token just pushed is the sample's last.
    Stop,
}

/// A watch that never stops.
pub struct NoWatch;

impl StopWatch for NoWatch {
    fn push(&mut self, _token: u32) -> Watch {
        Watch::Continue
    }
}

/// One prompt and the samples wanted of it.
pub struct GroupRequest {
    pub prompt: Arc<PromptInput>,
    pub sampling: SamplingParams,
    pub rng_key: RngKey,
    /// One watch a sample; sample `i` draws with counter `i`.
    pub watches: Vec<Box<dyn StopWatch>>,
    /// Whether [`SampleEvent::Token`] is wanted for every token.
    pub stream: bool,
}

/// What happens to the samples of a group, in order for each sample.
#[derive(Clone, Debug)]
pub enum SampleEvent {
    Token { sample: usize, token: TokenRecord },
    Finished { sample: usize, output: Box<SampleOutput> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct TokenRecord {
    pub token_id: u32,
    pub logp: f32,
    pub logp_raw: f32,
    pub logp_sampled: f32,
    pub entropy: f32,
    /// Most likely ids and their log-probabilities at temperature 1, when asked for.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id, which is the last of `token_ids`.
    StopToken(u32),
    /// The sample's watch said so.
    StopWatch,
    Length,
    /// Cut by the caller or a deadline.
    Abort,
    /// The model gave logits that are not finite.
    Corrupt,
}

/// Tokens `start..end` were drawn by this version of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VersionSpan {
    pub version: PolicyVersion,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutput {
    pub finish_reason: FinishReason,
    pub token_ids: Vec<u32>,
    /// At the sampling temperature over the full vocabulary; the arrays beside it have the length of `token_ids`.
    pub logps: Vec<f32>,
    pub logps_raw: Vec<f32>,
    pub logps_sampled: Vec<f32>,
    pub entropy: Vec<f32>,
    /// Empty unless `top_logprobs` was asked for.
    pub top: Vec<Vec<(u32, f32)>>,
    pub policy_versions: Vec<VersionSpan>,
    pub timing: Timing,
}

/// Where a sample's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
}

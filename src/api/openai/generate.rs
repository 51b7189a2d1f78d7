//! From a checked request to pieces of text: what chat and text completions have in common.

use std::sync::Arc;

use axum::http::StatusCode;
use futures::stream::{BoxStream, SelectAll, StreamExt, unfold};

use super::super::error::{ApiError, ApiResult};
use super::super::{AppState, metrics};
use super::Usage;
use super::fields::Common;
use crate::engine::handle::GroupStream;
use crate::engine::request::{FinishReason, SampleEvent, SampleOutput, SamplingParams, TokenRecord};
use crate::error::Error;
use crate::processor::tokenizer::Tokenizer;
use crate::processor::{PreparedPrompt, PromptRequest};
use crate::rollout::generator::{Generation, Permit, rng_key};
use crate::rollout::plan::{Sampling, Served};
use crate::rollout::stop::{Passed, StoppingText};

pub use crate::engine::request::MAX_TOP_LOGPROBS;

/// Prompts with the same wishes; choices are numbered prompt by prompt.
pub struct Ask {
    pub prompts: Vec<PromptRequest>,
    pub common: Common,
    /// Alternatives to report for each token.
    pub top_logprobs: usize,
    /// What an absent `max_tokens` means; `None` is the rest of the context.
    pub default_max_tokens: Option<usize>,
}

/// Samples being drawn. Dropping it cancels them.
pub struct Run {
    events: SelectAll<BoxStream<'static, (usize, Option<SampleEvent>)>>,
    choices: Vec<Choice>,
    prompts: Vec<Arc<PreparedPrompt>>,
    n: usize,
    model: String,
    completion_tokens: usize,
    _permit: Permit,
}

/// News of one choice: text that is certain, the tokens it came from, and the end if this was it.
#[derive(Debug, Default)]
pub struct Delta {
    pub choice: usize,
    pub text: String,
    pub tokens: Vec<TokenRecord>,
    pub finish: Option<Finish>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// `stop` or `length`.
    pub reason: &'static str,
    /// The stop string or the stop token (none for the model's own end token), as vLLM has it.
    pub stop_reason: Option<StopReason>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    Text(String),
    Token(u32),
}

impl Run {
    /// Checks the request, reserves its room, prepares its prompts and starts them.
    pub async fn start(state: &AppState, model: &str, ask: Ask) -> ApiResult<Run> {
        let Ask { prompts, common, top_logprobs, default_max_tokens } = ask;
        let limits = state.generator.limits();
        let n = common.n;
        let served = served(state);
        let sampling = sampling(&common, default_max_tokens, limits, &served)?;
        let params = params(&common, &sampling, top_logprobs, served.vocab_size)?;
        if n == 0 || n > limits.max_group_size {
            return Err(Error::invalid("n", format!("{n} is not from 1 to {}", limits.max_group_size)).into());
        }
        let samples = n.saturating_mul(prompts.len());
        let permit = state.generator.admit(samples, sampling.max_tokens)?;
        let prepared = futures::future::join_all(prompts.into_iter().map(|prompt| state.generator.prepare(prompt))).await;
        let prompts: Vec<Arc<PreparedPrompt>> = prepared.into_iter().map(|prompt| prompt.map(Arc::new)).collect::<Result<_, _>>()?;
        // A negative seed is as good as any: only its bits count.
        let seed = common.seed.map(|seed| seed as u64).or(state.http.seed).unwrap_or_else(metrics::random_u64);
        let mut run = Run {
            events: SelectAll::new(),
            choices: Vec::with_capacity(samples),
            n,
            model: model.to_owned(),
            completion_tokens: 0,
            prompts: Vec::new(),
            _permit: permit,
        };
        for (index, prompt) in prompts.iter().enumerate() {
            let sampling = sampling.for_prompt(prompt.input.token_ids.len(), served.max_model_len);
            // A request is a group without a name; further prompts of a list are told apart by their position.
            let group = if index == 0 { String::new() } else { index.to_string() };
            let generation = Generation {
                num_samples: n,
                sampling: SamplingParams { max_tokens: sampling.max_tokens, min_tokens: sampling.min_tokens, ..params.clone() },
                stop: sampling.stop.clone(),
                rng_key: rng_key(seed, &group, 0),
                stream: common.stream,
                ban_media: true,
            };
            let stream = state.generator.start(prompt, generation)?;
            run.events.push(events(index, stream));
            let tokenizer = state.generator.processor().tokenizer();
            run.choices.extend((0..n).map(|_| Choice::new(tokenizer, &sampling, common.skip_special_tokens)));
        }
        run.prompts = prompts;
        metrics::request_started(model, n);
        Ok(run)
    }

    /// The next news; `None` when all choices have ended.
    pub async fn next(&mut self) -> Option<ApiResult<Delta>> {
        let (prompt, event) = self.events.next().await?;
        let delta = match event {
            None => Err(ApiError::from(Error::NotReady("the engine stopped before the completion was whole".into()))),
            Some(SampleEvent::Token { sample, token }) => {
                let choice = prompt * self.n + sample;
                self.completion_tokens += 1;
                let mut delta = Delta { choice, ..Delta::default() };
                self.choices[choice].push(token, &mut delta);
                Ok(delta)
            }
            Some(SampleEvent::Finished { sample, output }) => {
                metrics::sample_finished(&self.model, &output);
                let choice = prompt * self.n + sample;
                let mut delta = Delta { choice, ..Delta::default() };
                // Without streaming all tokens come with the end.
                self.completion_tokens += output.token_ids.len() - self.choices[choice].num_tokens;
                for index in self.choices[choice].num_tokens..output.token_ids.len() {
                    self.choices[choice].push(record(&output, index), &mut delta);
                }
                self.choices[choice].finish(&output, &mut delta).map(|()| delta)
            }
        };
        Some(delta)
    }

    /// All choices to their ends, in order.
    pub async fn collect(&mut self) -> ApiResult<Vec<Delta>> {
        let mut whole: Vec<Delta> = (0..self.choices.len()).map(|choice| Delta { choice, ..Delta::default() }).collect();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            let choice = &mut whole[delta.choice];
            choice.text.push_str(&delta.text);
            choice.tokens.extend(delta.tokens);
            choice.finish = delta.finish.or(choice.finish.take());
        }
        Ok(whole)
    }

    pub fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// Ids of the prompt that a choice belongs to.
    pub fn prompt_token_ids(&self, choice: usize) -> &[u32] {
        &self.prompts[choice / self.n].input.token_ids
    }

    pub fn usage(&self) -> Usage {
        Usage::new(self.prompts.iter().map(|prompt| prompt.input.token_ids.len()).sum(), self.completion_tokens)
    }
}

/// A group's events, then its index alone if the engine dropped it.
fn events(prompt: usize, stream: GroupStream) -> BoxStream<'static, (usize, Option<SampleEvent>)> {
    let next = move |stream: Option<GroupStream>| async move {
        let mut stream = stream?;
        match stream.next().await {
            Some(event) => Some(((prompt, Some(event)), Some(stream))),
            None if stream.is_complete() => None,
            None => Some(((prompt, None), None)),
        }
    };
    unfold(Some(stream), next).boxed()
}

fn served(state: &AppState) -> Served {
    state.service.served().clone()
}

fn sampling(
    common: &Common,
    default_max_tokens: Option<usize>,
    limits: &crate::rollout::limits::Limits,
    served: &Served,
) -> ApiResult<Sampling> {
    let context = served.max_model_len.saturating_sub(1);
    let mut body = common.sampling.clone();
    let asked = body.max_tokens;
    body.max_tokens = Some(asked.unwrap_or_else(|| default_max_tokens.unwrap_or(context).min(context)));
    let mut sampling = Sampling::new(body, limits, served)?;
    sampling.fixed_length = asked.is_some();
    Ok(sampling)
}

/// The engine's parameters: those that rollouts have, and those that only plain inference has.
fn params(common: &Common, sampling: &Sampling, top_logprobs: usize, vocab_size: usize) -> ApiResult<SamplingParams> {
    for (name, penalty) in [("presence_penalty", common.presence_penalty), ("frequency_penalty", common.frequency_penalty)] {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(Error::invalid(name, format!("{penalty} is not from -2 to 2")).into());
        }
    }
    const MAX_BIASES: usize = 1024;
    if common.logit_bias.len() > MAX_BIASES {
        let message = format!("{} entries; at most {MAX_BIASES} are allowed", common.logit_bias.len());
        return Err(Error::invalid("logit_bias", message).into());
    }
    if let Some((id, _)) = common.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
        let message = format!("token id {id} is not below the vocabulary size {vocab_size}");
        return Err(Error::invalid(format!("logit_bias.{id}"), message).into());
    }
    Ok(SamplingParams {
        presence_penalty: common.presence_penalty as f32,
        frequency_penalty: common.frequency_penalty as f32,
        logit_bias: common.logit_bias.clone(),
        top_logprobs,
        ..sampling.params()
    })
}

fn record(output: &SampleOutput, index: usize) -> TokenRecord {
    TokenRecord {
        token_id: output.token_ids[index],
        logp: output.logps[index],
        logp_raw: output.logps_raw[index],
        logp_sampled: output.logps_sampled[index],
        entropy: output.entropy[index],
        top: output.top.get(index).cloned().unwrap_or_default(),
    }
}

/// Text of one choice as its tokens arrive.
struct Choice {
    tokenizer: Arc<Tokenizer>,
    text: StoppingText,
    stop: Vec<String>,
    /// Ids that end a sample; their text is not part of it.
    ends: Vec<u32>,
    skip_special: bool,
    num_tokens: usize,
    text_len: usize,
    stopped: bool,
}

impl Choice {
    fn new(tokenizer: &Arc<Tokenizer>, sampling: &Sampling, skip_special: bool) -> Self {
        let eos = if sampling.ignore_eos { &[] } else { tokenizer.eos_token_ids() };
        Choice {
            text: StoppingText::new(tokenizer.clone(), sampling.stop.clone().into(), sampling.min_tokens, skip_special),
            stop: sampling.stop.clone(),
            ends: sampling.stop_token_ids.iter().chain(eos).copied().collect(),
            skip_special,
            num_tokens: 0,
            text_len: 0,
            stopped: false,
            tokenizer: tokenizer.clone(),
        }
    }

    fn push(&mut self, token: TokenRecord, delta: &mut Delta) {
        self.num_tokens += 1;
        let id = token.token_id;
        delta.tokens.push(token);
        if self.stopped || self.ends.contains(&id) {
            return;
        }
        let piece = match self.text.push(id) {
            Passed::Text(piece) => piece,
            Passed::Stopped(piece) => {
                self.stopped = true;
                piece
            }
        };
        self.text_len += piece.len();
        delta.text.push_str(&piece);
    }

    fn finish(&mut self, output: &SampleOutput, delta: &mut Delta) -> ApiResult<()> {
        let (reason, stop_reason) = match output.finish_reason {
            FinishReason::StopToken(id) if self.tokenizer.eos_token_ids().contains(&id) => ("stop", None),
            FinishReason::StopToken(id) => ("stop", Some(StopReason::Token(id))),
            FinishReason::StopWatch => ("stop", self.stop_string(&output.token_ids).map(StopReason::Text)),
            FinishReason::Length => ("length", None),
            FinishReason::Abort => return Err(Error::NotReady("the completion was cut short by the server".into()).into()),
            FinishReason::Corrupt => {
                let message = "the model gave logits that are not finite";
                return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt_logits", message));
            }
        };
        if !self.stopped {
            delta.text.push_str(&self.text.finish());
        }
        delta.finish = Some(Finish { reason, stop_reason });
        Ok(())
    }

    /// The stop string that stands where the text was cut.
    fn stop_string(&self, token_ids: &[u32]) -> Option<String> {
        let whole = self.tokenizer.decode(token_ids, self.skip_special);
        let rest = whole.get(self.text_len..)?;
        self.stop.iter().find(|stop| rest.starts_with(stop.as_str())).cloned()
    }
}

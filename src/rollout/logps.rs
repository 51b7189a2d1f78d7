//! `POST /v1/logps`: log-probabilities of completions that are given.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::generator::Generator;
use super::plan::{Served, check_ids, in_range, prompt};
use super::request::GroupBody;
use crate::engine::request::PolicyVersion;
use crate::engine::scoring::{ScoreRequest, Scorer, Scores};
use crate::error::{Error, Result};
use crate::processor::PreparedPrompt;

/// Sequences that are prepared while others are computed.
const AHEAD: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogpsRequest {
    pub sequences: Vec<SequenceBody>,
    /// 1 unless given; 0 is 1, as for greedy samples.
    #[schema(minimum = 0.0, maximum = 100.0, default = 1.0)]
    pub temperature: Option<f64>,
    /// `policy` unless given; `reference` needs a server started with --reference.
    #[schema(value_type = Option<String>, example = "policy")]
    pub weights: Option<Scorer>,
    /// `logps` unless given.
    pub r#return: Option<Vec<LogpsReturn>>,
    pub model: Option<String>,
}

/// A prompt, as in a rollout's group, and one of `completion` and `completion_token_ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SequenceBody {
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    pub prompt: Option<String>,
    pub prompt_token_ids: Option<Vec<u32>>,
    pub images: Option<Vec<String>>,
    pub assistant_prefill: Option<String>,
    /// Text in which nothing becomes a control token.
    pub completion: Option<String>,
    pub completion_token_ids: Option<Vec<u32>>,
    /// Put the end-of-sequence token behind `completion`.
    pub append_eos: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogpsReturn {
    Logps,
    Entropy,
    Sum,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LogpsReply {
    pub model: String,
    /// What was asked for.
    #[schema(value_type = String)]
    pub weights: Scorer,
    pub sequences: Vec<SequenceReply>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SequenceReply {
    /// The policy's version when the sequence was computed.
    #[schema(value_type = u64)]
    pub policy_version: PolicyVersion,
    pub prompt_len: usize,
    pub token_ids: Vec<u32>,
    /// log softmax(logits / temperature) over the full vocabulary, one a completion token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logps: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
}

/// # Errors
///
/// A request that can't be meant, no room, and the first sequence that can't be computed, by its path.
pub async fn logps(generator: &Arc<Generator>, served: &Served, request: LogpsRequest) -> Result<LogpsReply> {
    let limits = generator.limits();
    in_range("sequences", request.sequences.len(), 1, limits.max_samples_per_request)?;
    let temperature = request.temperature.unwrap_or(1.0);
    if !(temperature == 0.0 || (1e-5..=100.0).contains(&temperature)) {
        return Err(Error::invalid("temperature", format!("{temperature} is not 0 or from 1e-5 to 100")));
    }
    let scorer = request.weights.unwrap_or_default();
    let returns = request.r#return.unwrap_or_else(|| vec![LogpsReturn::Logps]);
    // They take the room that samples of the longest completion would; a text has no more tokens than bytes.
    let len = |body: &SequenceBody| body.completion_token_ids.as_ref().map_or(body.completion.as_ref().map_or(0, String::len), Vec::len);
    let longest = request.sequences.iter().map(len).max().unwrap_or(0).min(served.max_model_len);
    let _permit = generator.admit(request.sequences.len(), longest)?;
    let one = |index: usize, body: SequenceBody| {
        let returns = &returns;
        async move {
            let result = sequence(generator, served, body, temperature as f32, scorer, returns).await;
            result.map_err(|error| error.within(&format!("sequences[{index}]")))
        }
    };
    let sequences = request.sequences.into_iter().enumerate().map(|(index, body)| one(index, body));
    let sequences = stream::iter(sequences).buffered(AHEAD).try_collect().await?;
    Ok(LogpsReply { model: served.model.clone(), weights: scorer, sequences })
}

async fn sequence(
    generator: &Generator,
    served: &Served,
    body: SequenceBody,
    temperature: f32,
    scorer: Scorer,
    returns: &[LogpsReturn],
) -> Result<SequenceReply> {
    let SequenceBody { messages, prompt: text, prompt_token_ids, images, assistant_prefill, completion, completion_token_ids, append_eos } =
        body;
    let tokenizer = generator.processor().tokenizer();
    let mut token_ids = match (completion, completion_token_ids) {
        (Some(text), None) => tokenizer.encode_ordinary(&text),
        (None, Some(ids)) => {
            check_ids("completion_token_ids", &ids, served)?;
            ids
        }
        _ => return Err(Error::invalid("", "a sequence has exactly one of completion and completion_token_ids")),
    };
    if append_eos.unwrap_or(false) {
        token_ids.extend(tokenizer.eos_token_ids().first());
    }
    let group = GroupBody { messages, prompt: text, prompt_token_ids, images, assistant_prefill, ..GroupBody::default() };
    let prepared = generator.prepare(prompt(&group, served)?).await?;
    let scores = score(generator, &prepared, &token_ids, temperature, scorer).await?;
    let wants = |what: LogpsReturn| returns.contains(&what);
    Ok(SequenceReply {
        policy_version: scores.version,
        prompt_len: prepared.input.token_ids.len(),
        token_ids,
        sum: wants(LogpsReturn::Sum).then(|| scores.logps.iter().map(|logp| f64::from(*logp)).sum()),
        entropy: wants(LogpsReturn::Entropy).then_some(scores.entropy),
        logps: wants(LogpsReturn::Logps).then_some(scores.logps),
    })
}

/// Log-probabilities of a completion of a prompt.
pub async fn score(generator: &Generator, prompt: &PreparedPrompt, token_ids: &[u32], temperature: f32, scorer: Scorer) -> Result<Scores> {
    let prompt = Arc::new(prompt.input.clone());
    generator.engine().score(ScoreRequest { prompt, completion: token_ids.into(), temperature, scorer }).await
}

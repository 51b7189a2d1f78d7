//! `POST /v1/logps`: log-probabilities of completions that are given.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::generator::{Generator, Permit};
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
    pub sequences: Option<Vec<SequenceBody>>,
    /// In the place of `sequences`: what DPO compares, under the policy and, where there is one, the reference.
    pub pairs: Option<Vec<PairBody>>,
    /// 1 unless given; 0 is 1, as for greedy samples.
    #[schema(minimum = 0.0, maximum = 100.0, default = 1.0)]
    pub temperature: Option<f64>,
    /// Beside `sequences`; `policy` unless given; `reference` needs a server started with --reference.
    #[schema(value_type = Option<String>, example = "policy")]
    pub weights: Option<Scorer>,
    /// Beside `sequences`; `logps` unless given.
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

/// A prompt, as in a rollout's group, and two texts in which nothing becomes a control token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PairBody {
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    pub prompt: Option<String>,
    pub prompt_token_ids: Option<Vec<u32>>,
    pub images: Option<Vec<String>>,
    pub chosen: String,
    pub rejected: String,
    /// Put the end-of-sequence token behind both, as TRL's DPO does; true unless given.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Scorer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequences: Option<Vec<SequenceReply>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<PairReply>>,
}

/// Sums over the completion's tokens, under TRL's names.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PairReply {
    #[schema(value_type = u64)]
    pub policy_version: PolicyVersion,
    pub chosen_logps: f64,
    pub rejected_logps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_chosen_logps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_rejected_logps: Option<f64>,
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
    let temperature = request.temperature.unwrap_or(1.0);
    if !(temperature == 0.0 || (1e-5..=100.0).contains(&temperature)) {
        return Err(Error::invalid("temperature", format!("{temperature} is not 0 or from 1e-5 to 100")));
    }
    let temperature = temperature as f32;
    let model = served.model.clone();
    match (request.sequences, request.pairs) {
        (Some(bodies), None) => {
            // A text has no more tokens than bytes.
            let len =
                |body: &SequenceBody| body.completion_token_ids.as_ref().map_or(body.completion.as_ref().map_or(0, String::len), Vec::len);
            let _permit = admit(generator, served, "sequences", bodies.iter().map(len), 1)?;
            let (scorer, returns) = (request.weights.unwrap_or_default(), request.r#return.unwrap_or_else(|| vec![LogpsReturn::Logps]));
            let one = |body| sequence(generator, served, body, temperature, scorer, &returns);
            let sequences = each("sequences", bodies, one).await?;
            Ok(LogpsReply { model, weights: Some(scorer), sequences: Some(sequences), pairs: None })
        }
        (None, Some(bodies)) => {
            let only = |name: &str| Error::invalid(name, "stands beside sequences; pairs have sums under all weights there are");
            request.weights.map_or(Ok(()), |_| Err(only("weights")))?;
            request.r#return.map_or(Ok(()), |_| Err(only("return")))?;
            let lens = bodies.iter().map(|body| body.chosen.len().max(body.rejected.len()) + 1);
            let _permit = admit(generator, served, "pairs", lens, 2)?;
            let pairs = each("pairs", bodies, |body| pair(generator, served, body, temperature)).await?;
            Ok(LogpsReply { model, weights: None, sequences: None, pairs: Some(pairs) })
        }
        _ => Err(Error::invalid("sequences", "there must be exactly one of sequences and pairs")),
    }
}

/// The room that as many samples of the longest completion would take.
fn admit(generator: &Generator, served: &Served, name: &str, lens: impl ExactSizeIterator<Item = usize>, each: usize) -> Result<Permit> {
    in_range(name, lens.len(), 1, generator.limits().max_samples_per_request / each)?;
    let samples = each * lens.len();
    generator.admit(samples, lens.max().unwrap_or(0).min(served.max_model_len))
}

/// Answers in order; the first that fails ends them all, by its path.
async fn each<B, T, F: Future<Output = Result<T>>>(name: &str, bodies: Vec<B>, one: impl Fn(B) -> F) -> Result<Vec<T>> {
    let answers = bodies.into_iter().enumerate().map(|(index, body)| {
        let answer = one(body);
        async move { answer.await.map_err(|error| error.within(&format!("{name}[{index}]"))) }
    });
    stream::iter(answers).buffered(AHEAD).try_collect().await
}

async fn pair(generator: &Generator, served: &Served, body: PairBody, temperature: f32) -> Result<PairReply> {
    let PairBody { messages, prompt: text, prompt_token_ids, images, chosen, rejected, append_eos } = body;
    let tokenizer = generator.processor().tokenizer();
    let eos = tokenizer.eos_token_ids().first().filter(|_| append_eos.unwrap_or(true));
    let ids = |text: &str| tokenizer.encode_ordinary(text).into_iter().chain(eos.copied()).collect::<Vec<u32>>();
    let group = GroupBody { messages, prompt: text, prompt_token_ids, images, ..GroupBody::default() };
    let prepared = generator.prepare(prompt(&group, served)?).await?;
    let (chosen, rejected) = (ids(&chosen), ids(&rejected));
    let sums = async |scorer: Scorer| -> Result<(PolicyVersion, f64, f64)> {
        let of = |ids| score(generator, &prepared, ids, temperature, scorer);
        let (chosen, rejected) = futures::future::try_join(of(&chosen), of(&rejected)).await?;
        Ok((chosen.version, sum(&chosen), sum(&rejected)))
    };
    let (policy_version, chosen_logps, rejected_logps) = sums(Scorer::Policy).await?;
    let reference = if served.reference { Some(sums(Scorer::Reference).await?) } else { None };
    Ok(PairReply {
        policy_version,
        chosen_logps,
        rejected_logps,
        ref_chosen_logps: reference.map(|(_, chosen, _)| chosen),
        ref_rejected_logps: reference.map(|(_, _, rejected)| rejected),
    })
}

fn sum(scores: &Scores) -> f64 {
    scores.logps.iter().map(|logp| f64::from(*logp)).sum()
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
        sum: wants(LogpsReturn::Sum).then(|| sum(&scores)),
        entropy: wants(LogpsReturn::Entropy).then_some(scores.entropy),
        logps: wants(LogpsReturn::Logps).then_some(scores.logps),
    })
}

/// Log-probabilities of a completion of a prompt.
pub async fn score(generator: &Generator, prompt: &PreparedPrompt, token_ids: &[u32], temperature: f32, scorer: Scorer) -> Result<Scores> {
    let prompt = Arc::new(prompt.input.clone());
    generator.engine().score(ScoreRequest { prompt, completion: token_ids.into(), temperature, scorer }).await
}

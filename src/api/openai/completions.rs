//! `POST /v1/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::error::{ApiResult, ErrorBody};
use super::super::extract::JsonBody;
use super::super::sse::{self, Events};
use super::super::{AppState, metrics, unix_seconds};
use super::Usage;
use super::fields::completion_request;
use super::generate::{Ask, Delta, MAX_TOP_LOGPROBS, Run, StopReason};
use super::logprobs::{Naming, TextLogprobs};
use crate::error::Error;
use crate::processor::{PromptRequest, PromptSource};

completion_request! {
    /// Text or token ids to be continued as they are, without a chat template.
    pub struct CompletionRequest {
        /// A string, a list of strings, token ids, or a list of lists of token ids.
        #[schema(value_type = String, example = "2 + 2 =")]
        pub prompt: Prompts,
        /// Report the log-probability of every token and of this many likeliest ones.
        #[schema(maximum = 20)]
        pub logprobs: Option<usize>,
    }
    refused { best_of prompt_embeds suffix }
}

/// One prompt or several.
#[derive(Clone, Debug)]
pub struct Prompts(Vec<PromptSource>);

/// Prompts of one request.
const MAX_PROMPTS: usize = 1024;

/// What a list under `prompt` can hold.
enum Item {
    Id(u32),
    Prompt(PromptSource),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Prompt(PromptSource::Text(text.to_owned())))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id).map(Item::Id).map_err(|_| E::custom(format_args!("{id} is not a token id")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Prompt(PromptSource::TokenIds(ids)))
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptsVisitor;
        impl<'de> Visitor<'de> for PromptsVisitor {
            type Value = Prompts;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string, a list of strings, token ids or a list of lists of token ids")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![PromptSource::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let (mut ids, mut prompts) = (Vec::new(), Vec::new());
                while let Some(item) = seq.next_element()? {
                    match item {
                        Item::Id(id) => ids.push(id),
                        Item::Prompt(prompt) => prompts.push(prompt),
                    }
                    if !ids.is_empty() && !prompts.is_empty() {
                        return Err(serde::de::Error::custom("a list of token ids can't hold prompts"));
                    }
                    if prompts.len() > MAX_PROMPTS {
                        return Err(serde::de::Error::custom(format_args!("more than {MAX_PROMPTS} prompts")));
                    }
                }
                match (ids.is_empty(), prompts.is_empty()) {
                    (true, true) => Err(serde::de::Error::custom("the list is empty")),
                    (false, _) => Ok(Prompts(vec![PromptSource::TokenIds(ids)])),
                    (true, false) => Ok(Prompts(prompts)),
                }
            }
        }
        deserializer.deserialize_any(PromptsVisitor)
    }
}

/// The reply, and each event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionReply {
    id: String,
    #[schema(example = "text_completion")]
    object: &'static str,
    created: u64,
    model: String,
    /// Names the version of the weights.
    system_fingerprint: String,
    /// Prompt by prompt, `n` each.
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    /// `stop` or `length`.
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What replies and chunks of one request have in common.
struct Shape {
    state: AppState,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    logprobs: bool,
    token_ids: bool,
    as_ids: bool,
    include_usage: bool,
    /// Characters of each choice so far, for `text_offset`.
    offsets: Vec<usize>,
    /// Choices that have told their prompt's ids.
    begun: Vec<bool>,
}

/// Text completion.
///
/// As OpenAI has it, with vLLM's additions. The prompt is not templated, and control tokens in its text are read as such.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest, responses(
    (status = 200, description = "The completions; with `stream`, server-sent events of the same shape and then `[DONE]`",
     content((CompletionReply = "application/json"), (CompletionReply = "text/event-stream"))),
    (status = 400, body = ErrorBody), (status = 404, description = "Another model", body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn create(State(state): State<AppState>, JsonBody(mut request): JsonBody<CompletionRequest>) -> ApiResult<Response> {
    let model = state.model(request.model.as_deref())?.to_owned();
    let top_logprobs = request.logprobs.unwrap_or(0);
    if top_logprobs > MAX_TOP_LOGPROBS {
        return Err(Error::invalid("logprobs", format!("{top_logprobs} is not from 0 to {MAX_TOP_LOGPROBS}")).into());
    }
    let common = request.common();
    let shape = Shape {
        id: format!("cmpl-{:016x}", metrics::random_u64()),
        created: unix_seconds(),
        fingerprint: format!("policy-{}", state.generator.engine().stats().policy_version().0),
        logprobs: request.logprobs.is_some(),
        token_ids: common.return_token_ids,
        as_ids: common.return_tokens_as_token_ids,
        include_usage: common.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        model,
        state,
        offsets: Vec::new(),
        begun: Vec::new(),
    };
    let prompts = request.prompt.0.into_iter().map(|source| PromptRequest {
        source,
        images: Vec::new(),
        tools: None,
        template_kwargs: serde_json::Map::new(),
        add_generation_prompt: true,
    });
    let stream = common.stream;
    let ask = Ask { prompts: prompts.collect(), common, top_logprobs, default_max_tokens: Some(16) };
    let run = Run::start(&shape.state, &shape.model, ask).await?;
    Ok(if stream { shape.stream(run) } else { shape.reply(run).await?.into_response() })
}

impl Shape {
    fn choice(&mut self, delta: Delta, run: &Run) -> CompletionChoice {
        self.offsets.resize(run.num_choices(), 0);
        self.begun.resize(run.num_choices(), false);
        let naming = Naming { tokenizer: self.state.generator.processor().tokenizer(), as_ids: self.as_ids };
        let offset = &mut self.offsets[delta.choice];
        let logprobs = self.logprobs.then(|| TextLogprobs::new(&delta.tokens, naming, offset));
        let first = !std::mem::replace(&mut self.begun[delta.choice], true);
        let (finish_reason, stop_reason) = delta.finish.map(|finish| (finish.reason, finish.stop_reason)).unzip();
        CompletionChoice {
            index: delta.choice,
            text: delta.text,
            logprobs,
            finish_reason,
            stop_reason: stop_reason.flatten(),
            prompt_token_ids: (self.token_ids && first).then(|| run.prompt_token_ids(delta.choice).to_vec()),
            token_ids: self.token_ids.then(|| delta.tokens.iter().map(|token| token.token_id).collect()),
        }
    }

    fn envelope(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionReply {
        CompletionReply {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage,
        }
    }

    async fn reply(mut self, mut run: Run) -> ApiResult<Json<CompletionReply>> {
        let choices = run.collect().await?.into_iter().map(|delta| self.choice(delta, &run)).collect();
        Ok(Json(self.envelope(choices, Some(run.usage()))))
    }

    fn stream(mut self, mut run: Run) -> Response {
        sse::respond(|events: Events| async move {
            while let Some(delta) = run.next().await {
                let delta = match delta {
                    Ok(delta) => delta,
                    Err(error) => return events.error(&error).await,
                };
                if delta.text.is_empty() && delta.finish.is_none() && !self.logprobs && !self.token_ids {
                    continue;
                }
                let choice = self.choice(delta, &run);
                events.data(&self.envelope(vec![choice], None)).await?;
            }
            if self.include_usage {
                events.data(&self.envelope(Vec::new(), Some(run.usage()))).await?;
            }
            events.done().await
        })
    }
}

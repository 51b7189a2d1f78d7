//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::error::{ApiResult, ErrorBody};
use super::super::extract::JsonBody;
use super::super::sse::{self, Events};
use super::super::{AppState, metrics, unix_seconds};
use super::Usage;
use super::fields::completion_request;
use super::generate::{Ask, Delta, MAX_TOP_LOGPROBS, Run, StopReason};
use super::logprobs::{ChatLogprobs, Naming};
use crate::error::Error;
use crate::processor::{PromptRequest, PromptSource};

completion_request! {
    /// A conversation to be continued.
    pub struct ChatRequest {
        /// Roles `system`, `user`, `assistant`; content a string or parts `text` and `image_url` (`data:` URLs always, others as the
        /// server allows).
        #[schema(value_type = Vec<Object>, example = json!([{"role": "user", "content": "What is 2 + 2?"}]))]
        pub messages: Vec<Value>,
        /// The newer name of `max_tokens`. Without either, the rest of the context.
        pub max_completion_tokens: Option<usize>,
        /// Report the log-probability of every token.
        pub logprobs: Option<bool>,
        /// And of this many likeliest tokens in its place.
        #[schema(maximum = 20)]
        pub top_logprobs: Option<usize>,
        /// Variables of the chat template.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Begin an assistant's turn, which is the default.
        pub add_generation_prompt: Option<bool>,
    }
    refused {
        audio chat_template continue_final_message documents function_call functions mm_processor_kwargs modalities parallel_tool_calls
        prediction reasoning_effort safety_identifier service_tier store tool_choice tools verbosity web_search_options
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatReply {
    id: String,
    #[schema(example = "chat.completion")]
    object: &'static str,
    created: u64,
    model: String,
    /// Names the version of the weights.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    #[schema(example = "assistant")]
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    id: String,
    #[schema(example = "chat.completion.chunk")]
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// With `stream_options.include_usage`: null, and the figures in a last chunk without choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// In the first chunk, when token ids are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
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
}

/// Chat.
///
/// As OpenAI has it, with vLLM's additions. Fields that are not listed are refused by name.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "The completions; with `stream`, server-sent events of `ChatChunk` and then `[DONE]`",
     content((ChatReply = "application/json"), (ChatChunk = "text/event-stream"))),
    (status = 400, body = ErrorBody), (status = 404, description = "Another model", body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn create(State(state): State<AppState>, JsonBody(mut request): JsonBody<ChatRequest>) -> ApiResult<Response> {
    let model = state.model(request.model.as_deref())?.to_owned();
    let max_tokens = match (request.max_completion_tokens, request.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let message = format!("{new} contradicts max_tokens {old}; send one of them");
            return Err(Error::invalid("max_completion_tokens", message).into());
        }
        (new, old) => new.or(old),
    };
    request.max_tokens = max_tokens;
    let logprobs = request.logprobs.unwrap_or(false);
    let top_logprobs = request.top_logprobs.unwrap_or(0);
    if top_logprobs > MAX_TOP_LOGPROBS {
        return Err(Error::invalid("top_logprobs", format!("{top_logprobs} is not from 0 to {MAX_TOP_LOGPROBS}")).into());
    }
    if top_logprobs > 0 && !logprobs {
        return Err(Error::invalid("top_logprobs", "needs logprobs: true").into());
    }
    let common = request.common();
    let prompt = PromptRequest {
        source: PromptSource::Messages { messages: std::mem::take(&mut request.messages), assistant_prefill: None },
        images: Vec::new(),
        tools: None,
        template_kwargs: request.chat_template_kwargs.take().unwrap_or_default(),
        add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
    };
    let shape = Shape {
        id: format!("chatcmpl-{:016x}", metrics::random_u64()),
        created: unix_seconds(),
        fingerprint: format!("policy-{}", state.generator.engine().stats().policy_version().0),
        logprobs,
        token_ids: common.return_token_ids,
        as_ids: common.return_tokens_as_token_ids,
        include_usage: common.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        model,
        state,
    };
    let stream = common.stream;
    let ask = Ask { prompts: vec![prompt], common, top_logprobs, default_max_tokens: None };
    let run = Run::start(&shape.state, &shape.model, ask).await?;
    Ok(if stream { shape.stream(run) } else { shape.reply(run).await?.into_response() })
}

impl Shape {
    fn logprobs(&self, delta: &Delta) -> Option<ChatLogprobs> {
        let naming = Naming { tokenizer: self.state.generator.processor().tokenizer(), as_ids: self.as_ids };
        self.logprobs.then(|| ChatLogprobs::new(&delta.tokens, naming))
    }

    fn token_ids(&self, delta: &Delta) -> Option<Vec<u32>> {
        self.token_ids.then(|| delta.tokens.iter().map(|token| token.token_id).collect())
    }

    async fn reply(self, mut run: Run) -> ApiResult<Json<ChatReply>> {
        let choices = run.collect().await?.into_iter().map(|delta| {
            let (logprobs, token_ids) = (self.logprobs(&delta), self.token_ids(&delta));
            let (finish_reason, stop_reason) = delta.finish.map(|finish| (finish.reason, finish.stop_reason)).unzip();
            ChatChoice {
                index: delta.choice,
                message: ChatMessage { role: "assistant", content: delta.text, refusal: None },
                logprobs,
                finish_reason,
                stop_reason: stop_reason.flatten(),
                token_ids,
            }
        });
        Ok(Json(ChatReply {
            choices: choices.collect(),
            usage: run.usage(),
            prompt_token_ids: self.token_ids.then(|| run.prompt_token_ids(0).to_vec()),
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            system_fingerprint: self.fingerprint,
        }))
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage: self.include_usage.then_some(None),
            prompt_token_ids: None,
        }
    }

    fn stream(self, mut run: Run) -> Response {
        sse::respond(|events: Events| async move {
            for index in 0..run.num_choices() {
                let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
                let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None };
                let mut chunk = self.chunk(vec![choice]);
                chunk.prompt_token_ids = (self.token_ids && index == 0).then(|| run.prompt_token_ids(0).to_vec());
                events.data(&chunk).await?;
            }
            while let Some(delta) = run.next().await {
                let delta = match delta {
                    Ok(delta) => delta,
                    Err(error) => return events.error(&error).await,
                };
                if delta.text.is_empty() && delta.finish.is_none() && !self.logprobs && !self.token_ids {
                    continue;
                }
                let (logprobs, token_ids) = (self.logprobs(&delta), self.token_ids(&delta));
                let (finish_reason, stop_reason) = delta.finish.map(|finish| (finish.reason, finish.stop_reason)).unzip();
                let content = (!delta.text.is_empty() || finish_reason.is_none()).then_some(delta.text);
                let choice = ChunkChoice {
                    index: delta.choice,
                    delta: ChunkDelta { role: None, content },
                    logprobs,
                    finish_reason,
                    stop_reason: stop_reason.flatten(),
                    token_ids,
                };
                events.data(&self.chunk(vec![choice])).await?;
            }
            if self.include_usage {
                let mut last = self.chunk(Vec::new());
                last.usage = Some(Some(run.usage()));
                events.data(&last).await?;
            }
            events.done().await
        })
    }
}

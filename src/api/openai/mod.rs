//! Plain inference in the shape of the OpenAI API, with vLLM's additions. Fields that are not served are refused by name.

pub mod chat;
pub mod completions;
mod fields;
mod generate;
mod logprobs;
pub mod models;

use serde::Serialize;
use utoipa::ToSchema;

/// Tokens of a request and its reply.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

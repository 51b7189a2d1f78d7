//! Log-probabilities as the two routes write them. They are those of the model itself: at temperature 1, before penalties and bias.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::engine::request::TokenRecord;
use crate::processor::tokenizer::Tokenizer;

/// Stands for a probability that is 0 in f32; JSON has no infinity.
const LEAST: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone, Copy)]
pub struct Naming<'a> {
    pub tokenizer: &'a Tokenizer,
    /// `token_id:123` in the place of text.
    pub as_ids: bool,
}

impl Naming<'_> {
    fn name(&self, id: u32) -> String {
        match self.as_ids {
            true => format!("token_id:{id}"),
            false => String::from_utf8_lossy(self.tokenizer.token_bytes(id)).into_owned(),
        }
    }
}

fn finite(logp: f32) -> f32 {
    if logp.is_nan() { LEAST } else { logp.max(LEAST) }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

/// One token of a chat completion.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    token: String,
    logprob: f32,
    /// UTF-8 of the token, which need not be whole characters.
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub fn new(tokens: &[TokenRecord], naming: Naming) -> Self {
        let bytes = |id| naming.tokenizer.token_bytes(id).to_vec();
        let content = tokens.iter().map(|token| ChatLogprob {
            token: naming.name(token.token_id),
            logprob: finite(token.logp_raw),
            bytes: bytes(token.token_id),
            top_logprobs: token
                .top
                .iter()
                .map(|(id, logp)| TopLogprob { token: naming.name(*id), logprob: finite(*logp), bytes: bytes(*id) })
                .collect(),
        });
        ChatLogprobs { content: content.collect() }
    }
}

/// The older shape, of text completions.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// The most likely tokens, and the one drawn.
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Map<String, Value>>,
    /// Characters before each token.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// `offset` counts the characters of tokens so far and moves on.
    pub fn new(tokens: &[TokenRecord], naming: Naming, offset: &mut usize) -> Self {
        let mut logprobs =
            TextLogprobs { tokens: Vec::new(), token_logprobs: Vec::new(), top_logprobs: Vec::new(), text_offset: Vec::new() };
        for token in tokens {
            let (name, logp) = (naming.name(token.token_id), finite(token.logp_raw));
            let mut top = Map::new();
            for (name, logp) in token.top.iter().map(|(id, logp)| (naming.name(*id), finite(*logp))).chain([(name.clone(), logp)]) {
                // Different tokens can have one text, such as parts of characters; the likeliest keeps it.
                top.entry(name).or_insert_with(|| Value::from(logp));
            }
            logprobs.text_offset.push(*offset);
            *offset += String::from_utf8_lossy(naming.tokenizer.token_bytes(token.token_id)).chars().count();
            logprobs.tokens.push(name);
            logprobs.token_logprobs.push(logp);
            logprobs.top_logprobs.push(top);
        }
        logprobs
    }
}
